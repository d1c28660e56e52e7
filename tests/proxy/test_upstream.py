"""The client towards engines: replies however they are cut, connections kept, replaced and ended."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream import Dropped, Unreachable, Upstream

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello world"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH


class Engine:
    """A server on a real socket; `answers` are written one per request, `seen` is what came, `connections` how many."""

    def __init__(self, *answers: bytes | list[bytes], then_close: bool = False) -> None:
        self.answers, self.then_close = list(answers), then_close
        self.seen: list[bytes] = []
        self.connections = 0
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
                )
                self.seen.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                for piece in answer if isinstance(answer, list) else [answer]:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self.then_close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):
            pass
        finally:
            writer.close()
            self.ended.set()


@asynccontextmanager
async def running(engine: Engine, connect_s: float = 5.0, keep_s: float = 3.0) -> AsyncIterator[Upstream]:
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream = Upstream(f"http://127.0.0.1:{port}", connect_s, keep_s)
    try:
        yield upstream
    finally:
        upstream.close()
        server.close()
        await server.wait_closed()


async def ask(upstream: Upstream, body: bytes = b"{}") -> bytes:
    reply = await upstream.send(b"POST", b"/v1/x?a=b", [(b"x-a", b"1")], body)
    try:
        assert reply.status == 200
        return await reply.rest()
    finally:
        upstream.release(reply)


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, TO_THE_END, CONTINUED])
@given(cuts=st.lists(st.integers(1, 70), max_size=6))
def test_a_reply_is_read_however_it_is_cut(answer: bytes, cuts: list[int]) -> None:
    edges = sorted({0, *(cut for cut in cuts if cut < len(answer)), len(answer)})
    pieces = [answer[a:b] for a, b in pairwise(edges)]

    async def scenario() -> None:
        engine = Engine(pieces, then_close=answer is TO_THE_END)
        async with running(engine) as upstream:
            assert await ask(upstream) == b"hello world"

    asyncio.run(scenario())


async def test_what_arrives_is_what_was_sent() -> None:
    engine = Engine(LENGTH)
    async with running(engine) as upstream:
        await ask(upstream, b'{"a": 1}')
    head, _, body = engine.seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x?a=b HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nx-a: 1" in head and b"\r\ncontent-length: 8" in head and body == b'{"a": 1}'


async def test_a_connection_carries_one_reply_after_the_other() -> None:
    engine = Engine(LENGTH, CHUNKED, LENGTH)
    async with running(engine) as upstream:
        for _ in range(3):
            assert await ask(upstream) == b"hello world"
    assert engine.connections == 1


async def test_a_connection_that_was_idle_for_long_is_not_used_again() -> None:
    engine = Engine(LENGTH, LENGTH)
    async with running(engine, keep_s=0.0) as upstream:
        await ask(upstream)
        await asyncio.sleep(0.01)
        await ask(upstream)
    assert engine.connections == 2


async def test_a_kept_connection_that_the_engine_closed_is_replaced() -> None:
    engine = Engine(LENGTH, LENGTH, then_close=True)
    async with running(engine) as upstream:
        assert await ask(upstream) == b"hello world"
        assert await ask(upstream) == b"hello world"
    assert engine.connections == 2 and len(engine.seen) == 2


async def test_an_engine_that_worked_and_then_broke_off_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream._RACE_S", -3.0)  # with the 3 s that a connection is kept: at once is late
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"{}"))
        writer.write(LENGTH)
        seen.append(await reader.readuntil(b"{}"))
        writer.close()

    async with answering(serve) as upstream:
        await ask(upstream)
        with pytest.raises(Dropped):
            await ask(upstream)
    assert len(seen) == 2


async def test_a_request_is_never_repeated_on_a_fresh_connection() -> None:
    engine = Engine(b"", then_close=True)
    async with running(engine) as upstream:
        with pytest.raises(Dropped):
            await ask(upstream)
    assert len(engine.seen) == 1


@pytest.mark.parametrize("answer", [LENGTH[:-3], CHUNKED[:-9], LENGTH[:20]])
async def test_a_reply_that_breaks_off_is_an_error(answer: bytes) -> None:
    async with running(Engine(answer, then_close=True)) as upstream:
        with pytest.raises(Dropped):
            await ask(upstream)


async def test_what_is_no_http_is_an_error() -> None:
    async with running(Engine(b"SSH-2.0-OpenSSH\r\n\r\n")) as upstream:
        with pytest.raises(Dropped, match="not HTTP"):
            await ask(upstream)


@pytest.mark.parametrize("line", ["101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c", "999 Request denied"])
async def test_a_status_that_cannot_be_passed_on_is_an_error(line: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(f"HTTP/1.1 {line}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    async with running(engine) as upstream:
        with pytest.raises(Dropped):
            await ask(upstream)
        await asyncio.wait_for(engine.ended.wait(), 5)
    assert not caplog.records


async def test_nobody_there() -> None:
    upstream = Upstream("http://127.0.0.1:1", connect_s=2.0)
    with pytest.raises(Unreachable):
        await ask(upstream)


async def test_a_reply_that_is_let_go_early_ends_the_connection() -> None:
    engine = Engine([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", *[b""] * 3])
    async with running(engine) as upstream:
        reply = await upstream.send(b"POST", b"/", [], b"{}")
        assert await reply.next() == b"hello"
        upstream.release(reply)
        async with asyncio.timeout(5):
            await engine.ended.wait()


async def test_what_belongs_to_the_connection_goes_no_further() -> None:
    named = b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length"
    async with running(
        Engine(LENGTH.replace(b"Content-Length", named), LENGTH.replace(b"Content-T", b"X-Hop"))
    ) as upstream:
        reply = await upstream.send(b"POST", b"/", [], b"{}")
        assert [header for header in reply.headers if header[0] in (b"x-hop", b"set-cookie")] == [
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
        ]
        await reply.rest()
        upstream.release(reply)
        again = await upstream.send(b"POST", b"/", [], b"{}")
        assert again is reply and again.headers[0] == (b"x-hopype", b"text/plain")
        upstream.release(again)


async def test_what_comes_after_a_reply_is_none_of_it() -> None:
    trailers = CHUNKED.removesuffix(b"\r\n") + b"X-Key: 1\r\nX-Other: 2\r\n\r\n"
    async with running(Engine(trailers, LENGTH + LENGTH, LENGTH)) as upstream:
        for _ in range(3):
            reply = await upstream.send(b"POST", b"/", [], b"{}")
            assert await reply.rest() == b"hello world"
            assert all(not name.startswith(b"x-") for name, _ in reply.headers)
            assert [name for name, _ in reply.headers].count(b"content-type") <= 1
            upstream.release(reply)


@asynccontextmanager
async def answering(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Upstream]:
    """An upstream whose engine is `serve`, each time for one request on a connection that it then holds open."""
    held = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)
        await held.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    upstream = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", 5.0)
    try:
        yield upstream
    finally:
        held.set()
        upstream.close()
        server.close()


async def test_an_engine_that_answers_before_it_has_read_is_not_asked_on_the_same_connection() -> None:
    """It has not said whether it will read the rest, and a request behind it might wait forever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(LENGTH)

    async with answering(serve) as upstream:
        for _ in range(2):
            assert await ask(upstream, b"x" * 2**24) == b"hello world"
            assert not upstream._idle
        assert await ask(upstream, b"{}") == b"hello world"
        assert len(upstream._idle) == 1


