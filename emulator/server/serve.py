"""The engine on a socket: uvicorn, with connections that can be reset on purpose."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from emulator.server.app import RESET, App

_LINGER = struct.pack("ii", 1, 0)  # closing sends RST, and what is not sent yet is lost


class Resettable(HttpToolsProtocol):
    """uvicorn's protocol; its scopes have a function that resets the connection."""

    def on_headers_complete(self) -> None:
        # The application's task, which reads the scope, runs only after this.
        extensions: dict[str, Any] = {RESET: self._reset}
        self.scope["extensions"] = extensions
        super().on_headers_complete()

    def _reset(self) -> None:
        transport: asyncio.Transport = self.transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        transport.abort()


class Server(uvicorn.Server):
    """uvicorn's, without its signals: the process has more than one of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server(app: App, **options: Any) -> Server:
    """A server for `serve(sockets=[...])` within the caller's event loop; streams end a second after it is told to."""
    settings: dict[str, Any] = {
        "http": Resettable,
        "ws": "none",
        "lifespan": "off",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": 1,
        **options,
    }
    return Server(uvicorn.Config(app, **settings))
