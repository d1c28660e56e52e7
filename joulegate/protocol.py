"""HTTP/1.1 as uvicorn speaks it, with bounds on what a connection may send that is no body."""

import asyncio
from collections.abc import Callable
from functools import partial

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.client import TELL_WHEN_GONE
from proxy.config import Limits
from proxy.refusal import error_object

_FAREWELL_S = 1.0
_FIRST_CALL_S = 1.0  # at the end, for the request of a connection that never had one
_LAST_CALL_S = 0.1  # and for one that is on its way on a connection in use
_STUCK_S = 10.0  # without reading a byte of the rest, after which a client that is to be left is left


class _HeadWithBody(asyncio.Transport):
    """A transport on which the head of a reply leaves together with what is written next, in the same turn or the next.

    A write to a socket costs more than all else that a small reply needs.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._head = b""
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.set_protocol = transport.set_protocol
        self.get_write_buffer_size = transport.get_write_buffer_size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._transport.is_closing():  # the client has left in this very moment
            self._head = b""
        elif self._head:
            self._transport.write(self._head + data)
            self._head = b""
        elif data[:5] == b"HTTP/":
            self._head = bytes(data)
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """End it once the client has read what was written, or reads no more."""
        self._flush()
        self._transport.close()
        if rest := self.get_write_buffer_size():
            self._loop.call_later(_STUCK_S, self._abort_unless_read, rest)

    def _abort_unless_read(self, before: int) -> None:
        rest = self.get_write_buffer_size()
        if rest >= before:
            self._transport.abort()
        elif rest:
            self._loop.call_later(_STUCK_S, self._abort_unless_read, rest)

    def abort(self) -> None:
        self._head = b""
        self._transport.abort()

    def _flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""


def bounded(limits: Callable[[], Limits], ending: Callable[[], bool]) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, holding at most `header_bytes` and one read of heads, trailers and chunk extensions.

    A head must be complete `header_seconds` after the connection was made, or after its first byte on a used one.
    uvicorn's parser has neither bound: one endless header would be kept until memory is gone. `limits` are those of
    now; `ending` says whether the server is on its way out.
    """

    class Bounded(HttpToolsProtocol):
        _told_when_gone: set[Callable[[], None]]
        _in_head = True
        _outside_body = 0  # bytes since the message began or since the last byte of a body
        _deadline: asyncio.TimerHandle | None = None
        _ending = False
        _answering: RequestResponseCycle | None = None  # of requests sent without waiting, the one whose turn it is

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(_HeadWithBody(transport, self.loop))
            self._told_when_gone = set()
            self._extensions = {TELL_WHEN_GONE: self._tell_when_gone}
            self._deadline = self.loop.call_later(limits().header_seconds, self._too_slow)
            if ending():  # its handshake took until now, and nobody else will tell it
                self.shutdown()

        def shutdown(self) -> None:
            """End once what is under way is answered, and what the client may have sent that was not read yet."""
            self._ending = True
            if self._idle:
                self.loop.call_later(_FIRST_CALL_S if self.cycle is None else _LAST_CALL_S, self._end_idle)
            else:
                super().shutdown()

        @property
        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _end_idle(self) -> None:
            if self._idle:
                self.transport.close()
                self.loop.call_later(_FAREWELL_S, self._part)

        def _part(self) -> None:
            # Over TLS it would wait half a minute for a farewell that a pool of idle connections never sends.
            if not self.transport.get_write_buffer_size():  # of an answer, for a client that is slow to read it
                self.transport.abort()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
            self._answering = cycle
            super()._start_asgi_task(cycle, app)

        def connection_lost(self, exc: Exception | None) -> None:
            self._met_deadline()
            if self._answering is not None:  # uvicorn tells only the request that came last
                self._answering.disconnected = True
                self._answering.message_event.set()
            super().connection_lost(exc)
            for tell in [*self._told_when_gone]:
                tell()
            self._extensions.clear()  # through it we hold ourselves

        def data_received(self, data: bytes) -> None:
            self._outside_body += len(data)
            super().data_received(data)
            if self._outside_body > (most := limits().header_bytes):
                self._refuse(431, f"the headers are larger than {most} bytes", "headers_too_large")
            elif self._in_head and self._deadline is None:
                self._deadline = self.loop.call_later(limits().header_seconds, self._too_slow)

        def on_message_begin(self) -> None:
            if not self._in_head:
                self._in_head, self._outside_body = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head, self._outside_body = False, 0
            self._met_deadline()
            self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item]
            super().on_headers_complete()
            if self._ending:
                self.cycle.keep_alive = False

        def on_body(self, body: bytes) -> None:
            self._outside_body = 0
            super().on_body(body)

        def _tell_when_gone(self, tell: Callable[[], None]) -> Callable[[], None]:
            self.flow.resume_reading()  # after a large body it stands still, and nobody would see the client go
            self._told_when_gone.add(tell)
            return partial(self._told_when_gone.discard, tell)

        def _met_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            self._deadline = None
            if self.scope is None:  # made in advance, and not needed
                self.transport.close()
            limit_s = limits().header_seconds
            self._refuse(408, f"the headers were not complete after {limit_s:g} s", "headers_too_slow")

        def _refuse(self, status: int, message: str, code: str) -> None:
            """End the connection; say why unless that would fall into an answer that is under way."""
            if self.transport.is_closing():
                return
            if self._in_head and self._idle:
                body = error_object(status, message, code)
                head = f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\nconnection: close\r\n"
                self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                self.transport.close()
            else:
                self.transport.abort()

        def _unsupported_upgrade_warning(self) -> None:
            """Silent: what a client asks for is no reason to write to our log."""

    return Bounded
