"""One request of a connection and its reply, as ASGI applications see them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

from proxy.wordless import wordless

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Header = tuple[bytes, bytes]
App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

log = logging.getLogger("joulegate.server")

_GONE: Message = {"type": "http.disconnect"}
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_NO_BODY = (204, 304)
_BROKEN = b"Internal Server Error"


class Line(Protocol):
    """The connection, as an exchange needs it."""

    write_paused: bool

    def write(self, data: bytes, /) -> None: ...
    def write_head(self, head: bytes, /) -> None: ...
    async def drain(self) -> None: ...
    def resume_reading(self) -> None: ...
    def await_client(self) -> None: ...
    def close(self) -> None: ...
    def answered(self) -> None: ...


class Exchange:
    """What came of a request, and how far its reply is.

    `began`: the client has seen a status; `complete`: it has the whole reply; `gone`: it has left.
    """

    __slots__ = (
        *("_chunked", "_default", "_expects_continue", "_left", "_line", "_news", "_parts", "_scope", "_told_end"),
        *("began", "buffered", "complete", "ended", "gone", "keep_alive"),
    )

    def __init__(self, line: Line, scope: Scope, default: list[Header], keep_alive: bool, expects: bool) -> None:
        """`default` headers go before the application's; `expects`: the client waits for 100 before it sends more."""
        self._line, self._scope, self._default = line, scope, default
        self.keep_alive, self._expects_continue = keep_alive, expects
        self._parts: list[bytes] = []
        self.buffered = 0  # bytes of the body that the application has not taken
        self.ended = False  # the request is here to its end
        self._told_end = False
        self._news: asyncio.Event | None = None  # for an application that waits
        self.began = self.complete = self.gone = False
        self._chunked = False
        self._left: int | None = None  # bytes of the body that are promised and not sent

    # The connection's side ------------------------------------------------------------------------------------------

    def feed(self, body: bytes) -> None:
        self._parts.append(body)
        self.buffered += len(body)
        self.wake()

    def end(self) -> None:
        """The request has no more."""
        self.ended = True
        self.wake()

    def leave(self) -> None:
        """The client has left."""
        self.gone = not self.complete
        self.wake()

    def wake(self) -> None:
        if self._news is not None:
            self._news.set()

    async def run(self, app: App) -> None:
        """Have the application answer; one that fails to is answered for."""
        try:
            await app(self._scope, self.receive, self.send)
        except BaseException as error:
            log.error("the application failed\n%s", wordless(error))
        else:
            if self.complete or self.gone:
                return
            log.error("the application returned without a whole answer")
        if self.began or self.gone:
            self._line.close()
            return
        self._chunked, length = False, (b"content-length", b"%d" % len(_BROKEN))
        headers = [(b"content-type", b"text/plain; charset=utf-8"), length, (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": _BROKEN})

    # The application's side -----------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """What has come of the request's body, or that the client is gone or has its answer."""
        if self._expects_continue and not self.gone:
            self._expects_continue = False
            self._line.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.complete or self.gone):
            self._line.resume_reading()
            if self._parts or (self.ended and not self._told_end):
                parts, self._parts, self.buffered, self._told_end = self._parts, [], 0, self.ended
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                return {"type": "http.request", "body": body, "more_body": not self.ended}
            if self._news is None:
                self._news = asyncio.Event()
            if not self.ended:
                self._line.await_client()
            self._news.clear()
            await self._news.wait()
        return _GONE

    async def send(self, message: Message) -> None:
        """Send the head, or a part of the body. Raises RuntimeError for what would not be a reply of HTTP."""
        if self._line.write_paused and not self.gone:
            await self._line.drain()
        if self.gone:
            return
        kind = message["type"]
        if kind == "http.response.body" and self.began and not self.complete:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start" and not self.began:
            self._send_head(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"unexpected {kind}")

    def _send_head(self, status: int, headers: Iterable[Header]) -> None:
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        length = None
        closes = False
        for name, value in (*self._default, *headers):
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and b"close" in value.lower():
                closes, self.keep_alive = True, False
        bodiless = status in _NO_BODY or self._scope["method"] == "HEAD"
        self._left = 0 if bodiless else length
        if length is None and not bodiless:
            if self._scope["http_version"] == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False  # the end of the body is that of the connection
        if self._expects_continue:
            self._expects_continue = False
            # It was not asked for its body, and whether it sends it all the same cannot be known.
            self.keep_alive = self.keep_alive and self.ended
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
            raise RuntimeError("a header does not keep to its line")
        self.began = True
        self._line.write_head(head + b"\r\n")

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self._line.write(chunk if more else chunk + b"0\r\n\r\n")
        elif self._scope["method"] != "HEAD":
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError(f"the body has {-self._left} bytes more than its content-length")
            self._line.write(body)
        if more:
            return
        self.complete = True
        self.wake()
        if not self.keep_alive:
            self._line.close()
        self._line.answered()
