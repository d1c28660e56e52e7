import pytest

from loadgen.coding import Coding
from loadgen.schedule import Schedule
from loadgen.search import Search
from loadgen.workload import Run

BOTH = [Search.small(), Coding.small()]


def shape(run: Run | None) -> object:
    return run and (run.workflow, [call.node for call in run.calls])


def test_workloads_take_turns_up_to_the_limit() -> None:
    schedule = Schedule(BOTH, seed=1, max_runs=5)
    runs = [schedule.next_run() for _ in range(7)]
    assert [run and run.workflow for run in runs] == ["search", "coding", "search", "coding", "search", None, None]
    assert schedule.exhausted_by(5) and not schedule.exhausted_by(4)


def test_without_a_limit_it_never_ends() -> None:
    schedule = Schedule(BOTH, seed=1)
    assert all(schedule.next_run() for _ in range(100))
    assert not schedule.exhausted_by(10**9)


def test_a_seed_fixes_every_run() -> None:
    def planned(seed: int) -> list[object]:
        schedule = Schedule(BOTH, seed)
        return [shape(schedule.next_run()) for _ in range(12)]

    assert planned(4) == planned(4) != planned(5)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one workload"):
        Schedule([], seed=0)
    with pytest.raises(ValueError, match="got -1"):
        Schedule(BOTH, seed=0, max_runs=-1)
