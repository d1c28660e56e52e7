"""Runs a gateway until it is told to stop."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from math import ceil

import uvicorn

from joulegate.protocol import bounded
from proxy.app import Gateway
from proxy.config import Config, ConfigError, Listen
from proxy.tls import listener_context

log = logging.getLogger("joulegate")


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


def url_of(sock: socket.socket, tls: bool = False) -> str:
    host, port = sock.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


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


async def serve(
    config: Config,
    version: str,
    sock: socket.socket,
    ready: Callable[[Gateway], None],
    read: Callable[[], Config] | None = None,
) -> None:
    """Serve on `sock` until SIGINT or SIGTERM, then drain and close the books. Raises ConfigError at the start alone.

    `ready` is called once, when everything is open. SIGHUP takes the configuration that `read` then gives.
    """
    gateway = Gateway(config, version, read)
    settings = uvicorn.Config(
        gateway,
        http=bounded(config.limits.header_bytes, config.limits.header_seconds),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
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
    loop.add_signal_handler(signal.SIGHUP, log.warning, "not started yet: SIGHUP is ignored")
    try:
        await starting
    except asyncio.CancelledError:
        if not gateway.draining:
            raise
        return
    try:
        ready(gateway)
        reloads: set[asyncio.Task[None]] = set()

        def hang_up() -> None:
            task = asyncio.create_task(reload(gateway))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

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


def run(
    config: Config,
    version: str,
    sock: socket.socket,
    ready: Callable[[Gateway], None],
    read: Callable[[], Config] | None = None,
) -> None:
    """`serve` on the fastest event loop there is."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    serving = serve(config, version, sock, ready, read)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)
