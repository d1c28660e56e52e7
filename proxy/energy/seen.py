"""How far the streams of an engine had come at each reading: content frames, in columns.

A thousand streams are marked ten times a second, and asked for at every edge of every window: as arrays that is cheap.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from proxy.energy.work import Progress

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MANY = 64  # streams among which one more or less makes no difference
_THIN_S = 0.5  # from mark to mark of many, whose windows are of seconds


class Seen:
    """The streams of one engine, each known by its `Progress.serial`. Times are Unix seconds and only rise."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._rows: list[tuple[Integers, Floats]] = []  # serials, in their order, and frames

    def mark(self, t: float, attempts: Sequence[Progress]) -> None:
        """Remember how far every running attempt has come; these come in the order of their serials."""
        last = self._times[-1] if self._times else -np.inf
        if t <= last or (t - last < _THIN_S and next(islice(_running(attempts), MANY, None), None) is not None):
            return
        if running := list(_running(attempts)):
            serials = np.array([progress.serial for progress in running], dtype=np.int64)
            self._times.append(t)
            self._rows.append((serials, np.array([progress.frames for progress in running], dtype=np.float64)))

    def frames_at(self, t: float, serials: Integers, first: Floats, ended: Floats, frames: Floats) -> Floats:
        """Frames seen until `t`, linear between marks, of attempts whose first frame came at `first`.

        `ended` is infinite for a running one, and `frames` is all of them.
        """
        index = bisect_left(self._times, t)
        before_t, before = first, np.zeros(serials.size)
        after_t, after = ended, frames
        if index:
            seen = self._row(index - 1, serials)
            before_t, before = np.where(seen > 0, self._times[index - 1], first), seen
        if index < len(self._times):
            seen = self._row(index, serials)
            after_t = np.where(seen > 0, self._times[index], ended)
            after = np.where(seen > 0, seen, frames)
        passed = parts(t, before_t, after_t)  # nothing, where nobody knows of an end: as far as it was seen
        return np.where(t >= ended, frames, before + (after - before) * passed)

    def latest(self, serials: Integers) -> tuple[float, Floats]:
        """The time of the last mark, and the frames of these attempts then; 0 for those that it does not have."""
        return (self._times[-1], self._row(-1, serials)) if self._times else (-np.inf, np.zeros(serials.size))

    def forget(self, horizon: float) -> None:
        """Nobody will ask for a time before `horizon`."""
        past = max(0, bisect_left(self._times, horizon) - 1)
        del self._times[:past], self._rows[:past]

    def _row(self, index: int, serials: Integers) -> Floats:
        marked, frames = self._rows[index]
        places = np.minimum(np.searchsorted(marked, serials), marked.size - 1)
        return np.where(marked[places] == serials, frames[places], 0.0)


def _running(attempts: Sequence[Progress]) -> Iterator[Progress]:
    return (progress for progress in attempts if progress.frames and progress.ended is None)


def parts(t: float | Floats, t0: Floats, t1: Floats) -> Floats:
    """`work.part` in columns: how much of each [t0, t1] lies before `t`, 0 to 1."""
    lengths_s = t1 - t0
    with np.errstate(over="ignore"):  # of a length that is next to nothing
        passed = np.divide(t - t0, lengths_s, out=np.zeros(np.broadcast(t, lengths_s).shape), where=lengths_s > 0)
    return np.where(lengths_s > 0, np.clip(passed, 0.0, 1.0), np.where(t >= t1, 1.0, 0.0))
