"""The one schedule of a load: which run comes next, when, and what is in it. Drivers only carry it out.

A load has streams; a stream has workloads, which it takes in turn, and its own arrivals: 16 users of search beside
a summarization every two seconds are two streams. Everything about run number n of a stream follows from the seed and
the two numbers: not from who carries it out, when, or how many others there are. So a closed load of so many runs
is always the same work, several workers share one schedule by every worker's taking its own numbers, and HTTP and
virtual time get equal runs.

    load = Load((Stream((Search.paper(),), Closed(16), runs=64),), seed=1)
    schedule = Schedule(load)
    schedule.take(0, at_s)   the next run of closed stream 0, for the user who is free at `at_s`
    schedule.arrivals()      all runs of the open streams, in time
    schedule.plan(start)     the calls of a run
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from heapq import merge
from random import Random
from typing import Any

from loadgen.arrivals import Arrivals, Closed, Open, Trace
from loadgen.workload import Run, Workload


@dataclass(frozen=True)
class Stream:
    """Runs of `workloads`, taken in turn, at most `runs` of them (None: as long as the load lasts)."""

    workloads: tuple[Workload, ...]
    arrivals: Arrivals
    runs: int | None = None

    def __post_init__(self) -> None:
        if not self.workloads:
            raise ValueError("a stream needs at least one workload")
        if self.runs is not None and self.runs < 1:
            raise ValueError(f"runs must be at least 1, or None for no limit, got {self.runs}")


@dataclass(frozen=True)
class Load:
    """Streams side by side. No run begins after `seconds` (None: until every stream has had its runs).

    Runs that are under way then are finished. The first `warm_up_s` are left out of what is reported as steady.
    """

    streams: tuple[Stream, ...]
    seed: int | str = 0
    seconds: float | None = None
    warm_up_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.streams:
            raise ValueError("a load needs at least one stream")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, or None for no limit, got {self.seconds}")
        if not 0 <= self.warm_up_s < (self.seconds or float("inf")):
            raise ValueError(f"warm_up_s must be 0 or more and less than seconds, got {self.warm_up_s}")

    @property
    def ends(self) -> bool:
        """Whether it ends by itself."""
        limited = (one.runs is not None or isinstance(one.arrivals, Trace) for one in self.streams)
        return self.seconds is not None or all(limited)

    def describe(self) -> dict[str, Any]:
        """The load as JSON, for the record of it."""
        streams = [
            {
                "workloads": [{"name": each.name, **_fields(each)} for each in stream.workloads],
                "arrivals": {"kind": type(stream.arrivals).__name__.lower(), **_fields(stream.arrivals)},
                "runs": stream.runs,
            }
            for stream in self.streams
        ]
        return {"streams": streams, "seed": self.seed, "seconds": self.seconds, "warm_up_s": self.warm_up_s}


@dataclass(frozen=True, slots=True)
class Start:
    """Run `number` of stream `stream` is meant to begin at `at_s` seconds from the beginning of the load."""

    stream: int
    number: int
    at_s: float


class Schedule:
    """A load, to be carried out by `workers` of which this is number `worker`: it has every `workers`-th run."""

    def __init__(self, load: Load, worker: int = 0, workers: int = 1) -> None:
        if not 0 <= worker < workers:
            raise ValueError(f"worker must be within 0-{workers - 1}, got {worker}")
        self.load = load
        self._worker, self._workers = worker, workers
        self._taken = [0] * len(load.streams)

    def take(self, stream: int, at_s: float) -> Start | None:
        """The next run of a closed stream for a user who is free at `at_s`; None when there will be no more."""
        number = self._worker + self._taken[stream] * self._workers
        runs, seconds = self.load.streams[stream].runs, self.load.seconds
        if (runs is not None and number >= runs) or (seconds is not None and at_s > seconds):
            return None
        self._taken[stream] += 1
        return Start(stream, number, at_s)

    def arrivals(self) -> Iterator[Start]:
        """The runs of the open streams in the order of their times; without end where nothing limits them."""
        opened = [
            self._open(index, one.arrivals, one.runs)
            for index, one in enumerate(self.load.streams)
            if not isinstance(one.arrivals, Closed)
        ]
        return merge(*opened, key=lambda start: start.at_s)

    def closed(self) -> list[tuple[int, Closed]]:
        """The closed streams by their index."""
        streams = enumerate(self.load.streams)
        return [(index, one.arrivals) for index, one in streams if isinstance(one.arrivals, Closed)]

    def runs(self, stream: int) -> int | None:
        """How many runs of a stream are this worker's; None where nothing but time limits them."""
        runs = self.load.streams[stream].runs
        return None if runs is None else len(range(self._worker, runs, self._workers))

    def plan(self, start: Start) -> Run:
        """The calls of a run."""
        workloads = self.load.streams[start.stream].workloads
        workload = workloads[start.number % len(workloads)]
        seed = f"{self.load.seed} {start.stream} {workload.name} {start.number}"
        return workload.plan(Random(seed), start.number // len(workloads))

    def _open(self, stream: int, arrivals: Open, runs: int | None) -> Iterator[Start]:
        times = arrivals.times_s(Random(f"{self.load.seed} {stream} arrivals"))
        for number, at_s in enumerate(times):
            if (runs is not None and number >= runs) or (self.load.seconds is not None and at_s > self.load.seconds):
                return
            if number % self._workers == self._worker:
                yield Start(stream, number, at_s)


def _fields(one: object) -> dict[str, Any]:
    return asdict(one) if is_dataclass(one) and not isinstance(one, type) else {}
