"""Runs a gateway until it is told to stop."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from joulegate.protocol import bounded
from proxy.app import Gateway
from proxy.config import Config, ConfigError, Listen
from proxy.tls import listener_context


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


def url_of(sock: socket.socket, tls: bool = False) -> str:
    host, port = sock.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's, without its signals: it raises them again when it is done, and the books would never be closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def told_to_stop(self) -> None:
        """Once: drain. Twice: wait for nobody."""
        self.force_exit = self.should_exit
        self.should_exit = True


async def serve(config: Config, version: str, sock: socket.socket, ready: Callable[[Gateway], None]) -> None:
    """Serve on `sock` until SIGINT or SIGTERM, then drain and close the books. Raises ConfigError at the start alone.

    `ready` is called once, when everything is open.
    """
    gateway = Gateway(config, version)
    settings = uvicorn.Config(
        gateway,
        http=bounded(config.limits.header_bytes, config.limits.header_seconds),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=30,
    )
    settings.load()
    if config.listen.tls is not None:
        # uvicorn's own context would offer clients before TLS 1.3 only the oldest ciphers.
        settings.ssl = listener_context(config.listen.tls)
    server = Server(settings)
    starting = asyncio.create_task(gateway.start())

    def stop() -> None:
        server.told_to_stop()
        starting.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await starting
    except asyncio.CancelledError:
        if not server.should_exit:
            raise
        return
    try:
        ready(gateway)
        await server.serve(sockets=[sock])
    finally:
        await gateway.stop()


def run(config: Config, version: str, sock: socket.socket, ready: Callable[[Gateway], None]) -> None:
    """`serve` on the fastest event loop there is."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    serving = serve(config, version, sock, ready)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)
