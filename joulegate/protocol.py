"""HTTP/1.1 with clients: connections on uvicorn's server, with bounds on what may be sent that is no body.

httptools parses; uvicorn accepts connections, keeps their list and tells them when the server ends. Its own protocol
would do at twice the cost a request, but for the bounds: one endless header would be kept until memory is gone.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn import Config
from uvicorn.server import ServerState

from joulegate.exchange import App, Exchange, Header
from joulegate.farewell import Farewell, Left
from joulegate.unread import unread_bytes
from proxy.client import TELL_WHEN_GONE
from proxy.config import Limits
from proxy.refusal import error_object

_FAREWELL_S = 1.0
_FIRST_CALL_S = 1.0  # at the end, for the request of a connection that never had one
_LAST_CALL_S = 0.1  # and for one that is on its way on a connection in use
_STUCK_S = 10.0  # without reading a byte of the rest, after which a client is left that is to be left anyway
_UNHEARD_BYTES = 2**20  # that may still come from a client to which we have said that it makes no sense
_BUFFER_BYTES = 65536  # of a request's body that nobody takes, after which no more is read
_AHEAD = 16  # requests sent ahead, after which no more is read
_MOST_AHEAD = 256  # of one read, after which the connection takes no more
_TRAILERS = cast(list[Header], deque[Header](maxlen=0))  # what comes after a body is no header, and goes nowhere
_ASGI = {"version": "3.0", "spec_version": "2.3"}


class Connection(asyncio.Protocol):
    """One client's connection: a request at a time, those that are sent ahead wait.

    A head must be complete `header_seconds` after the connection was made, or after its first byte on a used one.
    Heads, trailers and chunk extensions may have `header_bytes` and one read. A client that is waited for, for the
    next request, the rest of a body, or to read what is written, has uvicorn's `timeout_keep_alive` for each step.
    `limits` are those of now; `ending` says whether the server is on its way out.
    """

    def __init__(
        self,
        limits: Callable[[], Limits],
        ending: Callable[[], bool],
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """All but the first two as uvicorn gives it to a protocol."""
        self._limits, self._is_ending = limits, ending
        self._app, self._keep_s, self._state = cast(App, config.loaded_app), config.timeout_keep_alive, server_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = self._new_parser()
        self._exchange: Exchange | None = None  # of the request that came last
        self._answering: Exchange | None = None  # of those sent ahead, the one whose turn it is
        self._ahead: deque[Exchange] = deque()
        self._told_when_gone: set[Callable[[], None]] = set()
        self._extensions: dict[str, Any] = {TELL_WHEN_GONE: self._tell_when_gone}
        self._in_head = True
        self._outside_body = 0  # bytes since the message began or since the last byte of a body
        self._deadline: asyncio.TimerHandle | None = None  # of the head
        self._keeping: asyncio.TimerHandle | None = None
        self._quiet_since: float | None = None  # when the client came to be waited for
        self._unread: asyncio.TimerHandle | None = None  # of what it does not read
        self._ending = False
        self._head = b""  # of a reply, on its way
        self._read_paused = self.write_paused = False
        self._writable = asyncio.Event()

    # The server's and the transport's side --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has its methods and another ancestor
        self._state.connections.add(cast(Any, self))
        address = transport.get_extra_info
        self._base = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "server": _host_and_port(address("sockname")),
            "client": _host_and_port(address("peername")),
            "scheme": "https" if address("sslcontext") else "http",
            "root_path": "",
        }
        self._deadline = self._loop.call_later(self._limits().header_seconds, self._too_slow)
        if self._is_ending():  # its handshake took until now, and nobody else will tell it
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(cast(Any, self))
        self._met_deadline()
        if self._keeping is not None:
            self._keeping.cancel()
        for exchange in (self._answering, self._exchange):
            if exchange is not None:
                exchange.leave()
        self.resume_writing()
        for tell in [*self._told_when_gone]:
            tell()
        # Through these we hold ourselves, and the collector comes seldom.
        self._exchange = self._answering = None
        self._extensions.clear()
        del self._parser

    def data_received(self, data: bytes) -> None:
        self._quiet_since = None
        self._outside_body += len(data)
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._feed_without_upgrade(data, upgrade.args[0])
        except httptools.HttpParserError:
            self._end_of_sense()
            return
        if self._outside_body > (most := self._limits().header_bytes):
            what = f"the headers are larger than {most} bytes"
            self._refuse(431, what, "headers_too_large", self._in_head and self._idle)
        elif self._in_head and self._deadline is None:
            self._deadline = self._loop.call_later(self._limits().header_seconds, self._too_slow)

    def eof_received(self) -> None:
        """Close: who says no more is not answered either, as uvicorn has it."""

    def pause_writing(self) -> None:
        self.write_paused = True
        self._writable.clear()
        self._abort_later_unless_read(self._keep_s)

    def resume_writing(self) -> None:
        self.write_paused = False
        self._writable.set()
        if self._unread is not None:
            self._unread.cancel()

    def shutdown(self) -> None:
        """End once what is under way is answered, and what the client may have sent that was not read yet."""
        self._ending = True
        if self._idle:
            self._loop.call_later(_FIRST_CALL_S if self._exchange is None else _LAST_CALL_S, self._end_idle)
        elif self._exchange is not None:
            self._exchange.keep_alive = False

    @property
    def _idle(self) -> bool:
        return self._exchange is None or self._exchange.complete

    def _end_idle(self) -> None:
        if self._idle:
            self.close()
            self._loop.call_later(_FAREWELL_S, self._part)

    def _part(self) -> None:
        # Over TLS it would wait half a minute for a farewell that a pool of idle connections never sends.
        if not self.transport.get_write_buffer_size():  # of an answer, for a client that is slow to read it
            self.transport.abort()

    # The parser's side ----------------------------------------------------------------------------------------------

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # it may come while the answer is written
        return parser

    def _feed_without_upgrade(self, data: bytes, offset: int) -> None:
        """Read a request that asks for a protocol beyond HTTP/1.1, and what follows from `offset`, as if it did not.

        The parser takes all behind such a head for the other protocol: the body would be lost, or read as a request.
        """
        rest = memoryview(data)
        while True:
            rest = rest[offset:]
            method, version = self._parser.get_method(), self._parser.get_http_version().encode()
            if method == b"CONNECT":
                raise httptools.HttpParserError("this is no proxy")
            head = [b"%b %b HTTP/%b\r\n" % (method, self._url, version)]
            head += [b"%b: %b\r\n" % header for header in self._headers if header[0] != b"upgrade"]
            self._parser = self._new_parser()
            try:
                self._parser.feed_data(b"".join([*head, b"\r\n"]))
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                offset = upgrade.args[0]
            else:
                return

    def _end_of_sense(self) -> None:
        """What came is not HTTP. What came before is answered first."""
        self._met_deadline()
        last = self._exchange
        if last is None or (last.complete and last.ended):
            self._refuse(400, "this is not HTTP", "invalid_http", aloud=True)
        elif last.ended:
            last.keep_alive = False
        elif last.complete:
            self.close()
        else:
            self._refuse(400, "this is not HTTP", "invalid_http", last is self._answering and not last.began)

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._in_head, self._outside_body = True, 0
        self._url = b""
        self._expects = False
        self._headers: list[Header] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser.should_upgrade():  # it will be here again without
            return
        self._in_head, self._outside_body = False, 0
        if self._deadline is not None:
            self._met_deadline()
        url = httptools.parse_url(self._url)
        path, version = url.path.decode("ascii"), parser.get_http_version()
        scope = {
            **self._base,
            "method": parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": self._headers,
            "extensions": self._extensions,
        }
        self._headers = _TRAILERS
        keep_alive = not self._ending and parser.should_keep_alive()
        if version != "1.1":
            scope["http_version"] = version
            keep_alive = keep_alive and version != "1.0"
            self._expects = False  # who speaks 1.0 would take a 100 for the answer
        exchange = Exchange(self, scope, self._state.default_headers, keep_alive, self._expects)
        if self._idle:
            self._exchange = exchange
            self._answer(exchange)
            return
        if len(self._ahead) >= _AHEAD:
            self._pause_reading()
            if len(self._ahead) >= _MOST_AHEAD:
                raise httptools.HttpParserError("too many requests ahead")
        self._exchange = exchange
        self._ahead.append(exchange)

    def on_body(self, body: bytes) -> None:
        self._outside_body = 0
        exchange = self._exchange
        if exchange is not None and not exchange.complete:
            exchange.feed(body)
            if exchange.buffered > _BUFFER_BYTES:
                self._pause_reading()

    def on_message_complete(self) -> None:
        if self._exchange is not None and not self._exchange.complete:
            self._exchange.end()

    def _answer(self, exchange: Exchange) -> None:
        self._answering = exchange
        task = self._loop.create_task(exchange.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    # The exchange's side --------------------------------------------------------------------------------------------

    def write_head(self, head: bytes) -> None:
        """Write the head of a reply together with what is written next, in the same turn or the next.

        A write to a socket costs more than all else that a small reply needs.
        """
        self._head = head
        self._loop.call_soon(self._flush)

    def write(self, data: bytes) -> None:
        head, self._head = self._head, b""
        if not self.transport.is_closing():  # else the client has left in this very moment
            self.transport.write(head + data if head else data)

    def close(self) -> None:
        """End it once the client has read what was written, or reads no more."""
        self._flush()
        if self._exchange is not None and not self._exchange.ended:
            self._part_from_sender(inf)
            return
        self.transport.close()
        self._abort_later_unless_read(_STUCK_S)

    def answered(self) -> None:
        """The reply is complete: on to the next request."""
        self._state.total_requests += 1
        if self.transport.is_closing():
            return
        self.resume_reading()
        if self._ahead:
            self._answer(self._ahead.popleft())
        else:
            self.await_client()

    def await_client(self) -> None:
        """The client is waited for: for the rest of its request, or for its next one."""
        self._quiet_since = self._loop.time()
        if self._keeping is None:
            self._keeping = self._loop.call_later(self._keep_s, self._keep)

    async def drain(self) -> None:
        """Wait until the client has read enough of what was written."""
        await self._writable.wait()

    def resume_reading(self) -> None:
        if self._read_paused and len(self._ahead) < _AHEAD:
            self._read_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def _part_from_sender(self, most_bytes: float) -> None:
        if self.transport.is_closing():
            return
        if self._read_paused:
            self.transport.resume_reading()
        Farewell(self.transport, self._loop, most_bytes)
        self.transport = Left()
        self.connection_lost(None)

    def _abort_later_unless_read(self, wait_s: float) -> None:
        if self._unread is not None:
            self._unread.cancel()
        if rest := unread_bytes(self.transport):
            self._unread = self._loop.call_later(wait_s, self._abort_unless_read, rest, wait_s)

    def _abort_unless_read(self, before: int, wait_s: float) -> None:
        if unread_bytes(self.transport) >= before:
            self.transport.abort()
        else:
            self._abort_later_unless_read(wait_s)

    def _tell_when_gone(self, tell: Callable[[], None]) -> Callable[[], None]:
        self.resume_reading()  # after a large body it stands still, and nobody would see the client go
        self._told_when_gone.add(tell)
        return partial(self._told_when_gone.discard, tell)

    # Time -----------------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Close what was quiet for its time. One timer looks again and again: setting one a request costs more."""
        now = self._loop.time()
        if self._quiet_since is None and self._idle and self._deadline is None:  # it spoke, and asked for nothing
            self._quiet_since = now
        ends = (now if self._quiet_since is None else self._quiet_since) + self._keep_s
        if now < ends:
            self._keeping = self._loop.call_at(ends, self._keep)
            return
        self._keeping = None
        if self._idle:
            self.close()
        else:
            what = f"nothing came of the body for {self._keep_s:g} s"
            self._refuse(408, what, "body_too_slow", self._answering is not None and not self._answering.began)

    def _met_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._exchange is None and not self._outside_body:  # made in advance, and not needed
            self.transport.close()
        what = f"the headers were not complete after {self._limits().header_seconds:g} s"
        self._refuse(408, what, "headers_too_slow", self._in_head and self._idle)

    def _refuse(self, status: int, message: str, code: str, aloud: bool) -> None:
        """End the connection; say why unless that would fall into an answer that is under way."""
        if self.transport.is_closing():
            return
        if not aloud:
            self.transport.abort()
            return
        body = error_object(status, message, code)
        length = b"%d" % len(body)
        own = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
        lines = [b"%b: %b\r\n" % header for header in (*self._state.default_headers, *own)]
        self.write(b"HTTP/1.1 %d Refused\r\n%b\r\n%b" % (status, b"".join(lines), body))
        self._part_from_sender(_UNHEARD_BYTES)


def bounded(limits: Callable[[], Limits], ending: Callable[[], bool]) -> Callable[..., Connection]:
    """Makes connections, as uvicorn asks for them."""
    return partial(Connection, limits, ending)


def _host_and_port(address: Any) -> tuple[str, int] | None:
    """Of an address of IPv4 or IPv6; a Unix socket's is none."""
    return (address[0], address[1]) if isinstance(address, tuple) else None
