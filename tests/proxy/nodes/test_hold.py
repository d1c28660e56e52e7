"""Calls that wait for one another on the event loop, without a gateway around them."""

import asyncio
from typing import Any

import pytest

from proxy.config import Limits
from proxy.energy.receipts import Book, Run
from proxy.energy.records import Outcome
from proxy.identify import identify
from proxy.nodes.ask import Ask
from proxy.nodes.hold import FULL_RUNS, Call, NodeCall, Nodes, Producer
from proxy.refusal import Refusal

RUN = Run("u1", "acme", "r1", "w", "w", 0.0, 60.0, last=0.0, ended=0.0)


class Calls:
    """Named calls of one run that a test makes and ends."""

    def __init__(self, **limits: Any) -> None:
        self.nodes = Nodes(Limits(**limits))

    def enter(self, name: str, *needs: str, holds: bool = True, run: Run = RUN, total_s: float = 60.0) -> Call:
        ends = asyncio.get_running_loop().time() + total_s
        return self.nodes.enter(run, Ask(name, dict.fromkeys(needs, 1), None), ends, holds)

    def waits(self, name: str, *needs: str, **more: Any) -> "asyncio.Task[dict[str, str]]":
        return asyncio.create_task(self.nodes.inputs(self.enter(name, *needs, **more)))

    def answer(self, call: Call, text: str) -> None:
        call.answer.whole({"choices": [{"index": 0, "text": text}]})
        self.nodes.leave(call, 200, Outcome.OK)


async def refusal_of(task: "asyncio.Task[Any]") -> Refusal:
    with pytest.raises(Refusal) as refused:
        await task
    return refused.value


async def test_a_call_goes_on_with_what_it_named_in_whatever_order() -> None:
    calls = Calls()
    last = calls.waits("c", "a", "b")
    await asyncio.sleep(0)
    assert calls.nodes.held == 1
    first, second = calls.enter("a"), calls.enter("b")
    calls.answer(second, "B")
    await asyncio.sleep(0)
    assert not last.done()
    calls.answer(first, "A")
    assert await last == {"a": "A", "b": "B"} and calls.nodes.held == 0 and not calls.nodes._waiting
    assert await calls.waits("d", "a") == {"a": "A"}


@pytest.mark.parametrize(
    ("code", "outcome", "what"),
    [
        (502, Outcome.FAILED, "node 'a' failed (502)"),
        (200, Outcome.FAILED, "node 'a' failed in its stream"),
        (400, Outcome.ERROR, "node 'a' error (400)"),
        (429, Outcome.REFUSED, "node 'a' was refused (429)"),
        (499, Outcome.CANCELLED, "node 'a' was cancelled: its client left"),
    ],
)
async def test_what_became_of_the_producer_is_told(code: int, outcome: Outcome, what: str) -> None:
    calls = Calls()
    first = calls.enter("a")
    second, third = calls.waits("b", "a"), calls.waits("c", "b")
    await asyncio.sleep(0)
    calls.nodes.leave(first, code, outcome)
    assert [(await refusal_of(task)).status for task in (second, third)] == [424, 424]
    assert (await refusal_of(second)).message == what.replace("error (400)", "was refused by its engine (400)")


async def test_a_deadline_and_what_it_says() -> None:
    calls = Calls(node_seconds=0.02)
    calls.enter("a")
    late, lost = calls.waits("b", "a"), calls.waits("c", "ghost")
    assert (await refusal_of(late)).status == 504 and (await refusal_of(lost)).code == "unknown_node"
    assert calls.nodes.held == 0
    patient = Calls(node_seconds=60)
    assert (await refusal_of(patient.waits("b", "ghost", total_s=0.02))).code == "unknown_node"


