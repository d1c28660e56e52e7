"""Which part of a processor's joules is an engine's: that of its process in the CPU time that was used.

RAPL's counters cover whole packages with everything that runs on them. CPU time tells of all of it, so

    part = CPU-seconds of the engine's processes / CPU-seconds of the host in use

over the same stretch. It takes every CPU-second for equally costly, and shares the idle draw likewise.
"""

from bisect import bisect_left
from collections import deque
from typing import NamedTuple

from proxy.energy.work import part

ON_CPU = ("cpu", "dram")  # components that a process moves by its CPU time
_LEAST_S = 0.1  # CPU time comes in ticks of 0.01 s: less of it says little,
_WIDER_S = 0.5  # and then what was around it is looked at too


def is_on_cpu(device: str) -> bool:
    """Whether `h1/cpu:0` is one of these."""
    return device.partition("/")[2].partition(":")[0] in ON_CPU


class CpuTime(NamedTuple):
    """Cumulative CPU-seconds at a time: of an engine's processes (None: they are not known), and in use on its host."""

    engine: str
    t: float
    own_s: float | None
    host_s: float


class CpuPart:
    """One engine's CPU time beside its host's."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float, float]] = deque()

    def look(self, time: CpuTime) -> None:
        """What was read. Another process, or none, begins anew."""
        if time.own_s is None:
            self._marks.clear()
            return
        if self._marks and (time.own_s < self._marks[-1][1] or time.host_s < self._marks[-1][2]):
            self._marks.clear()
        if not self._marks or time.t > self._marks[-1][0]:
            self._marks.append((time.t, time.own_s, time.host_s))

    def during(self, t0: float, t1: float) -> float | None:
        """The engine's part, 0 to 1, between two times; None for a stretch of which nothing is known."""
        marks = self._marks
        if len(marks) < 2 or t1 <= marks[0][0] or t0 >= marks[-1][0]:
            return None
        own_s, host_s = self._between(t0, t1)
        if host_s < _LEAST_S:
            own_s, host_s = self._between(t0 - _WIDER_S, t1 + _WIDER_S)
        if own_s <= 0 and host_s <= 0:
            return 1.0  # nobody else was there either
        return min(1.0, own_s / host_s) if host_s > 0 else 1.0

    def is_known(self, t: float) -> bool:
        """Whether it was looked at shortly before `t`."""
        return bool(self._marks) and t - self._marks[-1][0] <= 2.0

    def forget(self, horizon: float) -> None:
        """Nobody will ask for a time before `horizon`."""
        while len(self._marks) > 1 and self._marks[1][0] <= horizon - _WIDER_S:
            self._marks.popleft()

    def _between(self, t0: float, t1: float) -> tuple[float, float]:
        (own0, host0), (own1, host1) = self._at(t0), self._at(t1)
        return own1 - own0, host1 - host0

    def _at(self, t: float) -> tuple[float, float]:
        index = min(max(1, bisect_left(self._marks, (t,))), len(self._marks) - 1)
        (t0, own0, host0), (t1, own1, host1) = self._marks[index - 1], self._marks[index]
        passed = part(t, t0, t1)
        return own0 + (own1 - own0) * passed, host0 + (host1 - host0) * passed