@pytest.mark.parametrize("unasked", [b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 40"])
async def test_a_connection_on_which_something_came_unasked_is_not_used_again(unasked: bytes) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(LENGTH)
        writers.append(writer)

    async with answering(serve) as upstream:
        await ask(upstream)
        writers[0].write(unasked)
        async with asyncio.timeout(5):
            while not upstream._idle[0].closed:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        (before,) = upstream._idle
        assert await ask(upstream) == b"hello world" and len(writers) == 2
        assert before._transport is None or before._transport.is_closing(), "it is not left open either"


async def test_a_large_body_for_a_slow_reader_arrives_whole() -> None:
    body = bytes(range(256)) * 40_000
    engine = Engine([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body], LENGTH)
    async with running(engine) as upstream:
        reply = await upstream.send(b"POST", b"/", [], b"{}")
        await asyncio.sleep(0.05)
        assert await reply.rest() == body
        upstream.release(reply)
        assert await ask(upstream) == b"hello world"
    assert engine.connections == 1


async def test_a_connection_that_is_lost_leaves_nothing_to_the_collector() -> None:
    engine = Engine(LENGTH, then_close=True)
    async with running(engine) as upstream:
        await ask(upstream)
        (connection,) = map(weakref.ref, upstream._idle)
        await engine.ended.wait()
        gc.disable()
        try:
            async with asyncio.timeout(5):
                while upstream._kept() is not None or connection() is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        finally:
            gc.enable()
