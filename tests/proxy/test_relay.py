"""One attempt's bytes, from an engine that says what a test lets it say."""

import asyncio
from typing import Any

import orjson
import pytest

from proxy.client import Broken, Client, Message
from proxy.config import EngineConfig, Limits
from proxy.energy.records import Outcome
from proxy.engines.openai import OpenAI
from proxy.gate import Gate
from proxy.nodes.answer import Answer
from proxy.relay import Relay
from proxy.route import Lane
from proxy.upstream import Dropped, Header

DONE = b"data: [DONE]\n\n"


class Engine:
    """Its connections, and the one reply on them: pieces of a stream, and its end, or nothing more (`ends` unset), or a
    connection that breaks."""

    closed, connect_s, usage_by, counted, status = False, 5.0, "engine", False, 200

    def __init__(self, *pieces: bytes, ends: bool = True, breaks: bool = False) -> None:
        self.headers: list[Header] = [(b"content-type", b"text/event-stream")]
        self._pieces, self._ends, self._breaks = [*pieces], ends, breaks
        self.silent = asyncio.Event()  # it has said all that it says

    async def send(self, method: bytes, target: bytes, headers: list[Header], body: bytes) -> "Engine":
        return self

    async def next(self) -> bytes:
        if not self._pieces and not self._ends:
            self.silent.set()
            await asyncio.Event().wait()
        if not self._pieces and self._breaks:
            raise Dropped("it closed the connection")
        return self._pieces.pop(0) if self._pieces else b""

    async def rest(self) -> bytes:
        raise NotImplementedError

    def release(self, reply: object) -> None: ...

    def close(self) -> None: ...


def relay(engine: Engine, answer: Answer | None = None) -> Relay:
    async def receive() -> Message:
        raise NotImplementedError

    async def send(message: Message) -> None: ...

    client = Client({"method": "POST", "path": "/v1/chat/completions", "headers": []}, receive, send)
    adapter = OpenAI(EngineConfig(name="e1", kind="openai", url="http://127.0.0.1:9"))
    made = Relay(client, Lane(adapter, engine, Gate(1)), Limits(), None, True, False, None)
    made.answer = answer
    return made


def run(made: Relay) -> "asyncio.Task[tuple[int, Outcome]]":
    async def go() -> tuple[int, Outcome]:
        task = asyncio.current_task()
        assert task is not None
        return await made.run(b"{}", [], task, asyncio.get_running_loop().time() + 60)

    return asyncio.create_task(go())


def chunk(text: str, index: int = 0, finish: str | None = None) -> bytes:
    choice: dict[str, Any] = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"


ERROR = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'


@pytest.mark.parametrize(
    ("last", "outcome"), [(chunk("", finish="stop"), Outcome.OK), (ERROR, Outcome.FAILED)], ids=["well", "error"]
)
async def test_a_client_that_leaves_after_the_last_word_has_what_the_engine_said(last: bytes, outcome: Outcome) -> None:
    engine = Engine(chunk("half"), last, DONE, ends=False)
    made = relay(engine)
    task = run(made)
    await engine.silent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.result == (200, outcome)


async def test_an_engine_that_breaks_off_after_its_last_word_has_said_all() -> None:
    assert await run(relay(Engine(chunk("half"), chunk("", finish="stop"), DONE, breaks=True))) == (200, Outcome.OK)
    with pytest.raises(Broken, match="it closed the connection"):
        await run(relay(Engine(chunk("half"), breaks=True)))


async def test_a_text_for_others_is_whole_when_its_own_choice_is() -> None:
    first, second = Answer(), Answer()
    cut = [chunk("hal"), chunk("other", 1), chunk("", 1, "stop")]
    assert await run(relay(Engine(*cut))) == (200, Outcome.OK), "nobody is given it"
    with pytest.raises(Broken, match="before its answer was complete"):
        await run(relay(Engine(*cut), first))
    whole = [*cut, chunk("f", finish="length")]
    assert await run(relay(Engine(*whole), second)) == (200, Outcome.OK) and second.text == "half"
    assert await run(relay(Engine(*cut, DONE), Answer())) == (200, Outcome.OK)
