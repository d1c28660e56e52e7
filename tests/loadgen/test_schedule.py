from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import Arrivals, Closed, Constant, Poisson, Trace
from loadgen.coding import Coding
from loadgen.schedule import Load, Schedule, Start, Stream
from loadgen.search import Search
from loadgen.workload import Run

BOTH = (Search.small(), Coding.small())


def load(arrivals: Arrivals, runs: int | None = None, seed: int = 1, seconds: float | None = None) -> Load:
    return Load((Stream(BOTH, arrivals, runs),), seed, seconds)


def shape(run: Run) -> object:
    return run.workflow, [call.node for call in run.calls]


def taken(schedule: Schedule, most: int) -> list[Start]:
    return [start for _ in range(most) if (start := schedule.take(0, 0.0))]


def test_workloads_take_turns_up_to_the_limit() -> None:
    schedule = Schedule(load(Closed(1), runs=5))
    starts = taken(schedule, 7)
    assert [schedule.plan(start).workflow for start in starts] == ["search", "coding", "search", "coding", "search"]


def test_without_a_limit_it_never_ends() -> None:
    assert len(taken(Schedule(load(Closed(1))), 100)) == 100
    assert not load(Closed(1)).ends
    assert load(Closed(1), runs=2).ends and load(Closed(1), seconds=3).ends and load(Trace((1.0,))).ends


def test_no_run_begins_after_its_seconds() -> None:
    schedule = Schedule(load(Closed(1), seconds=3.0))
    assert schedule.take(0, 3.0) and not schedule.take(0, 3.1)
    assert [start.at_s for start in Schedule(load(Constant(1.0), seconds=3.0)).arrivals()] == [0.0, 1.0, 2.0, 3.0]


def test_a_seed_fixes_every_run() -> None:
    def planned(seed: int) -> list[object]:
        schedule = Schedule(load(Closed(1), seed=seed))
        return [shape(schedule.plan(start)) for start in taken(schedule, 12)]

    assert planned(4) == planned(4) != planned(5)


def test_streams_of_one_workload_are_not_the_same_runs() -> None:
    schedule = Schedule(Load((Stream(BOTH, Closed(1)), Stream(BOTH, Closed(1))), seed=1))
    first, second = ([repr(schedule.plan(Start(stream, n, 0.0))) for n in range(8)] for stream in (0, 1))
    assert first != second


@given(workers=st.integers(1, 5), runs=st.integers(1, 40))
def test_workers_share_one_schedule_and_lose_nothing(workers: int, runs: int) -> None:
    def numbers(arrivals: Arrivals, worker: int, workers: int) -> list[int]:
        schedule = Schedule(load(arrivals, runs), worker, workers)
        starts = taken(schedule, runs + 1) if isinstance(arrivals, Closed) else schedule.arrivals()
        return [start.number for start in starts]

    for arrivals in (Closed(3), Poisson(2.0)):
        shared = [number for worker in range(workers) for number in numbers(arrivals, worker, workers)]
        assert sorted(shared) == list(range(runs)) == numbers(arrivals, 0, 1)


def test_open_streams_come_in_the_order_of_time_and_a_longer_load_begins_alike() -> None:
    streams = (Stream(BOTH, Poisson(3.0)), Stream(BOTH, Closed(2)), Stream(BOTH, Constant(1.0), runs=4))
    short, long = (list(Schedule(Load(streams, 7, seconds)).arrivals()) for seconds in (5.0, 9.0))
    assert [start.at_s for start in long] == sorted(start.at_s for start in long)
    assert [start for start in long if start.at_s <= 5.0] == short
    assert {start.stream for start in short} == {0, 2} and sum(start.stream == 2 for start in long) == 4
    endless = Schedule(Load(streams, 7)).arrivals()
    assert list(islice(endless, len(long))) == long


def test_a_load_tells_what_it_is() -> None:
    told = Load((Stream((Search.small(),), Closed(2), runs=3),), seed=5).describe()
    assert told["seed"] == 5 and told["seconds"] is None
    (stream,) = told["streams"]
    assert stream["arrivals"] == {"kind": "closed", "users": 2, "think_s": 0.0, "over_s": 0.0} and stream["runs"] == 3
    assert stream["workloads"][0]["name"] == "search" and stream["workloads"][0]["output_tokens"] == 32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Stream((), Closed(1)), "at least one workload"),
        (lambda: Stream(BOTH, Closed(1), runs=0), "got 0"),
        (lambda: Load(()), "at least one stream"),
        (lambda: load(Closed(1), seconds=0), "above 0"),
        (lambda: Schedule(load(Closed(1)), worker=2, workers=2), "within 0-1"),
    ],
)
def test_impossible_schedules_are_refused(wrong, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()
