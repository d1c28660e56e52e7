"""When a counter really moved: NVML's moves every 0.1 s by its own clock, and a reading comes up to that much later.

A reading sees the last of the counter's moves, so what it says is older by 0 to 0.1 s, which is a fifth of the stretch
over which joules are shared. The beat shows: readings out of step with it find the counter moved once, twice or not at
all, and only with the right beat are these moves those of a power that does not jump. (On an H200 it was exact to a
millisecond in a minute: every 0.09999 s.)
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PERIOD_S = 0.1
PLACES = 100  # within the period, to be told apart
ENOUGH = 40  # readings
MEMORY = 100  # readings: in more of them the two clocks drift apart
_EVERY = 10  # readings between two looks, at first
_KNOWN_EVERY, _SELDOM = 50, 160  # and while a beat is known, and where none shows for long: a look takes milliseconds
_BETTER = 1.5  # by how much a beat has to explain the readings better than none, in the same
_ODD = 1.0  # what a move counts, in jumps of log power, that should not have been there, or should


class Beat:
    """One counter's beat, as its readings show it."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque(maxlen=MEMORY)  # time, and what it moved since the one before
        self._since, self._every = 0, _EVERY
        self._phase_s: float | None = None

    def moved_at(self, t: float, moved_uj: int) -> float:
        """When a counter moved to the value that was read at `t`, so much more than before; `t` while no beat shows."""
        self._readings.append((t, moved_uj))
        self._since += 1
        if self._since >= self._every and len(self._readings) >= ENOUGH:
            self._since = 0
            times, moves = zip(*self._readings, strict=True)
            found = find_phase(times, moves[1:])
            self._phase_s = self._phase_s if found is None else found
            self._every = min(2 * self._every, _SELDOM) if found is None else _KNOWN_EVERY
        return t if self._phase_s is None else t - (t - self._phase_s) % PERIOD_S

    def forget(self) -> None:
        """The counter was reset, and may be another one."""
        self._readings.clear()
        self._phase_s, self._every = None, _EVERY


def moved_at(times: Sequence[float], energies_uj: Sequence[int]) -> list[float]:
    """The same for readings that are all known: what shows later holds before, too."""
    phases: list[float | None] = []
    moves = [max(0, after - before) for before, after in pairwise(energies_uj)]
    for begin in range(0, len(times), MEMORY):
        end = min(begin + MEMORY, len(times))
        first = max(0, end - MEMORY)
        phases.append(find_phase(times[first:end], moves[first : end - 1]) if end - first >= ENOUGH else None)
    phase_s = next((phase_s for phase_s in phases if phase_s is not None), None)
    if phase_s is None:
        return list(times)
    found: list[float] = []
    for block, shown in enumerate(phases):
        phase_s = phase_s if shown is None else shown
        found += [t - (t - phase_s) % PERIOD_S for t in times[block * MEMORY : (block + 1) * MEMORY]]
    return found


def find_phase(times: Sequence[float], moves_uj: Sequence[int]) -> float | None:
    """A time at which a counter moved that moves every `PERIOD_S`, from what it moved between readings; None for one
    that shows no such beat."""
    t, moved_j = np.array(times), np.array(moves_uj, float) / 1e6
    begin, lengths_s = t[0], np.diff(t)
    if np.count_nonzero(moved_j) < np.minimum(1.0, lengths_s / PERIOD_S).sum() / 2:
        return None  # it stands still most of the time
    # Without a beat: it moves all the time, or once with every reading.
    always = max(1.0, round(float(lengths_s.mean()) / PERIOD_S)) * np.ones(len(lengths_s))
    without = min(_misfit(moved_j, lengths_s / PERIOD_S), _misfit(moved_j, always))
    phases = np.arange(PLACES) * (PERIOD_S / PLACES)
    moves = np.diff(np.floor((t - begin - phases[:, None]) / PERIOD_S), axis=1)
    misfits = np.array([_misfit(moved_j, of_phase) for of_phase in moves])
    least = misfits.min()
    if without - least < _BETTER:
        return None
    return float(begin + _middle(misfits < least + _ODD / 2) * (PERIOD_S / PLACES))


def _misfit(moved_j: Floats, moves: Floats) -> float:
    """How much power jumps from reading to reading if the counter moved so many times between them, and how often it
    was found to have moved or stood still against that."""
    odd = int(np.count_nonzero((moved_j > 0) != (moves > 0)))
    seen = moved_j > 0
    power = moved_j[seen] / np.where(moves > 0, moves, 1.0)[seen]
    return float(np.abs(np.diff(np.log(power))).sum()) + _ODD * odd


def _middle(good: NDArray[np.bool_]) -> float:
    """The middle of the places that are good, which follow each other round a circle."""
    angles = np.flatnonzero(good) * (2 * np.pi / len(good))
    return float(np.angle(np.exp(1j * angles).sum()) % (2 * np.pi) / (2 * np.pi) * len(good))
