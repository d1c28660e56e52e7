"""Which run comes next: workloads in turn, every run's randomness fixed by the seed and the run's number."""

from collections.abc import Sequence
from random import Random

from loadgen.workload import Run, Workload


class Schedule:
    """Plans runs one after another, at most `max_runs` (0: without end).

    Run number n is the same whoever asks for it and however many users there are. Raises ValueError without a workload
    or for a negative `max_runs`.
    """

    def __init__(self, workloads: Sequence[Workload], seed: int | str, max_runs: int = 0) -> None:
        if not workloads:
            raise ValueError("a schedule needs at least one workload")
        if max_runs < 0:
            raise ValueError(f"max_runs must be 0 (without end) or more, got {max_runs}")
        self._workloads = workloads
        self._seed = seed
        self._max_runs = max_runs
        self._started = 0

    def exhausted_by(self, runs: int) -> bool:
        """Whether there is none left once `runs` of them were started."""
        return 0 < self._max_runs <= runs

    def next_run(self) -> Run | None:
        """The next run, or None when there is none left."""
        number = self._started
        if self.exhausted_by(number):
            return None
        self._started += 1
        workload = self._workloads[number % len(self._workloads)]
        return workload.plan(Random(f"{self._seed} {workload.name} {number}"))
