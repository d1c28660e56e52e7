"""What clients send that is odd, broken or hostile, in bytes on a wire that is none."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, cast

import httptools
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from joulegate import farewell
from joulegate.protocol import Connection, bounded
from proxy.config import Limits

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
Send = Callable[[Any], Awaitable[None]]


class Wire(asyncio.Transport):
    """Keeps what is written; `feed` is the client's."""

    def __init__(self, connection: Connection) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 9)})
        self._loop = asyncio.get_running_loop()
        self.connection = self._protocol = cast(asyncio.BaseProtocol, connection)
        self.written = b""
        self.unread = [0]  # how much of it the client has not read, each time that somebody looks
        self.reading, self.closed, self.aborted, self.ended = True, False, False, False
        connection.connection_made(self)

    async def feed(self, *parts: bytes) -> bytes:
        """What has been written when all of this was read."""
        for part in parts:
            assert isinstance(self._protocol, asyncio.Protocol) and not self.closed
            self._protocol.data_received(part)
            await self.settle()
        return self.written

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def until(self, probe: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not probe():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def replies(self) -> list[tuple[int, bytes]]:
        """Status and body of what was written, as a client reads it."""
        reader = Replies()
        httptools.HttpResponseParser(reader).feed_data(self.written)
        return reader.found

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "it has said that it says no more"
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return self.unread.pop(0) if len(self.unread) > 1 else self.unread[0]

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Replies:
    def __init__(self) -> None:
        self.found: list[tuple[int, bytes]] = []
        self._status = 0

    def on_message_begin(self) -> None:
        self._body = b""

    def on_status(self, status: bytes) -> None:
        self._status = {b"OK": 200, b"Unauthorized": 401, b"Refused": 400}[status]

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.found.append((self._status, self._body))


class App:
    """Says the body that it was sent. `/early` has its answer before that, `/late` once `go` is set."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.left = 0
        self.go = asyncio.Event()
        self.state = ServerState()

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        self.scopes.append(scope)
        body, more = b"", scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body, more = body + message["body"], message["more_body"]
        if scope["path"] == "/late":
            await self.go.wait()
        status = 401 if scope["path"] == "/early" else 200
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connected(app: App, keep_s: float = 5.0) -> AsyncIterator[Wire]:
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    config.load()
    config.loaded_app, config.timeout_keep_alive = app, keep_s  # type: ignore[assignment]
    wire = Wire(bounded(lambda: Limits(header_seconds=9), lambda: False)(config, app.state, {}))
    try:
        yield wire
    finally:
        app.go.set()
        wire.abort()
        await wire.settle()
        assert not app.state.tasks and not app.state.connections


# Beyond HTTP/1.1 -----------------------------------------------------------------------------------------------------

UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "framed",
    [
        b"content-length: %d\r\n\r\n%b" % (len(SMUGGLED), SMUGGLED),
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    ],
    ids=["length", "chunks"],
)
async def test_the_body_of_who_asks_for_http_2_is_a_body(framed: bytes) -> None:
    """As Java's client asks with its first request; the parser takes what follows for no HTTP at all."""
    sent = b"POST /a HTTP/1.1\r\n" + UPGRADE + framed + GET
    for cut in range(1, len(sent)):
        app = App()
        async with connected(app) as wire:
            await wire.feed(sent[:cut], sent[cut:])
            assert wire.replies() == [(200, SMUGGLED), (200, b"")], sent[:cut]
            assert [scope["path"] for scope in app.scopes] == ["/a", "/"] and not wire.closed


async def test_many_that_ask_for_another_protocol_are_all_answered() -> None:
    app = App()
    async with connected(app) as wire:
        await wire.feed(b"".join(b"GET /%d HTTP/1.1\r\n%b\r\n" % (n, UPGRADE) for n in range(9)) + GET)
        await wire.until(lambda: len(wire.replies()) == 10)
        assert [scope["path"] for scope in app.scopes] == [*(f"/{n}" for n in range(9)), "/"]
        assert all(name != b"upgrade" for scope in app.scopes for name, _ in scope["headers"])


async def test_a_tunnel_is_refused_and_nothing_in_it_is_read() -> None:
    app = App()
    async with connected(app) as wire:
        await wire.feed(b"CONNECT evil:443 HTTP/1.1\r\nhost: x\r\n\r\n" + GET, GET)
        assert [status for status, _ in wire.replies()] == [400] and not app.scopes and wire.ended


# Headers -------------------------------------------------------------------------------------------------------------


async def test_what_comes_after_a_body_is_no_header() -> None:
    app = App()
    async with connected(app) as wire:
        head = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        await wire.feed(head + b"1\r\na\r\n0\r\nauthorization: Bearer x\r\nexpect: 100-continue\r\n\r\n" + GET)
        assert wire.replies() == [(200, b"a"), (200, b"")]
        assert [scope["headers"] for scope in app.scopes] == [[(b"transfer-encoding", b"chunked")], [(b"host", b"x")]]


async def test_who_speaks_http_1_0_is_not_told_to_go_on() -> None:
    async with connected(App()) as wire:
        head = b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        written = await wire.feed(head, b"{}")
        assert written.startswith(b"HTTP/1.1 200 ") and wire.closed


# Silence -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"ab"])
async def test_a_body_that_stops_is_not_waited_for_forever(sent: bytes) -> None:
    app = App()
    async with connected(app, keep_s=0.02) as wire:
        await wire.feed(b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n", *([sent] if sent else []))
        await wire.until(lambda: app.left == 1)
        assert wire.written.startswith(b"HTTP/1.1 408 ") and b'"body_too_slow"' in wire.written and wire.ended


async def test_who_waits_for_a_slow_answer_is_not_silent() -> None:
    app = App()
    async with connected(app, keep_s=0.01) as wire:
        await wire.feed(b"POST /late HTTP/1.1\r\ncontent-length: 2\r\n\r\n", b"{}")
        await asyncio.sleep(0.05)
        app.go.set()
        await wire.until(lambda: wire.written.startswith(b"HTTP/1.1 200 "))


@pytest.mark.parametrize(
    ("request_", "later"),
    [
        (GET, b"\r\n"),
        (b"POST /early HTTP/1.1\r\ncontent-length: 4\r\n\r\n", b"ab"),
        (b"POST /early HTTP/1.1\r\ncontent-length: 4\r\n\r\n", b"abcd"),
    ],
    ids=["an empty line", "some of an unwanted body", "an unwanted body"],
)
async def test_who_asks_for_nothing_more_is_not_kept_forever(request_: bytes, later: bytes) -> None:
    async with connected(App(), keep_s=0.02) as wire:
        await wire.feed(request_, later)
        await wire.until(lambda: wire.closed or wire.ended)


async def test_who_reads_nothing_while_more_waits_is_left() -> None:
    async with connected(App(), keep_s=0.02) as wire:
        await wire.feed(b"GET /late HTTP/1.1\r\n\r\n")
        wire.unread = [80_000, *[70_000] * 2, *[60_000] * 2, 60_000]
        wire.connection.pause_writing()
        await wire.until(lambda: wire.aborted)
        assert wire.unread == [60_000], "it was read, if slowly"


async def test_who_reads_what_waits_is_kept() -> None:
    async with connected(App(), keep_s=0.01) as wire:
        await wire.feed(b"GET /late HTTP/1.1\r\n\r\n")
        wire.unread = [80_000]
        wire.connection.pause_writing()
        wire.connection.resume_writing()
        await asyncio.sleep(0.03)
        assert not wire.closed


# The end -------------------------------------------------------------------------------------------------------------


async def test_who_still_sends_can_read_its_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed at once, the connection would be reset under it."""
    monkeypatch.setattr(farewell, "_LINGER_S", 0.02)
    app = App()
    async with connected(app) as wire:
        head = b"POST /early HTTP/1.1\r\nconnection: close\r\ncontent-length: 99999999\r\n\r\n"
        await wire.feed(head, *[b"x" * 65536] * 40)
        assert wire.replies() == [(401, b"")] and wire.ended and wire.reading and not wire.closed
        wire.unread = [7, 5, 0]
        await wire.until(lambda: wire.closed)
        assert wire.unread == [0], "it was still reading"
        assert app.state.total_requests == 1


async def test_nonsense_without_end_is_not_listened_to() -> None:
    async with connected(App()) as wire:
        await wire.feed(b"NONSENSE\r\n\r\n", *[b"x" * 65536] * 15)
        assert wire.ended and not wire.closed
        await wire.feed(b"x" * 65536, b"x" * 65536)
        assert wire.aborted


# One after the other -------------------------------------------------------------------------------------------------


async def test_what_comes_before_nonsense_is_answered() -> None:
    app = App()
    async with connected(app) as wire:
        assert not await wire.feed(
            b"POST /late HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}" + GET + b"nonsense\r\n", b"x\r\n"
        )
        app.go.set()
        await wire.settle()
        assert wire.replies() == [(200, b"{}"), (200, b"")] and wire.closed


async def test_who_leaves_is_seen_to_though_more_was_sent_ahead() -> None:
    async with connected(App()) as wire:
        await wire.feed(b"GET /late HTTP/1.1\r\n\r\n", GET)
        assert wire.reading


async def test_a_flood_of_requests_is_bounded() -> None:
    app = App()
    async with connected(app) as wire:
        await wire.feed(b"GET /late HTTP/1.1\r\n\r\n" + GET * 17)
        assert not wire.reading
        await wire.feed(GET * 9000)
        app.go.set()
        await wire.until(lambda: wire.closed)
        replies = wire.replies()
        assert len(replies) == len(app.scopes) < 300 and wire.written.count(b"connection: close") == 1


REQUESTS = {
    "get": GET,
    "post": b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nT: u\r\n\r\n",
    "upgrade": b"POST /c HTTP/1.1\r\n" + UPGRADE + b"content-length: 5\r\n\r\nhello",
    "expect": b"POST /d HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
    "empty lines": b"\r\n\r\n" + GET,
    "early": b"POST /early HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc",
    "head": b"HEAD /e HTTP/1.1\r\n\r\n",
}


@given(
    st.lists(st.sampled_from(sorted(REQUESTS)), max_size=6), st.lists(st.integers(1, 400), max_size=8), st.booleans()
)
def test_requests_are_the_same_however_they_are_cut(names: list[str], cuts: list[int], nonsense: bool) -> None:
    sent = b"".join(REQUESTS[name] for name in names) + (b"nonsense\r\n" if nonsense else b"")
    edges = sorted({0, *(cut for cut in cuts if cut < len(sent)), len(sent)})

    async def test() -> None:
        app = App()
        async with connected(app) as wire:
            for begin, end in pairwise(edges):
                if not wire.closed:  # as it may be within the nonsense
                    await wire.feed(sent[begin:end])
            await wire.until(lambda: app.state.total_requests == len(names))
            said, refused, told = map(wire.written.count, (b"HTTP/1.1 ", b"HTTP/1.1 400 ", b"HTTP/1.1 100 "))
            assert said - refused - told == len(names) and refused <= nonsense
            paths = [REQUESTS[name].split()[1].decode() for name in names]
            assert [scope["path"] for scope in app.scopes] == paths
            assert (wire.closed or wire.ended) is nonsense

    asyncio.run(test())
