from loadgen.critical_path import critical_path
from loadgen.record import RequestRecord


def request(node: str, ended_s: float, parents: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> RequestRecord:
    return RequestRecord(
        stream=0,
        number=0,
        workflow="w",
        run="r",
        step=node,
        node=node,
        parents=parents,
        after=after,
        intended_s=0.0,
        started_s=0.0,
        ended_s=ended_s,
        max_tokens=1,
    )


def test_it_goes_through_the_slowest_of_what_was_waited_for() -> None:
    run = [
        request("plan", 1.0),
        request("code-1", 3.0, ("plan",)),
        request("code-2", 2.0, ("plan",)),
        request("test", 4.0, ("code-2",), after=("code-1",)),
        request("note", 3.5, ("plan",)),
    ]
    assert [one.node for one in critical_path(run)] == ["plan", "code-1", "test"]
    assert [one.node for one in critical_path(run[:1])] == ["plan"] and critical_path([]) == []


def test_what_was_waited_for_and_is_not_there_ends_it() -> None:
    assert [one.node for one in critical_path([request("b", 2.0, ("a",))])] == ["b"]