async def test_who_leaves_while_held_is_forgotten_and_those_behind_it_are_told() -> None:
    calls = Calls()
    call = calls.enter("b", "a")
    held = asyncio.create_task(calls.nodes.inputs(call))
    behind = calls.waits("c", "b")
    await asyncio.sleep(0)
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    calls.nodes.leave(call, 499, Outcome.CANCELLED)
    assert (await refusal_of(behind)).message == "node 'b' was cancelled: its client left"
    assert calls.nodes.held == 0 and not calls.nodes._waiting


async def test_so_many_may_be_held_and_no_more() -> None:
    calls = Calls(nodes_held=1)
    first = calls.waits("b", "a")
    await asyncio.sleep(0)
    with pytest.raises(Refusal, match="1 calls wait") as refused:
        calls.enter("c", "a")
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
    calls.answer(calls.enter("a"), "A")
    await first
    assert await calls.waits("c", "a") == {"a": "A"}, "its name was not taken by the refusal"


async def test_what_calls_of_a_run_wait_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.nodes.hold.MOST_MISSING", 3)
    calls = Calls()
    held = calls.waits("c", "a", "b")
    await asyncio.sleep(0)
    for holds in (True, False):
        with pytest.raises(Refusal, match="wait for 2 outputs already, and for 3 at most") as refused:
            calls.enter("d", "a", "x", holds=holds)
        assert (refused.value.status, refused.value.code) == (429, "too_many_held")
    assert calls.enter("d", "x") and not held.done()
    held.cancel()


async def test_runs_are_apart_and_what_they_said_ends_with_them() -> None:
    calls, book = Calls(), Book(str, lambda _, step: step)
    book.on_close.append(calls.nodes.close)
    receipts = [
        book.open(identify({b"x-workflow-id": b"r1"}, {}, f"q{n}"), tenant, f"q{n}", "/", 1.0, 0.0)
        for n, tenant in enumerate(("acme", "other"))
    ]
    ours, others = (receipt.run for receipt in receipts)
    calls.answer(calls.enter("a", run=ours), "ours")
    calls.answer(calls.enter("a", run=others), "others")
    assert await calls.waits("b", "a", run=others) == {"a": "others"}
    book.batch(100.0, {}, lambda _: True)
    assert calls.nodes._graphs, "something of them is in flight"
    for receipt in receipts:
        book.close(receipt, 200, Outcome.OK, 100.0)
    book.batch(102.0, {}, lambda _: True)
    assert not calls.nodes._graphs and calls.nodes._room.kept_bytes == 0


async def test_the_runs_that_were_quiet_for_longest_make_room() -> None:
    calls = Calls(node_bytes=1024)
    runs = [Run(f"u{n}", "acme", f"r{n}", "w", "w", 0.0, 60.0, last=0.0, ended=0.0) for n in range(FULL_RUNS + 2)]
    for run in runs[:FULL_RUNS]:
        calls.answer(calls.enter("a", run=run), "x" * 1024)
    calls.nodes.leave(calls.enter("b", run=runs[0]), 502, Outcome.FAILED)
    waits = calls.waits("b", "a", "ghost", run=runs[1])
    calls.answer(calls.enter("c", run=runs[2]), "")
    await asyncio.sleep(0)
    for run in runs[FULL_RUNS:]:
        calls.answer(calls.enter("a", run=run), "y" * 1024)
    assert calls.nodes._room.kept_bytes == FULL_RUNS * 1024
    kept = [graph.room.kept_bytes > 0 for graph in (calls.nodes._graphs["acme", run.run] for run in runs)]
    assert kept == [False, True, False] + [True] * (FULL_RUNS - 1), "the second has a call that waits"
    calls.answer(calls.enter("ghost", run=runs[1]), "")
    assert (await waits)["a"] == "x" * 1024
    assert (await refusal_of(calls.waits("c", "a", run=runs[0]))).code == "node_output_too_large"


