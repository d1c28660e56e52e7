"""A run's graph: any graph, in any order, with any failures."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.nodes.graph import MOST_BEHIND, MOST_NODES, Graph, Node, Room, State
from proxy.refusal import Refusal

Needs = Mapping[str, Sequence[str]]
OUTCOMES = st.sampled_from(["text", "text", "text", "", "no text", "fails"])


def graph(run_bytes: int = 10**6, all_bytes: int = 10**6) -> Graph:
    return Graph("r1", Room(run_bytes), Room(all_bytes))


@st.composite
def dags(draw: st.DrawFn) -> dict[str, list[str]]:
    """Names in an order in which each may need those before it; `ghost` never comes."""
    names: list[str] = []
    needs: dict[str, list[str]] = {}
    for n in range(draw(st.integers(1, 8))):
        some = st.lists(st.sampled_from(names), unique=True, max_size=4) if names else st.just([])
        needs[f"n{n}"] = draw(some) + (["ghost"] if draw(st.integers(0, 11)) == 0 else [])
        names.append(f"n{n}")
    return needs


@dataclass
class Play:
    """Calls that come and end as a test draws it; `told` are those whom the graph has named as changed."""

    needs: Needs
    outcomes: Mapping[str, str]
    graph: Graph = field(default_factory=graph)
    nodes: dict[str, Node] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)  # of those that ended

    def arrive(self, name: str) -> None:
        node, changed = self.graph.arrive(name, self.needs[name])
        self.nodes[name] = node
        if node.state is State.HELD:
            self.held.add(name)
        self.tell(changed)

    def end(self, name: str) -> None:
        self.ended.add(name)
        node, outcome = self.nodes[name], self.outcomes[name]
        self.inputs[name] = node.inputs
        if outcome == "fails":
            self.tell(self.graph.fail(node, "failed (502)"))
        else:
            self.tell(self.graph.done(node, {"no text": None, "": ""}.get(outcome, f"says {name}")))

    def tell(self, changed: Sequence[Node]) -> None:
        assert all(node.state is not State.HELD for node in changed), "told of nothing"
        self.told |= {node.name for node in changed}

    def running(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.state is State.RUNNING and name not in self.ended]

    def waiting(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.state is State.HELD]


@given(dags(), st.data())
def test_each_call_gets_exactly_what_it_names_or_is_told_and_nobody_waits_for_ever(
    needs: dict[str, list[str]], data: st.DataObject
) -> None:
    play = Play(needs, {name: data.draw(OUTCOMES) for name in needs})
    to_come = data.draw(st.permutations(list(needs)))
    while to_come or play.running():
        running = play.running()
        if to_come and (not running or data.draw(st.booleans())):
            play.arrive(to_come.pop())
        else:
            play.end(data.draw(st.sampled_from(running)))
    runs: dict[str, bool] = {}
    for name, wanted in needs.items():
        runs[name] = all(runs.get(one, False) and play.outcomes[one] in ("text", "") for one in wanted)
    late = [name for name in play.waiting() if data.draw(st.booleans())]
    assert set(play.waiting()) <= {name for name, can in runs.items() if not can}
    for name in [*late, *play.waiting()]:
        play.told.add(name)  # its own time is up, and it knows
        play.tell(play.graph.expire(play.nodes[name], 60.0))
    assert not play.waiting() and not play.graph._consumers and play.graph.missing == 0
    assert play.held <= play.told
    for name, node in play.nodes.items():
        if runs[name]:
            said = {one: "" if play.outcomes[one] == "" else f"says {one}" for one in needs[name]}
            assert play.inputs[name] == said and not node.inputs and node.refusal is None
        else:
            assert node.refusal is not None and node.refusal.status in (424, 504) and name not in play.ended
            assert node.refusal.status == 424 or "ghost" in _above(needs, name)


def _above(needs: Needs, name: str) -> set[str]:
    found: set[str] = set()
    for one in needs.get(name, ()):
        found |= {one, *_above(needs, one)}
    return found


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), unique=True, max_size=3)), st.data()
)
def test_a_call_that_closes_a_cycle_is_refused_and_no_other_is(
    needs: dict[str, list[str]], data: st.DataObject
) -> None:
    run, here = graph(), dict[str, list[str]]()
    for name in data.draw(st.permutations(list(needs))):
        closes = name in _reached(here | {name: needs[name]}, name)
        before = [_state(run, held) for held in here]
        try:
            run.arrive(name, needs[name])
        except Refusal as refusal:
            assert closes and (refusal.status, refusal.code) == (400, "node_cycle")
            path = refusal.message.partition(": ")[2].split(" -> ")
            assert path[0] == path[-1] == name and len(set(path)) == len(path) - 1
            assert all(need in (here | {name: needs[name]})[one] for one, need in pairwise(path))
            assert run.get(name) is None
            assert before == [_state(run, held) for held in here]
        else:
            assert not closes
            here[name] = needs[name]


def _state(run: Graph, name: str) -> State:
    node = run.get(name)
    assert node is not None
    return node.state


def _reached(needs: Needs, start: str) -> set[str]:
    found: set[str] = set()
    ends = list(needs[start])
    while ends:
        if (name := ends.pop()) not in found:
            found.add(name)
            ends += needs.get(name, ())
    return found


@given(dags(), st.data())
def test_the_longest_chain_behind_a_call_is_known_whatever_came_first(
    needs: dict[str, list[str]], data: st.DataObject
) -> None:
    run = graph()
    for name in data.draw(st.permutations(list(needs))):
        run.arrive(name, needs[name])
    longest = dict.fromkeys(needs, 0)
    for name in reversed(needs):
        for one in needs[name]:
            if one in longest:
                longest[one] = max(longest[one], longest[name] + 1)
    assert {name: node.behind for name in needs if (node := run.get(name)) is not None} == longest


def test_a_long_chain_is_not_counted_to_its_end() -> None:
    run = graph()
    for n in range(3 * MOST_BEHIND):
        run.arrive(f"n{n}", [f"n{n - 1}"] if n else [])
    assert (first := run.get("n0")) is not None and first.behind == MOST_BEHIND


# Rules, one by one ----------------------------------------------------------------------------------------------------


def test_a_name_that_another_call_names_is_taken_until_its_call_has_failed() -> None:
    run = graph()
    first, _ = run.arrive("a", [])
    run.arrive("reader", ["a"])
    for state in ("is here already", "has answered already"):
        with pytest.raises(Refusal, match=state) as refused:
            run.arrive("a", [])
        assert (refused.value.status, refused.value.code, refused.value.retry) == (409, "duplicate_node", False)
        run.done(first, "text")
    failed, _ = run.arrive("b", [])
    waiting, _ = run.arrive("c", ["b"])
    assert run.fail(failed, "was cancelled: its client left") == [waiting]
    again, _ = run.arrive("b", [])
    late, _ = run.arrive("c", ["b"])
    assert run.done(again, "at last") == [late] and late.inputs == {"b": "at last"}


def test_calls_may_share_a_name_that_nobody_names_and_whoever_does_is_told() -> None:
    run = graph()
    answered, _ = run.arrive("a", [])
    run.done(answered, "first")
    runs, _ = run.arrive("a", [])
    last, _ = run.arrive("a", ["x"])
    assert (answered.refusal, runs.refusal, last.state) == (None, None, State.HELD)
    assert run.room.kept_bytes == run.of_all.kept_bytes == 0, "nobody can have it"
    assert not run.is_to_wait(["a"])
    reader, _ = run.arrive("reader", ["a"])
    assert reader.refusal is not None and (reader.refusal.status, reader.refusal.code) == (424, "duplicate_node")
    assert reader.refusal.message == "node 'a' is the name of several calls of the run"
    assert run.done(run.arrive("x", [])[0], "X") == [last] and last.inputs == {"x": "X"}
    run.done(runs, "second")
    run.fail(last, "failed (502)")
    assert run.room.kept_bytes == len("X")
    with_it, _ = run.arrive("another", ["a"])
    assert with_it.refusal is not None and with_it.refusal.code == "duplicate_node"


def test_a_name_that_was_named_before_any_call_had_it_is_for_one_call() -> None:
    run = graph()
    reader, _ = run.arrive("reader", ["a"])
    first, _ = run.arrive("a", [])
    with pytest.raises(Refusal, match="is here already"):
        run.arrive("a", [])
    assert run.done(first, "text") == [reader]


def test_why_a_call_cannot_run_is_said_with_where_that_began() -> None:
    run = graph()
    first, _ = run.arrive("a", [])
    chain = [run.arrive(name, [need])[0] for name, need in (("b", "a"), ("c", "b"), ("d", "c"))]
    assert run.fail(first, "failed (502)") == chain
    said = [node.refusal.message for node in chain if node.refusal is not None]
    assert said == [
        "node 'a' failed (502)",
        "node 'b' could not run: node 'a' failed (502)",
        "node 'c' could not run: node 'a' failed (502)",
    ]
    late, _ = run.arrive("e", ["d"])
    assert late.refusal is not None and late.refusal.code == "producer_failed"


def test_a_call_that_comes_failed_takes_those_along_that_wait_for_it() -> None:
    run = graph()
    waiting, _ = run.arrive("c", ["b", "x"])
    run.fail(run.arrive("a", [])[0], "failed (500)")
    lost, changed = run.arrive("b", ["y", "a"])
    assert lost.refusal is not None and changed == [waiting] and waiting.refusal is not None
    assert not run._consumers


@pytest.mark.parametrize("forward", [True, False])
def test_a_chain_that_is_longer_than_the_stack_fails_to_its_end(forward: bool) -> None:
    run, length = graph(), 2 * sys.getrecursionlimit()
    numbers = range(1, length)
    calls = [run.arrive(f"n{n}", [f"n{n - 1}"])[0] for n in (numbers if forward else reversed(numbers))]
    first, _ = run.arrive("n0", [])
    assert set(run.fail(first, "failed (502)")) == set(calls)
    assert all(node.refusal is not None and node.refusal.status == 424 for node in calls)
    assert run.missing == 0 and run.is_idle


def test_an_answer_without_text_is_no_input() -> None:
    run = graph()
    run.done(run.arrive("tools", [])[0], None)
    node, _ = run.arrive("reader", ["tools"])
    assert node.refusal is not None
    assert (node.refusal.status, node.refusal.code) == (424, "node_without_text")
    run.done(run.arrive("silent", [])[0], "")
    assert run.arrive("listener", ["silent"])[0].inputs == {"silent": ""}


@pytest.mark.parametrize(("run_bytes", "all_bytes"), [(10, 100), (100, 10)])
def test_more_than_is_kept_is_said_to_be_too_large(run_bytes: int, all_bytes: int) -> None:
    of_all = Room(all_bytes)
    run = Graph("r1", Room(run_bytes), of_all)
    run.done(run.arrive("a", [])[0], "éé")
    run.done(run.arrive("b", [])[0], "1234567")
    node, _ = run.arrive("c", ["a", "b"])
    assert node.refusal is not None and (node.refusal.status, node.refusal.code) == (424, "node_output_too_large")
    assert "7 bytes" in node.refusal.message and "up to 10" in node.refusal.message
    assert run.arrive("d", ["a"])[0].inputs == {"a": "éé"}
    run.drop_outputs()
    assert of_all.kept_bytes == run.room.kept_bytes == 0
    late, _ = run.arrive("e", ["a"])
    assert late.refusal is not None and "make room" in late.refusal.message


def test_late_and_unknown_are_told_apart() -> None:
    run = graph()
    run.arrive("a", [])
    slow, _ = run.arrive("slow", ["a"])
    lost, _ = run.arrive("lost", ["a", "ghost"])
    last, _ = run.arrive("last", ["lost"])
    assert run.expire(slow, 60.0) == [] and run.expire(lost, 60.0) == [last]
    assert slow.refusal is not None and lost.refusal is not None and last.refusal is not None
    assert (slow.refusal.status, slow.refusal.code) == (504, "node_timeout")
    assert (lost.refusal.status, lost.refusal.code) == (424, "unknown_node") and "'ghost'" in lost.refusal.message
    assert last.refusal.status == 424
    done, _ = run.arrive("done", [])
    assert run.expire(done, 60.0) == [] and done.refusal is None


def test_when_no_more_calls_come_only_those_wait_on_whose_producers_are_here() -> None:
    run = graph()
    first, _ = run.arrive("a", [])
    well, _ = run.arrive("well", ["a"])
    lost, _ = run.arrive("lost", ["a", "ghost"])
    last, _ = run.arrive("last", ["lost", "phantom"])
    assert set(run.drain()) == {lost, last}
    assert lost.refusal is not None and (lost.refusal.status, lost.refusal.code) == (503, "shutting_down")
    assert last.refusal is not None
    assert run.drain() == [] and run.done(first, "text") == [well] and well.state is State.RUNNING


def test_a_call_that_is_not_held_is_told_that_it_is_lost() -> None:
    run = graph()
    first, _ = run.arrive("a", [], holds=False)
    second, _ = run.arrive("b", ["a"], holds=False)
    assert second.state is State.RUNNING
    assert run.submit(first, "handle") == [second] and first.handle == "handle"
    third, _ = run.arrive("c", ["b"], holds=False)
    assert run.done(second, "it had it from its engine") == [third] and not run._consumers.get("a")
    fourth, _ = run.arrive("d", ["a"], holds=False)
    assert run.fail(first, "failed (500)") == [fourth] and fourth.refusal is not None


def test_whether_a_call_would_wait() -> None:
    run = graph()
    first, _ = run.arrive("a", [])
    assert run.is_to_wait(["a"]) and run.is_to_wait(["ghost"]) and not run.is_to_wait([])
    run.done(first, "text")
    assert not run.is_to_wait(["a"]) and run.is_to_wait(["a", "ghost"])
    run.fail(run.arrive("b", [])[0], "failed (500)")
    assert not run.is_to_wait(["ghost", "b"]), "it is refused at once"


def test_what_ended_long_ago_is_forgotten() -> None:
    run = graph()
    held, _ = run.arrive("held", ["ghost"])
    for n in range(MOST_NODES + 5):
        run.done(run.arrive(f"n{n}", [])[0], "12")
    assert run.get("n0") is None and run.get(f"n{MOST_NODES}") is not None
    assert run.get("held") is held and run.room.kept_bytes == 2 * (MOST_NODES - 1)
