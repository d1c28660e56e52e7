"""The end of a connection whose client still sends: it is read on for a while, and nothing of it is kept."""

import asyncio

from joulegate.unread import unread_bytes

_LINGER_S = 5.0


class Farewell(asyncio.Protocol):
    """Takes over a transport on which the last word is written.

    Closed with bytes that were not read, TCP resets the connection, and what the client was told is lost on its way
    (RFC 9112, 9.6). It may send for five seconds and `most_bytes` more; then it has read the reply, or is still reading
    it, or is left.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, most_bytes: float) -> None:
        self._transport, self._loop, self._most_bytes = transport, loop, most_bytes
        transport.set_protocol(self)
        if transport.can_write_eof():
            transport.write_eof()
        self._timer = loop.call_later(_LINGER_S, self._look, None)

    def data_received(self, data: bytes) -> None:
        self._most_bytes -= len(data)
        if self._most_bytes < 0:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()

    def _look(self, before: int | None) -> None:
        rest = unread_bytes(self._transport)
        if rest and (before is None or rest < before):
            self._timer = self._loop.call_later(_LINGER_S, self._look, rest)
        else:
            self._transport.abort()


class Left(asyncio.Transport):
    """Stands where the transport was that a farewell has."""

    def is_closing(self) -> bool:
        return True

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0