async def test_a_call_that_was_refused_at_the_door_is_waited_for_no_longer() -> None:
    calls = Calls()
    held = calls.waits("b", "a")
    await asyncio.sleep(0)
    calls.nodes.refuse(("acme", "other run"), "a", 429)
    calls.nodes.refuse(("acme", "r1"), "a", 429)
    assert (await refusal_of(held)).message == "node 'a' was refused (429)"
    first = calls.enter("a")
    calls.nodes.refuse(("acme", "r1"), "a", 409)
    calls.answer(first, "A")
    assert await calls.waits("b", "a") == {"a": "A"}


async def test_a_gateway_on_its_way_out_holds_for_nobody_who_is_not_here() -> None:
    calls = Calls()
    first = calls.enter("a")
    well, lost = calls.waits("b", "a"), calls.waits("c", "ghost")
    await asyncio.sleep(0)
    calls.nodes.drain()
    assert (await refusal_of(lost)).code == "shutting_down"
    assert (await refusal_of(calls.waits("d", "phantom"))).status == 503
    calls.answer(first, "A")
    assert await well == {"a": "A"}


# For an engine that schedules nodes itself ----------------------------------------------------------------------------


def native(calls: Calls, name: str, *needs: str) -> NodeCall:
    return NodeCall(calls.nodes, calls.enter(name, *needs, holds=False))


async def test_such_an_engine_gets_handles_as_they_come_and_texts_of_others() -> None:
    calls = Calls()
    last = native(calls, "c", "a", "b")
    assert (last.run, last.name, last.needs, last.listed) == (("acme", "r1"), "c", ("a", "b"), None)
    waits = [asyncio.create_task(last.producer(name)) for name in last.needs]
    await asyncio.sleep(0)
    elsewhere, first = calls.enter("b"), native(calls, "a")
    first.submitted("variable-1")
    assert await waits[0] == Producer("variable-1", None) and not waits[1].done()
    stranger = asyncio.create_task(native(calls, "d", "a").producer("a", knows=lambda handle: handle == "mine"))
    calls.answer(elsewhere, "B")
    assert await waits[1] == Producer(None, "B") and not stranger.done()
    calls.answer(first.call, "A")
    assert await stranger == Producer(None, "A")


async def test_a_handle_of_an_attempt_that_failed_is_given_to_nobody() -> None:
    calls = Calls()
    first = native(calls, "a")
    first.submitted("of the first engine")
    first.withdrawn()
    late, later = (asyncio.create_task(native(calls, name, "a").producer("a")) for name in "bc")
    await asyncio.sleep(0)
    assert not late.done() and not later.done()
    first.submitted("of the second")
    assert (await late).handle == (await later).handle == "of the second"


async def test_who_waits_for_such_an_engine_to_take_others_is_held_too() -> None:
    calls = Calls(nodes_held=1)
    waits = asyncio.create_task(native(calls, "b", "a").taken())
    await asyncio.sleep(0)
    assert calls.nodes.held == 1
    with pytest.raises(Refusal, match="1 calls wait"):
        native(calls, "c", "a")
    first = native(calls, "a")
    first.submitted("variable-1")
    assert await waits is None and calls.nodes.held == 0
    other = asyncio.create_task(native(calls, "d", "ghost").taken())
    await asyncio.sleep(0)
    await native(calls, "c", "a").taken()
    with pytest.raises(Refusal):
        calls.enter("e", "a")
    other.cancel()


async def test_such_an_engine_is_told_of_what_cannot_be() -> None:
    calls = Calls(node_seconds=0.02)
    first, second = native(calls, "a"), native(calls, "b", "a")
    first.submitted(1)
    await second.producer("a")
    lost = asyncio.create_task(second.lost())
    await asyncio.sleep(0.04)
    assert not lost.done(), "the time for nodes to come is not that for engines to run"
    calls.nodes.leave(first.call, 502, Outcome.FAILED)
    assert (await lost).status == 424
    late = native(calls, "c", "ghost")
    with pytest.raises(Refusal, match="nobody sent node 'ghost'"):
        await late.producer("ghost")
