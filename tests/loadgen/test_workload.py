from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.coding import Coding
from loadgen.composite import Composite
from loadgen.prompt import Piece
from loadgen.search import Search
from loadgen.summarize import Summarize
from loadgen.workload import Call, Dispatch, Execution, Run, Workload, tags


def call(node: str, parents: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Call:
    return Call(node, node.partition("-")[0], 8, (Piece("hello"),), parents, after)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    calls: list[Call] = []
    for number in range(draw(st.integers(1, 12))):
        earlier = [call.node for call in calls]
        picked = st.lists(st.sampled_from(earlier), unique=True, max_size=3) if earlier else st.just([])
        calls.append(call(f"n-{number}", tuple(draw(picked)), tuple(draw(picked))))
    return Run("w", tuple(calls))


@given(run=runs(), data=st.data())
def test_every_call_goes_once_after_all_that_it_waits_for_and_one_is_final(run: Run, data: st.DataObject) -> None:
    execution = Execution(run)
    sent: list[Dispatch] = []
    in_flight: list[str] = []
    while not execution.done:
        for dispatch in execution.take_ready():
            assert {*dispatch.call.parents, *dispatch.call.after} <= execution.outputs.keys()
            sent.append(dispatch)
            in_flight.append(dispatch.call.node)
        assert in_flight, "a run that is not done has something under way"
        node = data.draw(st.sampled_from(in_flight))
        in_flight.remove(node)
        execution.answer(node, f"answer of {node}")
    assert sorted(dispatch.call.node for dispatch in sent) == sorted(call.node for call in run.calls)
    assert [dispatch.final for dispatch in sent] == [False] * (len(sent) - 1) + [True]


def test_calls_of_one_level_go_together() -> None:
    execution = Execution(Run("w", (call("a"), call("b-1", ("a",)), call("b-2", ("a",)), call("c", ("b-1", "b-2")))))
    assert [d.call.node for d in execution.take_ready()] == ["a"]
    assert execution.take_ready() == []
    execution.answer("a", "")
    assert [d.call.node for d in execution.take_ready()] == ["b-1", "b-2"]
    execution.answer("b-2", "")
    assert execution.take_ready() == []
    execution.answer("b-1", "")
    assert [(d.call.node, d.final) for d in execution.take_ready()] == [("c", True)]


@given(run=runs(), quoting=st.sets(st.integers(0, 11)), pausing=st.sets(st.integers(0, 11)))
def test_sent_at_once_a_call_waits_for_what_no_gateway_sees_to(run: Run, quoting: set[int], pausing: set[int]) -> None:
    calls = tuple(
        replace(
            call,
            prompt=(*call.prompt, *(Piece(answer_of=node) for node in call.parents if index in quoting)),
            pause_s=float(index in pausing),
        )
        for index, call in enumerate(run.calls)
    )
    execution, sent = Execution(Run("w", calls), 7.0, at_once=True), list[Dispatch]()
    while not execution.done:
        ready = execution.take_ready()
        sent += ready
        for dispatch in ready:
            call = dispatch.call
            left_to_it = () if call.pause_s else call.quoted
            assert {*call.parents, *call.after} - {*left_to_it} <= execution.outputs.keys()
            if not call.pause_s and call.quoted.issuperset(call.parents) and not call.after:
                assert dispatch.due_s == 7.0
        unanswered = [one.call.node for one in sent if one.call.node not in execution.outputs]
        execution.answer(unanswered[0], "", 8.0)
    assert sorted(one.call.node for one in sent) == sorted(call.node for call in calls)
    assert [one.final for one in sent] == [False] * (len(sent) - 1) + [True]


@pytest.mark.parametrize(
    ("workload", "first"),
    [(Coding.small(), None), (Summarize.small(), None), (Search.small(), {"query-1"}), (Composite.small(), None)],
)
def test_of_the_four_only_queries_wait_for_their_user_when_sent_at_once(
    workload: Workload, first: set[str] | None
) -> None:
    run = workload.plan(Random(3))
    sent = {dispatch.call.node for dispatch in Execution(run, at_once=True).take_ready()}
    asked_later = {call.node for call in run.calls if call.after}
    assert sent == (first or {call.node for call in run.calls} - asked_later)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ((), "at least one call"),
        ((call("a"), call("a")), "two calls"),
        ((call("a", parents=("b",)), call("b")), "waits for 'b'"),
        ((call("a", after=("a",)),), "waits for 'a'"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(calls: tuple[Call, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run("w", calls)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Call("a", "a", 0, (Piece("x"),)), "got 0"),
        (lambda: Call("a", "a", 8, ()), "needs a prompt"),
        (lambda: Call("a", "a", 8, (Piece("x"),), pause_s=-1), "got -1"),
        (lambda: Call("a", "a", 8, (Piece(answer_of="b"),), after=("b",)), "quotes 'b'"),
        (lambda: Piece(), "either a text or the answer"),
        (lambda: Piece("x", answer_of="b"), "either a text or the answer"),
        (lambda: Piece("x", 0), "got 0"),
    ],
)
def test_a_call_that_cannot_be_sent_is_refused(wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_run_knows_what_is_quoted() -> None:
    quoting = Call("b", "b", 8, (Piece(answer_of="a"),), parents=("a",))
    assert [Run("w", (call("a"), quoting)).quotes(node) for node in "ab"] == [True, False]


def test_tags_name_parents_but_not_mere_order() -> None:
    reviewer = call("reviewer-1", parents=("architect", "engineer-1"), after=("reviewer-0",))
    assert tags("run-7", "coding", Dispatch(reviewer, final=True)) == {
        "X-Workflow-Id": "run-7",
        "X-Workflow-Name": "coding",
        "X-Workflow-Step": "reviewer",
        "X-Workflow-Node": "reviewer-1",
        "X-Workflow-Parent": "architect,engineer-1",
        "X-Workflow-Final": "true",
    }
    first = tags("run-7", "coding", Dispatch(call("architect"), final=False))
    assert "X-Workflow-Parent" not in first and "X-Workflow-Final" not in first
