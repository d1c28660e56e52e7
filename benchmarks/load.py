"""A lean HTTP/1.1 client that measures: keep-alive connections, one request at a time on each, every chunk's arrival.

It parses no JSON and copies nothing, so that on a small machine the client is not what is measured.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from time import perf_counter
from typing import Protocol, cast

import httptools
import orjson

STALL_S = 60.0  # an answer that takes longer has failed


class Lost(ConnectionError):
    """The connection ended before its answer did."""


@dataclass(slots=True)
class Reply:
    """One answer. Times are seconds of the performance counter; `arrivals` are those of every chunk of the body."""

    began: float
    ended: float = 0.0
    status: int = 0
    frames: int = 0  # `data:` lines
    finished: bool = False  # the body came to its end, a stream with its [DONE]
    arrivals: list[float] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.finished

    @property
    def latency_s(self) -> float:
        return self.ended - self.began


class Connection(asyncio.Protocol):
    """One connection, used by one client."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._reply = Reply(0.0)
        self._tail = b""
        self._streamed = False

    async def ask(self, request: bytes, streamed: bool) -> Reply:
        """Send one request and return its whole answer. Raises Lost, or TimeoutError after STALL_S without an end."""
        if self._transport is None or self._transport.is_closing():
            raise Lost("closed by the server")
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._reply = Reply(perf_counter())
        self._streamed, self._tail = streamed, b""
        self._transport.write(request)
        async with asyncio.timeout(STALL_S):
            return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # asyncio's side -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has its methods and another ancestor

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(Lost(f"not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(Lost(str(exc) if exc else "closed in the middle of an answer"))

    def _fail(self, error: Lost) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # The parser's side ----------------------------------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        if self._streamed:
            reply = self._reply
            reply.arrivals.append(perf_counter())
            # A marker that is split between two chunks lies in the end of the first and the beginning of the second.
            text = self._tail + body
            reply.frames += text.count(b"data:") - self._tail.count(b"data:")
            self._tail = text[-16:]

    def on_message_complete(self) -> None:
        reply = self._reply
        reply.ended = perf_counter()
        reply.status = self._parser.get_status_code()
        reply.finished = not self._streamed or b"[DONE]" in self._tail
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(reply)


async def connect(port: int) -> Connection:
    """A connection to a port of the loopback. Raises OSError when it is refused."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


class Asks(Protocol):
    """Makes requests, as bytes of HTTP/1.1."""

    @property
    def streamed(self) -> bool: ...
    def next(self) -> bytes: ...


_chats = count()


class Chat:
    """Makes requests: the same prompt for everybody, and a new workflow run every four requests.

    No two of them name the same run: one that was closed would be opened again, which is not what clients do.
    `itl_ms` is the pace that the stub engine is asked for, in milliseconds between two tokens.
    """

    def __init__(self, model: str, key: str, streamed: bool, tokens: int, itl_ms: float = 0.0) -> None:
        self.streamed, self.tokens = streamed, tokens
        pace = f"itl_ms={itl_ms:g} " if itl_ms else ""
        message = {"role": "user", "content": pace + "word " * 200}
        body = {"model": model, "messages": [message], "max_tokens": tokens, "stream": streamed}
        if streamed:
            body["stream_options"] = {"include_usage": True}
        raw = orjson.dumps(body)
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: {len(raw)}\r\nuser-agent: bench\r\n"
            f"x-workflow-name: bench\r\nx-workflow-step: ask\r\nx-workflow-id: bench-{next(_chats)}-"
        ).encode()
        self._rest = b"\r\n\r\n" + raw
        self._numbers = count()

    def next(self) -> bytes:
        number = next(self._numbers)
        final = b"\r\nx-workflow-final: true" if number % 4 == 3 else b""
        return self._head + str(number // 4).encode() + final + self._rest


@dataclass(slots=True)
class Load:
    """What a stretch of load brought."""

    replies: list[Reply]
    failures: list[str]
    wall_s: float

    @property
    def frames(self) -> int:
        return sum(reply.frames for reply in self.replies)


async def keep_asking(
    port: int, chat: Asks, clients: int, requests: int, limit_s: float, after: Callable[[int], None] | None = None
) -> Load:
    """`clients` at once, each asking again when it is answered: `requests` in all, fewer where `limit_s` is over first.

    `after` is told after each answer how many there are.
    """
    replies: list[Reply] = []
    failures: list[str] = []
    numbers = iter(range(requests))

    async def client() -> None:
        connection: Connection | None = None
        try:
            while perf_counter() < deadline and next(numbers, None) is not None:
                try:
                    connection = connection or await connect(port)
                    reply = await connection.ask(chat.next(), chat.streamed)
                except OSError as error:  # Lost, refused, and the timeout
                    failures.append(f"{type(error).__name__}: {error}")
                    if connection is not None:
                        connection.close()
                    connection = None
                    continue
                if reply.ok:
                    replies.append(reply)
                    if after is not None:
                        after(len(replies))
                else:
                    failures.append(f"status {reply.status}" if reply.status != 200 else "a stream without its end")
        finally:
            if connection is not None:
                connection.close()

    began = perf_counter()
    deadline = began + limit_s
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(replies, failures, perf_counter() - began)


def gaps_s(replies: Sequence[Reply], tokens: int) -> list[float]:
    """The seconds between two chunks, of all streams, as far as there are tokens in them: what ends a stream has no
    pace."""
    return [b - a for reply in replies for a, b in pairwise(reply.arrivals[: tokens + 1])]


def quantile(values: Sequence[float], q: float) -> float:
    """The value that the share `q` of `values` does not exceed (nearest rank). Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
