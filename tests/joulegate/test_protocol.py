"""Connections of clients as our server keeps and ends them, on real sockets and the loop that serves."""

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from joulegate import protocol
from joulegate.protocol import Connection, bounded
from proxy.config import Limits

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
Receive = Callable[[], Coroutine[Any, Any, Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass
class Server:
    """Answers every request with `answer` once `go` is set; `faults` are what the loop was left with."""

    answer: bytes = b"ok"
    limits: Limits = field(default_factory=Limits)
    ending: bool = False
    keep_s: float = 5.0
    takes: bool = True  # whether it takes the body
    asked: int = 0
    paths: list[str] = field(default_factory=list)
    left: int = 0
    port: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    state: ServerState = field(default_factory=ServerState)
    faults: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.asked += 1
        self.paths.append(scope["path"])
        if not self.takes:
            await self.go.wait()
        await receive()
        waiting = [asyncio.create_task(one) for one in (self.go.wait(), receive())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        self.left += not self.go.is_set()
        if self.go.is_set():
            length = [(b"content-length", b"%d" % len(self.answer))]
            await send({"type": "http.response.start", "status": 200, "headers": length})
            await send({"type": "http.response.body", "body": self.answer})

    @property
    def connections(self) -> list[Connection]:
        return cast(list[Connection], [*self.state.connections])

    async def until(self, probe: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not probe():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def connect(self, *sent: bytes) -> socket.socket:
        """A client that has sent all this, and reads only when it is asked to."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", self.port))
        for data in sent:
            await loop.sock_sendall(client, data)
        return client


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, fault: server.faults.append(fault))
    config = uvicorn.Config(server, ws="none", lifespan="off", log_config=None)
    config.timeout_keep_alive = cast(Any, server.keep_s)
    config.load()
    kind = bounded(lambda: server.limits, lambda: server.ending)
    listener = await loop.create_server(lambda: kind(config, server.state, {}), "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for connection in [*server.state.connections]:
            connection.transport.abort()


async def whole(client: socket.socket) -> bytes:
    parts: list[bytes] = []
    async with asyncio.timeout(10):
        while part := await asyncio.get_running_loop().sock_recv(client, 65536):
            parts.append(part)
    return b"".join(parts)


def on_our_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(test())


def test_who_sent_two_requests_at_once_and_leaves_is_gone_for_both(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(Server()) as server:
            client = await server.connect(GET + GET)
            await server.until(lambda: server.asked == 1)
            client.close()
            await server.until(lambda: not server.state.connections and not server.state.tasks)
            await asyncio.sleep(0)
            assert (server.asked, server.left, server.faults) == (1, 1, [])

    on_our_loop(test)
    assert not caplog.records


def test_a_connection_that_is_lost_leaves_nothing_to_the_collector() -> None:
    async def test() -> None:
        async with serving(Server()) as server:
            server.go.set()
            client = await server.connect(GET)
            await server.until(lambda: server.state.total_requests == 1)
            (connection,) = map(weakref.ref, server.connections)
            client.close()
            gc.disable()
            try:
                await server.until(lambda: connection() is None)
            finally:
                gc.enable()

    on_our_loop(test)


def test_what_a_client_is_slow_to_read_is_not_cut_off_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FAREWELL_S", "_LAST_CALL_S"):
        monkeypatch.setattr(protocol, name, 0.01)

    async def test() -> None:
        async with serving(Server(answer=b"x" * 2**23)) as server:
            server.go.set()
            client = await server.connect(GET)
            await server.until(lambda: server.state.total_requests == 1)
            for connection in [*server.state.connections]:
                connection.shutdown()
            await asyncio.sleep(0.1)
            assert (await whole(client)).endswith(b"\r\n\r\n" + b"x" * 2**23)
            client.close()

    on_our_loop(test)


def test_who_reads_nothing_more_does_not_keep_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_STUCK_S", "_LAST_CALL_S"):
        monkeypatch.setattr(protocol, name, 0.01)

    async def test() -> None:
        async with serving(Server(answer=b"x" * 2**23)) as server:
            server.go.set()
            client = await server.connect(GET)
            await server.until(lambda: server.state.total_requests == 1)
            for connection in [*server.state.connections]:
                connection.shutdown()
            await server.until(lambda: not server.state.connections)
            client.close()

    on_our_loop(test)


def test_a_connection_made_while_the_server_ends_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_FIRST_CALL_S", 0.01)

    async def test() -> None:
        async with serving(Server(ending=True)) as server:
            server.go.set()
            client = await server.connect(GET)
            assert b"\r\nconnection: close\r\n" in await whole(client)
            client.close()
            silent = await server.connect()
            assert await whole(silent) == b""
            silent.close()

    on_our_loop(test)


def test_the_limits_are_those_of_now() -> None:
    async def test() -> None:
        async with serving(Server(limits=Limits(header_bytes=1024))) as server:
            server.go.set()
            long = b"GET / HTTP/1.1\r\nconnection: close\r\nx-long: " + b"x" * 2000
            refused = await server.connect(long)
            assert (await whole(refused)).startswith(b"HTTP/1.1 431")
            refused.close()
            server.limits = Limits(header_bytes=4096)
            taken = await server.connect(long)
            await asyncio.sleep(0.05)  # so that it is read in two pieces
            await asyncio.get_running_loop().sock_sendall(taken, b"\r\n\r\n")
            assert (await whole(taken)).startswith(b"HTTP/1.1 200")
            taken.close()
            server.limits = Limits(header_seconds=0.01)
            slow = await server.connect(b"GET /")
            assert (await whole(slow)).startswith(b"HTTP/1.1 408")
            slow.close()

    on_our_loop(test)


def test_requests_sent_ahead_are_answered_in_their_order() -> None:
    async def test() -> None:
        async with serving(Server()) as server:
            client = await server.connect(
                b"".join(b"POST /%d HTTP/1.1\r\ncontent-length: 1\r\n\r\nx" % n for n in range(3))
            )
            await server.until(lambda: server.asked == 1)
            server.go.set()
            await server.until(lambda: server.state.total_requests == 3)
            client.shutdown(socket.SHUT_WR)
            assert server.paths == ["/0", "/1", "/2"] and (await whole(client)).count(b"HTTP/1.1 200") == 3
            client.close()

    on_our_loop(test)


def test_what_is_not_http_is_said_to_be_none() -> None:
    async def test() -> None:
        async with serving(Server()) as server:
            client = await server.connect(b"NONSENSE\r\n\r\n")
            answer = await whole(client)
            assert answer.startswith(b"HTTP/1.1 400 ") and b'"invalid_http"' in answer
            client.close()
            server.go.set()
            answered = await server.connect(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n")
            await server.until(lambda: server.state.total_requests == 1)
            await asyncio.get_running_loop().sock_sendall(answered, b"zz\r\n")
            assert (await whole(answered)).count(b"HTTP/1.1 ") == 1, "a request has one reply"
            answered.close()

    on_our_loop(test)


def test_a_body_that_nobody_takes_is_not_read_on() -> None:
    async def test() -> None:
        async with serving(Server(takes=False)) as server:
            size = 2**26
            client = await server.connect(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % size)
            sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, b"x" * size))
            await server.until(lambda: any(c._read_paused for c in server.connections))
            await asyncio.sleep(0.05)
            (connection,) = server.connections
            assert connection._exchange is not None and connection._exchange.buffered < 2**20 and not sending.done()
            sending.cancel()
            client.close()
            connection.transport.abort()

    on_our_loop(test)


def test_a_connection_is_closed_when_it_was_quiet_for_its_time() -> None:
    async def test() -> None:
        async with serving(Server(keep_s=0.05)) as server:
            server.go.set()
            client = await server.connect(GET)
            assert (await whole(client)).endswith(b"ok")
            client.close()
            server.go.clear()
            busy = await server.connect(GET)
            await server.until(lambda: server.asked == 2)
            await asyncio.sleep(0.15)
            server.go.set()
            assert (await whole(busy)).endswith(b"ok"), "whoever waits for an answer is not quiet"
            busy.close()

    on_our_loop(test)
