"""One request and its reply, without a connection: what the application is given, and what it makes of the line."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from joulegate.exchange import Exchange, Header

DATE = (b"date", b"today")
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Line:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.written = b""
        self.write_paused = False
        self.reading = 0
        self.awaited = 0
        self.closed = False
        self.replies = 0
        self.room = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.written += data

    write_head = write

    async def drain(self) -> None:
        await self.room.wait()

    def resume_reading(self) -> None:
        self.reading += 1

    def await_client(self) -> None:
        self.awaited += 1

    def close(self) -> None:
        self.closed = True

    def answered(self) -> None:
        self.replies += 1


def exchange(line: Line, method: str = "POST", version: str = "1.1", expects: bool = False) -> Exchange:
    return Exchange(line, {"method": method, "http_version": version}, [DATE], True, expects)


async def reply(line: Line, *parts: bytes, status: int = 200, headers: list[Header] | None = None, **how: Any) -> bytes:
    """What is on the line when an application has answered with these parts."""
    one = exchange(line, **how)
    await one.send({"type": "http.response.start", "status": status, "headers": headers or []})
    for number, part in enumerate(parts, start=1):
        await one.send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})
    assert one.complete and line.replies == 1
    return line.written


async def test_a_reply_of_known_length_goes_as_it_is() -> None:
    written = await reply(Line(), b"he", b"llo", headers=[(b"content-length", b"5")])
    assert written == b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 5\r\n\r\nhello"


async def test_another_goes_in_chunks_and_no_chunk_is_empty_but_the_last() -> None:
    head, _, body = (await reply(Line(), b"hello", b"", b"you", b"", status=418)).partition(b"\r\n\r\n")
    assert head == b"HTTP/1.1 418 I'm a Teapot\r\ndate: today\r\ntransfer-encoding: chunked"
    assert body == b"5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n"


async def test_who_speaks_http_1_0_is_told_the_end_by_the_connections() -> None:
    line = Line()
    written = await reply(line, b"hello", version="1.0")
    assert written.endswith(b"\r\nconnection: close\r\n\r\nhello") and line.closed


@pytest.mark.parametrize(("status", "method"), [(204, "POST"), (304, "GET"), (200, "HEAD")])
async def test_what_has_no_body_has_none(status: int, method: str) -> None:
    headers = [(b"content-length", b"5")] if method == "HEAD" else []
    body = b"hello" if method == "HEAD" else b""
    written = await reply(Line(), body, status=status, method=method, headers=headers)
    assert written.endswith(b"\r\n\r\n") and b"chunked" not in written


@pytest.mark.parametrize(("sent", "kept"), [(False, False), (True, True)])
async def test_who_was_not_told_to_go_on_may_or_may_not(sent: bool, kept: bool) -> None:
    """What comes next on the connection is a body or a request: nobody can say, so there is no next."""
    line = Line()
    one = exchange(line, expects=True)
    if sent:
        one.feed(b"hello")
        one.end()
    await one.send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await one.send({"type": "http.response.body"})
    assert (b"\r\nconnection: close" not in line.written) is kept and line.closed is not kept


@pytest.mark.parametrize("parts", [[b"hell"], [b"hello!"], [b"hel", b"lo!"]], ids=["short", "long", "long at last"])
async def test_a_body_of_another_length_than_promised_is_no_reply(parts: list[bytes]) -> None:
    with pytest.raises(RuntimeError, match="content-length"):
        await reply(Line(), *parts, headers=[(b"content-length", b"5")])


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"])
async def test_no_header_holds_another(value: bytes) -> None:
    line = Line()

    async def app(_: Any, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", value)]})

    await exchange(line).run(app)
    assert line.written.startswith(b"HTTP/1.1 500 ") and b"set-cookie" not in line.written and line.closed


async def test_what_an_application_owes_is_said_for_it(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(*_: Any) -> None:
        pass

    async def half(_: Any, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})

    async def twice(_: Any, __: Receive, send: Send) -> None:
        for _ in range(2):
            await half(_, __, send)

    with caplog.at_level(logging.CRITICAL, "joulegate.server"):
        for app, status in ((silent, b"500"), (half, b"200"), (twice, b"200")):
            line = Line()
            await exchange(line).run(app)
            assert line.written.count(b"HTTP/1.1 ") == 1 and line.written[9:12] == status and line.closed


async def test_a_fault_is_logged_without_what_it_stumbled_over(caplog: pytest.LogCaptureFixture) -> None:
    words = "\nERROR ".join(("a client's", "own words"))

    async def app(*_: Any) -> None:
        raise KeyError(words)

    await exchange(Line()).run(app)
    (record,) = caplog.records
    said = logging.Formatter().format(record)
    assert "KeyError" in said and "raise KeyError" in said and "client" not in said and "own words" not in said


async def test_the_body_is_taken_as_it_comes_and_then_the_end_is_waited_for() -> None:
    line = Line()
    one = exchange(line, expects=True)
    first = asyncio.create_task(one.receive())
    await asyncio.sleep(0)
    assert line.written == b"HTTP/1.1 100 Continue\r\n\r\n" and not first.done() and line.awaited == 1
    for part in (b"a", b"b"):
        one.feed(part)
    assert await first == {"type": "http.request", "body": b"ab", "more_body": True}
    assert one.buffered == 0 and line.reading >= 1
    one.feed(b"c")
    one.end()
    assert await one.receive() == {"type": "http.request", "body": b"c", "more_body": False}
    waiting = [asyncio.create_task(one.receive()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting) and line.awaited == 1, "nothing of it is still to come"
    one.leave()
    assert [await task for task in waiting] == [{"type": "http.disconnect"}] * 2
    await one.send({"type": "http.response.start", "status": 200})
    assert line.written == b"HTTP/1.1 100 Continue\r\n\r\n", "nobody is there to read it"


async def test_an_empty_body_is_told_once() -> None:
    one = exchange(Line())
    one.end()
    assert await one.receive() == {"type": "http.request", "body": b"", "more_body": False}
    again = asyncio.create_task(one.receive())
    await asyncio.sleep(0)
    assert not again.done()
    again.cancel()


async def test_who_reads_slowly_is_waited_for() -> None:
    line = Line()
    one = exchange(line)
    line.write_paused = True
    sending = asyncio.create_task(one.send({"type": "http.response.start", "status": 200}))
    await asyncio.sleep(0)
    assert not line.written
    line.room.set()
    await sending
    assert line.written
