"""HTTP/1.1 towards one engine: kept connections, one request at a time on each, the body's bytes as they come.

A client library would do, at more than twice the gateway's whole CPU a request; here is only what a gateway needs.
httptools parses, asyncio moves the bytes.
"""

import asyncio
import ssl
from collections import deque
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import httptools

Header = tuple[bytes, bytes]

_OF_THE_CONNECTION = frozenset((b"connection", b"content-length", b"transfer-encoding"))
_TRAILERS = cast(list[Header], deque[Header](maxlen=0))  # what comes after a body is no header, and goes nowhere
_OF_NO_HEADER = frozenset((b"close", b"keep-alive", b"upgrade"))
_RACE_S = 1.0  # in which an engine's farewell and our request may have met
_BUFFER_LIMIT = 256 * 1024  # bytes of a body that may wait for a slow client before the engine is slowed down


class Unreachable(ConnectionError):
    """No connection to the engine could be made; `in_time` tells a refusal from nobody's answering."""

    def __init__(self, message: str, in_time: bool = True) -> None:
        super().__init__(message)
        self.in_time = in_time


class Dropped(ConnectionError):
    """The engine ended the connection before its reply was complete. `stale`: a kept one, before the first byte."""

    def __init__(self, message: str, stale: bool = False) -> None:
        super().__init__(message)
        self.stale = stale


class Answering(Protocol):
    """A reply, wherever it comes from. `usage_by` says who counted its tokens; of a stream that is `counted` whoever
    is nearer to the engine has seen the frames as they came."""

    status: int
    headers: list[Header]
    usage_by: str
    counted: bool

    async def next(self) -> bytes: ...

    async def rest(self) -> bytes: ...


class Serving(Protocol):
    """What takes requests for an engine: its connections, or what translates between it and them."""

    closed: bool

    async def send(self, method: bytes, target: bytes, headers: list[Header], body: bytes) -> Answering: ...

    # Each is given back to whom it came from, so what it is need not be said here.
    def release(self, reply: Any) -> None: ...


class Connections(Serving, Protocol):
    """What serves all the requests for an engine."""

    connect_s: float

    def close(self) -> None: ...


class Reply(asyncio.Protocol):
    """One connection, and the reply that is arriving on it. `status` and `headers` hold after `Upstream.send`."""

    usage_by = "engine"
    counted = False
    _unsent = False  # much of the request was not taken yet
    _named: frozenset[bytes] = frozenset()  # headers that `connection` declares to be its own

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._gone: Dropped | None = None
        self._paused = False
        self._parser = httptools.HttpResponseParser(self)
        self.idle_since = 0.0
        self.used = False
        self.begin()

    def begin(self) -> None:
        """Make ready for the next reply."""
        self.status = 0
        self.headers = self._fields = cast(list[Header], [])
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._started = False  # a byte of the reply was seen
        self._has_head = False
        self._complete = False
        self._keep = False  # the connection may carry another reply
        self._framed = False  # its length is known; otherwise it ends with the connection

    # The consumer's side --------------------------------------------------------------------------------------------

    async def head(self) -> None:
        """Wait for status and headers. Raises Dropped."""
        while not self._has_head:
            await self._more()
        if self.status > 599:
            raise Dropped(f"its status {self.status} is none of HTTP's")

    async def next(self) -> bytes:
        """The bytes of the body that have arrived, waiting for some; empty at its end. Raises Dropped."""
        while not self._chunks:
            if self._complete:
                return b""
            await self._more()
        chunks, self._chunks = self._chunks, []
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        self._buffered = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def rest(self) -> bytes:
        """All of the body that is still to come. Raises Dropped."""
        parts: list[bytes] = []
        while part := await self.next():
            if self._complete and not parts:  # as most are
                return part
            parts.append(part)
        return b"".join(parts)

    @property
    def reusable(self) -> bool:
        """Whether the reply was read to its end and the connection may carry another."""
        return self._keep and self._complete and not self._chunks and self._gone is None and not self._unsent

    def write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise self._gone or Dropped("the connection is closed", stale=self.used)
        self._transport.write(data)

    def abort(self) -> None:
        """End the connection at once: what the engine still sends is of no use."""
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        if self._gone is not None:
            raise self._gone
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio's and httptools' side ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self._unsent = True

    def resume_writing(self) -> None:
        self._unsent = False

    def data_received(self, data: bytes) -> None:
        self._started = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._drop(Dropped(f"its reply is not HTTP: {error}"))
            self.abort()
        if self._buffered > _BUFFER_LIMIT and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if (waiter := self._waiter) is not None and not waiter.done():
            waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._has_head and not self._framed and exc is None:
            self._complete = True
        stale = self.used and not self._started
        self._drop(Dropped("it closed the connection" if exc is None else f"the connection broke: {exc}", stale))
        self._wake()
        # The parser holds us, and the collector comes seldom.
        self._transport = None
        del self._parser

    def _drop(self, why: Dropped) -> None:
        if self._gone is None:
            self._gone = why

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _OF_THE_CONNECTION:
            if name == b"connection":
                self._named |= {part.strip() for part in value.lower().split(b",")} - _OF_NO_HEADER
            else:
                self._framed = True
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._complete:
            raise httptools.HttpParserError("nobody asked for another reply")
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200  # 1xx announce the real one
        self._fields = _TRAILERS
        if self._named:
            self.headers = [header for header in self.headers if header[0] not in self._named]
            self._named = frozenset()

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._has_head:
            self._complete = True
            self._keep = self._parser.should_keep_alive()
        else:
            self.headers = self._fields = []

    @property
    def closed(self) -> bool:
        """Whether a connection that was kept can carry no request: it is at its end, or has said what nobody asked."""
        return self._started or self._gone is not None or self._transport is None or self._transport.is_closing()


