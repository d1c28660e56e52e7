"""Runs a gateway until it is told to stop."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from math import ceil
from typing import Any, cast

import uvicorn

from joulegate.protocol import bounded
from policies.load import load_policy
from proxy.app import Gateway
from proxy.config import Config, ConfigError, Listen
from proxy.energy.ledger_reader import check_place
from proxy.energy.sources import unreadable
from proxy.engines import model
from proxy.engines.interface import Engine, load_engine
from proxy.keys import Keys
from proxy.tls import check_tls, listener_context

log = logging.getLogger("joulegate")

MOST_FILES = 65536


def bind(listen: Listen, or_another: bool = False) -> socket.socket:
    """A socket that listens where the configuration says; `or_another` takes a free port when that one is taken.

    Raises ConfigError when it cannot be had.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((listen.host, listen.port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            if or_another:
                return bind(Listen(host=listen.host, port=0))
            raise ConfigError(f"port {listen.port} on {listen.host} is in use; choose another as listen.port") from None
        raise ConfigError(f"cannot listen on {listen.host}:{listen.port}: {error.strerror}") from None
    return sock


def inherited() -> socket.socket | None:
    """The socket that a supervisor listens on for us, as systemd hands it over (`LISTEN_FDS`); None without one.

    It outlives this process: while one gateway drains and the next one starts, clients wait in its queue.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    sock = socket.socket(fileno=_FIRST_FD)
    os.set_inheritable(_FIRST_FD, False)
    return sock


_FIRST_FD = 3


def reached(config: Config, sock: socket.socket) -> Config:
    """The configuration, where it may be served on `sock`: a supervisor may have opened it to more than `listen` says.

    Raises ConfigError when others than this machine can reach it and nothing keeps them out.
    """
    if sock.family == socket.AF_UNIX or config.keys or config.listen.open:
        return config
    host = sock.getsockname()[0]
    if not ip_address(host.partition("%")[0]).is_loopback:
        raise ConfigError(
            f"the socket that was handed over listens on {host}, can be reached from other machines, and there are no "
            "keys: configure keys, or say listen.open: true to let everybody in"
        )
    return config


def url_of(sock: socket.socket, tls: bool = False) -> str:
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check(config: Config) -> list[Engine]:
    """The engines of a configuration that a gateway can start with, as far as that shows without starting it.

    Nothing is opened that a running gateway holds, and nothing is written. Raises ConfigError or LedgerError.
    """
    engines = [load_engine(engine) for engine in config.engines]
    for engine in config.engines:
        if engine.model_path is not None:
            model.own(engine.model_path)
    try:
        load_policy(config.policy.name, config.policy.options())
    except ValueError as error:
        raise ConfigError(str(error)) from None
    Keys(config.keys, config.admin)
    if config.listen.tls is not None:
        listener_context(config.listen.tls)
    check_tls(config)
    if blind := unreadable(config.hosts):
        raise ConfigError(f"host {blind[0]}: nothing of it can be read; give local: true, or zeusd")
    check_place(config.ledger.path)
    return engines


class Server(uvicorn.Server):
    """uvicorn's, without its signals: it raises them again when it is done, and the books would never be closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def told_to_stop(self, gateway: Gateway) -> None:
        """Once: say so, and then drain. Twice: wait for nobody."""
        self.force_exit, self.should_exit = gateway.draining, gateway.draining
        if gateway.draining:
            return
        gateway.drain()
        limits = gateway.config.limits
        self.config.timeout_graceful_shutdown = ceil(limits.drain_seconds)
        if limits.announce_seconds:
            asyncio.get_running_loop().call_later(limits.announce_seconds, setattr, self, "should_exit", True)
        else:
            self.should_exit = True

    async def end_requests(self) -> None:
        """End those that did not end by themselves, so that their receipts are in the books before these close."""
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORDS_S)


_LAST_WORDS_S = 6.0
# A load balancer that keeps connections for a minute, as most do, must be the one that ends them: one that we end just
# as it sends a request on it costs that request.
_KEEP_ALIVE_S = 75


async def serve(
    config: Config,
    version: str,
    sock: socket.socket,
    ready: Callable[[Gateway], None],
    read: Callable[[], Config] | None = None,
) -> None:
    """Serve on `sock` until SIGINT or SIGTERM, then drain and close the books. Raises ConfigError at the start alone.

    `ready` is called once, when everything is open. SIGHUP takes the configuration that `read` then gives; without
    `read` it is what a terminal says when it closes, and ends the gateway too, unless it was started to outlive that.
    """
    gateway = Gateway(config, version, read)
    settings = uvicorn.Config(
        gateway,
        http=cast(Any, bounded(lambda: gateway.config.limits, lambda: server.should_exit)),  # it only calls it
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nobody is told where clients come from
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    settings.load()
    if config.listen.tls is not None:
        # uvicorn's own context would offer clients before TLS 1.3 only the oldest ciphers.
        settings.ssl = listener_context(config.listen.tls)
    server = Server(settings)
    starting = asyncio.create_task(gateway.start())

    def stop() -> None:
        server.told_to_stop(gateway)
        starting.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if read is not None:
        loop.add_signal_handler(signal.SIGHUP, log.warning, "not started yet: SIGHUP is ignored")
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        loop.add_signal_handler(signal.SIGHUP, stop)
    try:
        await starting
    except asyncio.CancelledError:
        if not gateway.draining:
            raise
        return
    try:
        ready(gateway)
        _allow_connections()
        calm_collector()
        reloads: set[asyncio.Task[None]] = set()

        def hang_up() -> None:
            task = asyncio.create_task(reload(gateway))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        if read is not None:
            loop.add_signal_handler(signal.SIGHUP, hang_up)
        await server.serve(sockets=[sock])
        await server.end_requests()
    finally:
        await gateway.stop()


async def reload(gateway: Gateway) -> None:
    """Take the configuration anew and log what came of it."""
    try:
        log.info("configuration read again: %s", await gateway.reload())
    except ConfigError as error:
        for line in str(error).splitlines():
            log.error("configuration not taken: %s", line)


def _allow_connections() -> None:
    """As many open files as this process may have: each stream takes two, and the usual 1024 are soon gone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def calm_collector() -> None:
    """Look for cycles less often, and never among what was there at the start: a request leaves next to none."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def run(
    config: Config,
    version: str,
    sock: socket.socket,
    ready: Callable[[Gateway], None],
    read: Callable[[], Config] | None = None,
) -> None:
    """`serve` on the fastest event loop there is."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are of what clients send
    serving = serve(config, version, sock, ready, read)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)
