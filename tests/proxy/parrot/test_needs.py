"""Named calls of a run, sent at once: Parrot gets the graph, the engine the texts, and failures go no further."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from proxy.config import Limits
from proxy.energy.records import Outcome
from proxy.nodes.ask import Ask
from proxy.nodes.hold import Call, NodeCall, Nodes
from proxy.nodes.placeholders import named
from proxy.refusal import Refusal
from proxy.upstream import Dropped


class Run:
    """What `forward` does for the named calls of one run."""

    def __init__(self, world: Any, **limits: Any) -> None:
        self.world, self.nodes = world, Nodes(Limits(**limits))
        self.run: Any = SimpleNamespace(uid="r1", state="open", tenant="t", run="r1")

    async def call(self, name: str, text: str, **more: Any) -> str:
        """The answer's text. Raises Refusal, and what the upstream raises."""
        call = self.enter(name, text)
        outcome, code = Outcome.FAILED, 502
        try:
            code, said = await self.attempt(call, text, **more)
            outcome = Outcome.OK if code < 400 else Outcome.ERROR
            return said
        except asyncio.CancelledError:
            outcome = Outcome.CANCELLED
            raise
        except Refusal as refusal:
            code, outcome = refusal.status, Outcome.REFUSED
            raise
        finally:
            self.nodes.leave(call, code, outcome)

    def enter(self, name: str, text: str) -> Call:
        asked = Ask(name, named({"messages": [{"content": text}]}), None)
        return self.nodes.enter(self.run, asked, asyncio.get_running_loop().time() + 5, holds=False)

    async def attempt(self, call: Call, text: str, **more: Any) -> tuple[int, str]:
        """Status and text. Raises Refusal, and what the upstream raises."""
        node = NodeCall(self.nodes, call)
        for need in node.needs:
            await node.producer(need)
        body: Any = {"model": "parrot/m", "messages": [{"role": "user", "content": text}], **more}
        bound = self.world.upstream.bind(SimpleNamespace(run=self.run), None)
        reply = await bound.send_node(node, b"POST", b"/v1/chat/completions", [], orjson.dumps(body))
        content = await reply.rest()
        if more.get("stream") is True:
            for frame in content.split(b"\n\n"):
                call.answer.frame(frame)
            return reply.status, call.answer.text or ""
        said = orjson.loads(content)
        call.answer.whole(said)
        return reply.status, said["choices"][0]["message"]["content"] if reply.status < 400 else str(reply.status)

    async def all(self, calls: Sequence[tuple[str, str]]) -> list[Any]:
        return await asyncio.gather(*(self.call(*one) for one in calls), return_exceptions=True)


def seen(world: Any) -> list[str]:
    return [body["messages"][-1]["content"] for _, body in world.behind.seen]


async def test_parrot_gets_variables_and_the_engine_texts(world: Any) -> None:
    answers = await Run(world).all([("b", "then {{node:a}}, and {{node:a}}"), ("a", "one")])
    assert answers == ["You said: then You said: one, and You said: one", "You said: one"]
    a, b = sorted(world.core.submitted, key=lambda call: len(call.payload["parameters"]))
    made_by = [one.get("var_id") for one in b.payload["parameters"] if not one["is_output"]]
    assert made_by.count(a.out.id) == 2, "it is Parrot that feeds the one to the other"
    assert "node:" not in str(b.payload)
    assert seen(world) == ["one", "then You said: one, and You said: one"]


async def test_a_map_reduce_in_any_order(world: Any) -> None:
    maps = [(f"m{n}", f"part {n}") for n in range(4)]
    merge = ("merge", " ".join(f"{{{{node:m{n}}}}}" for n in range(4)))
    answers = await Run(world).all([merge, *maps])
    assert answers[0] == "You said: " + " ".join(f"You said: part {n}" for n in range(4))
    assert len(world.core.sessions) == 1 and world.core.log[-1].payload["parameters"][-1]["is_output"]


async def test_a_failed_producer_is_its_consumers_424_and_no_engine_call(world: Any) -> None:
    world.behind.status = 500
    calls = [("c", "{{node:b}}"), ("b", "{{node:a}}"), ("a", "one"), ("other", "free")]
    c, b, a, _ = await Run(world).all(calls)
    assert isinstance(a, ConnectionError)
    assert [(one.status, one.code) for one in (b, c)] == [(424, "producer_failed")] * 2
    assert sorted(seen(world)) == ["free", "one"] and world.core.dead is None
    await asyncio.wait_for(world.engine._calls.none_owed.wait(), 5)
    world.behind.status = 200
    assert await Run(world).call("again", "x") == "You said: x"


