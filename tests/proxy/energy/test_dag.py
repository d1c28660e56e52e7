import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.energy.dag import Call, Dag, dag


def call(
    name: str, *parents: str, began: float = 0.0, ended: float = 1.0, joules: float | None = 1.0, well: bool = True
) -> Call:
    return Call(f"q-{name}-{ended}", name, name.partition("-")[0], parents, began, ended, joules, well)


def known(calls: list[Call]) -> Dag:
    found = dag(calls)
    assert found is not None
    return found


def test_a_map_reduce() -> None:
    found = known(
        [
            call("merge", "map-1", "map-2", began=5.0, ended=6.0, joules=2.0),
            call("map-1", "plan", began=1.0, ended=5.0, joules=4.0),
            call("map-2", "plan", began=1.5, ended=3.0, joules=1.5),
            call("plan", ended=1.0, joules=0.25),
        ]
    )
    assert found.critical_path == ("plan", "map-1", "merge")
    assert (found.critical_path_s, found.critical_path_joules) == (6.0, 6.25)
    assert {name: place.slack_s for name, place in found.nodes.items()} == {
        "plan": 0.0,
        "map-1": 0.0,
        "map-2": 2.5,
        "merge": 0.0,
    }
    assert (found.nodes["map-2"].seconds, found.nodes["map-2"].step) == (1.5, "map")
    assert found.nodes["merge"].parents == ("map-1", "map-2")


def test_neither_a_clients_pauses_nor_the_wait_for_parents_is_work() -> None:
    found = known([call("a", ended=1.0), call("b", "a", began=50.0, ended=51.0)])
    assert found.critical_path_s == 2.0


def test_a_call_that_its_engine_had_before_its_parents_ended_took_what_came_after_them() -> None:
    found = known([call("a", ended=3.0), call("b", "a", began=0.5, ended=4.0), call("c", "b", began=0.0, ended=4.5)])
    assert {name: place.seconds for name, place in found.nodes.items()} == {"a": 3.0, "b": 1.0, "c": 0.5}
    assert (found.critical_path, found.critical_path_s) == (("a", "b", "c"), 4.5)


def test_parents_may_be_ids_and_what_is_unknown_or_ended_later_is_no_parent() -> None:
    first = call("a", "b", "ghost", ended=1.0)
    found = known([first, call("b", first.id, "a", ended=2.0)])
    assert found.nodes["b"].parents == ("a",) and found.nodes["a"].parents == ()
    alone = known([call("x", "x", ended=3.0)])
    assert (alone.critical_path, alone.critical_path_s) == (("x",), 3.0)
    assert dag([]) is None


def test_of_one_name_the_answer_counts_and_the_joules_of_all() -> None:
    failed = call("a", ended=9.0, joules=3.0, well=False)
    found = known([failed, call("a", ended=2.0, joules=None), call("b", "a", began=2.0, ended=4.0, joules=None)])
    assert found.critical_path_s == 4.0 and found.nodes["a"].joules == found.critical_path_joules == 3.0
    assert found.nodes["b"].joules is None
    assert known([failed]).critical_path_s == 9.0
    assert known([call("c", began=2.0, ended=1.0)]).critical_path_s == 0.0


@st.composite
def runs(draw: st.DrawFn) -> list[Call]:
    """Calls of whole seconds, each with some of those before it as parents; it begins when they have ended."""
    made: list[Call] = []
    for n in range(draw(st.integers(1, 8))):
        above = draw(st.lists(st.sampled_from(made), unique=True, max_size=4)) if made else []
        began = max((one.ended for one in above), default=0.0) + draw(st.integers(0, 3))
        made.append(call(f"n{n}", *(one.name for one in above), began=began, ended=began + draw(st.integers(1, 9))))
    return draw(st.permutations(made))


def longest(calls: list[Call]) -> float:
    """Seconds of the longest chain, by walking all of them."""
    by_name = {one.name: one for one in calls}

    def until(one: Call) -> float:
        return one.ended - one.began + max((until(by_name[name]) for name in one.parents), default=0.0)

    return max(until(one) for one in calls)


@given(runs())
def test_the_path_is_the_longest_chain_and_has_no_slack(calls: list[Call]) -> None:
    found = known(calls)
    assert found.critical_path_s == longest(calls)
    assert sum(found.nodes[name].seconds for name in found.critical_path) == found.critical_path_s
    assert all(found.nodes[name].slack_s == 0.0 for name in found.critical_path)
    for name, after in zip(found.critical_path, found.critical_path[1:], strict=False):
        assert name in found.nodes[after].parents
    assert not found.nodes[found.critical_path[0]].parents


@given(runs(), st.data())
def test_a_call_may_be_late_by_its_slack_and_no_more(calls: list[Call], data: st.DataObject) -> None:
    found = known(calls)
    late = data.draw(st.sampled_from(calls))
    slack_s = found.nodes[late.name].slack_s

    def delayed(by_s: float) -> float:
        return longest(
            [
                Call(
                    *(one.id, one.name, one.step, one.parents, one.began),
                    *(one.ended + (by_s if one is late else 0.0), one.joules, one.answered),
                )
                for one in calls
            ]
        )

    assert delayed(slack_s) == found.critical_path_s
    assert delayed(slack_s + 1) == pytest.approx(found.critical_path_s + 1)