class Upstream:
    """The connections to one engine at `url` (scheme, host and port count). Idle ones are let go after `keep_s`."""

    def __init__(self, url: str, connect_s: float, keep_s: float = 3.0, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port or (443 if secure else 80)
        self._tls = (tls or ssl.create_default_context()) if secure else None
        self._prefix = parts.path.rstrip("/").encode()
        self._authority = parts.netloc.rpartition("@")[2].encode("idna" if not parts.netloc.isascii() else "ascii")
        self.connect_s, self._keep_s = connect_s, keep_s
        self.closed = False
        self._idle: deque[Reply] = deque()
        self._busy: set[Reply] = set()

    async def send(self, method: bytes, target: bytes, headers: list[Header], body: bytes) -> Reply:
        """Send a request and wait for the reply's head; `release` the reply when done with it.

        Raises Unreachable, or Dropped. A kept connection that the engine closed just as it was taken is replaced once;
        one that it closed later may have cost it an answer, and is not.
        """
        line = method, self._prefix, target, self._authority, len(body)
        parts = [b"%b %b%b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n" % line]
        parts += [b"%b: %b\r\n" % header for header in headers]
        parts += (b"\r\n", body)
        request = b"".join(parts)
        reply = self._kept()
        if reply is not None:
            try:
                return await self._exchange(reply, request)
            except Dropped as dropped:
                if not dropped.stale or reply.loop.time() - reply.idle_since > self._keep_s + _RACE_S:
                    raise
        return await self._exchange(await self._connect(), request)

    def release(self, reply: Reply) -> None:
        """Keep the connection for the next request when it can be, and end it otherwise."""
        self._busy.discard(reply)
        if reply.reusable:
            reply.begin()
            reply.used = True
            reply.idle_since = reply.loop.time()
            self._idle.append(reply)
        else:
            reply.abort()

    def close(self) -> None:
        """End every connection, those in use too."""
        self.closed = True
        for reply in (*self._idle, *self._busy):
            reply.abort()
        self._idle.clear()

    async def _exchange(self, reply: Reply, request: bytes) -> Reply:
        self._busy.add(reply)
        try:
            reply.write(request)
            await reply.head()
        except BaseException:
            self._busy.discard(reply)
            reply.abort()
            raise
        return reply

    def _kept(self) -> Reply | None:
        idle = self._idle
        if not idle:
            return None
        since = idle[0].loop.time() - self._keep_s
        while idle and idle[0].idle_since < since:
            idle.popleft().abort()
        while idle:
            reply = idle.pop()
            if not reply.closed:
                return reply
            reply.abort()
        return None

    async def _connect(self) -> Reply:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_s):
                _, reply = await loop.create_connection(Reply, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise Unreachable(f"it took no connection in {self.connect_s:g} s", in_time=False) from None
        except (OSError, ssl.SSLError) as error:
            raise Unreachable(str(error) or type(error).__name__) from None
        return reply