async def test_who_follows_from_a_producer_that_another_engine_answers_is_given_that_text(world: Any) -> None:
    run = Run(world)
    producer = run.enter("a", "one")
    world.behind.status, world.behind.hold = 500, asyncio.Event()
    first = asyncio.create_task(run.attempt(producer, "one"))
    b = asyncio.create_task(run.call("b", "then {{node:a}}"))
    c = asyncio.create_task(run.call("c", "last {{node:b}}"))
    async with asyncio.timeout(5):
        await world.behind.came.wait()
        while len(world.core.submitted) < 3:  # noqa: ASYNC110  (it looks every few milliseconds)
            await asyncio.sleep(0.005)
    world.behind.hold.set()
    with pytest.raises(Dropped, match="answered 500"):
        await first
    NodeCall(run.nodes, producer).withdrawn()
    world.behind.status = 200
    await asyncio.wait([b, c], timeout=0.1)
    assert not b.done() and not c.done(), "another engine may answer yet"
    producer.answer.whole({"choices": [{"message": {"content": "from elsewhere"}}]})
    run.nodes.leave(producer, 200, Outcome.OK)
    assert await asyncio.wait_for(asyncio.gather(b, c), 5) == [
        "You said: then from elsewhere",
        "You said: last You said: then from elsewhere",
    ]
    assert seen(world)[0] == "one" and len(world.behind.seen) == 3


async def test_the_engines_own_no_is_a_424_for_who_follows(world: Any) -> None:
    world.behind.status = 400
    b, a = await Run(world).all([("b", "{{node:a}}"), ("a", "one")])
    assert a == "400" and b.status == 424 and seen(world) == ["one"]


@pytest.mark.parametrize("says", ["reasoning", "reasoning_content", "refusal"])
async def test_an_answer_without_a_text_is_its_consumers_424(world: Any, says: str) -> None:
    run, world.behind.says = Run(world), says
    b, a = await asyncio.gather(run.call("b", "{{node:a}}"), run.call("a", "one", stream=True), return_exceptions=True)
    assert a == "" and isinstance(b, Refusal) and (b.status, b.code) == (424, "node_without_text")
    assert seen(world) == ["one"]


async def test_a_producer_whose_client_left_is_lost_to_its_consumers(world: Any) -> None:
    run = Run(world)
    world.behind.hold = asyncio.Event()
    a = asyncio.create_task(run.call("a", "one"))
    b = asyncio.create_task(run.call("b", "{{node:a}}"))
    await asyncio.wait_for(world.behind.came.wait(), 5)
    a.cancel()
    with pytest.raises(Refusal, match="its client left"):
        await b
    assert seen(world) == ["one"] and world.core.dead is None


async def test_a_consumer_that_came_later_is_given_the_text(world: Any) -> None:
    run = Run(world)
    await run.call("a", "one")
    assert await run.call("b", "{{node:a}}") == "You said: You said: one"
    assert not any("var_id" in one for call in world.core.submitted for one in call.payload["parameters"])


async def test_a_session_made_anew_takes_the_texts_of_the_old_ones_nodes(world: Any) -> None:
    run = Run(world)
    world.behind.hold = asyncio.Event()
    a = asyncio.create_task(run.call("a", "one"))
    await asyncio.wait_for(world.behind.came.wait(), 5)
    use = world.upstream.sessions._uses["r1"]
    world.upstream.sessions.forget(use)
    b = asyncio.create_task(run.call("b", "{{node:a}}"))
    await asyncio.sleep(0.05)
    world.behind.hold.set()
    assert await asyncio.gather(a, b) == ["You said: one", "You said: You said: one"]
    assert {call.session for call in world.core.submitted} == {0, 1}


async def test_what_is_escaped_and_what_an_answer_says_is_text(world: Any) -> None:
    b, _ = await Run(world).all([("b", r"\{{node:z}} {{node:a}}"), ("a", r"\{{node:b}}")])
    assert b == "You said: {{node:z}} You said: {{node:b}}"


async def test_a_body_that_its_nodes_make_too_large_is_refused(world: Any) -> None:
    run = Run(world, body_bytes=1024)
    b, a = await run.all([("b", "{{node:a}}" * 40), ("a", "x" * 100)])
    assert a == "You said: " + "x" * 100
    assert (b.status, b.code) == (413, "body_too_large") and len(world.behind.seen) == 1 and world.core.dead is None


async def test_parrots_own_engine_gets_the_graph_too(make_world: Any) -> None:
    world = await make_world(builtin=True, models=("v7b",))
    run = Run(world)
    b, a = await asyncio.gather(
        run.call("b", "{{node:a}}", model="v7b", max_tokens=2), run.call("a", "one", model="v7b", max_tokens=3)
    )
    assert (a, b) == ("word word word ", "word word ")
    consumer = next(call for call in world.core.submitted if call.sampling["max_gen_length"] == 2)
    assert any(one.get("var_id") for one in consumer.payload["parameters"] if not one["is_output"])
    later, first = await asyncio.gather(
        run.call("d", "{{node:c}}", model="v7b"), run.call("c", "one", model="v7b", max_tokens=3, stop=["rd"])
    )
    assert first == "wo" and later.startswith("word")
    values = [one.get("value") for one in world.core.submitted[-1].payload["parameters"]]
    assert values == ["user: ", "wo", "\n\n", "assistant: ", None], "what was cut is fed as a text"
