"""A GPU's energy counter and power sensor, as their driver shows them: the counter moves in steps."""

from collections import deque
from math import floor

_RECENT_S = 1.0


class Meter:
    """Made of exact joules seen now and then.

    The counter shows the energy of the last multiple of `period_s` (100 ms on an H200, 20-100 ms elsewhere), as if it
    had grown evenly since it was last seen. The power is the mean since half a period ago, or since it was last seen
    before: NVML's instant power, which zeusd asks for (`GetPowerUsage` would be a mean of one second on most cards).
    """

    def __init__(self, period_s: float = 0.1) -> None:
        self._period_s = period_s
        self._seen: deque[tuple[float, float]] = deque()  # seconds, joules
        self._shown_j = 0.0

    def see(self, energy_j: float, at: float) -> None:
        """The card has spent `energy_j` in all by `at` (seconds, of a clock that never goes back)."""
        if not self._seen or energy_j < self._seen[-1][1]:
            self._seen.clear()
            self._shown_j = energy_j
        else:
            before, before_j = self._seen[-1]
            moved = floor(at / self._period_s) * self._period_s
            if moved > before:
                self._shown_j = before_j + (energy_j - before_j) * (moved - before) / (at - before)
        self._seen.append((at, energy_j))
        while len(self._seen) > 1 and self._seen[1][0] <= at - self._period_s / 2:
            self._seen.popleft()

    @property
    def energy_mj(self) -> int:
        """What the counter shows, in whole millijoules."""
        return int(self._shown_j * 1000)

    @property
    def power_mw(self) -> int | None:
        """What the sensor shows; None where it was last seen too recently, or over a second ago, to tell."""
        if not self._seen:
            return None
        (first, first_j), (last, last_j) = self._seen[0], self._seen[-1]
        if not self._period_s / 2 <= last - first <= _RECENT_S:
            return None
        return round((last_j - first_j) / (last - first) * 1000)
