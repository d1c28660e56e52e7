"""What growing counters did in the last minute: looked at now and then, never told of single events."""

from collections import deque
from collections.abc import Sequence

from proxy.control.learner import WINDOW_S

_EVERY_S = 5.0


class Recent:
    """The growth of some cumulative counts over about the last minute; a count that falls begins anew."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, tuple[float, ...]]] = deque()

    def grown(self, now: float, counts: Sequence[float]) -> tuple[float, ...]:
        """Take the counts in as they are at `now`, and say by how much each has grown."""
        counts = tuple(counts)
        looks = self._looks
        if looks and any(new < old for new, old in zip(counts, looks[-1][1], strict=True)):
            looks.clear()
        if not looks or now - looks[-1][0] >= _EVERY_S:
            looks.append((now, counts))
        while len(looks) > 1 and looks[1][0] <= now - WINDOW_S:
            looks.popleft()
        return tuple(new - old for new, old in zip(counts, looks[0][1], strict=True))


def quantile(q: float, bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """The quantile of a histogram with these upper bounds and counts (one more, of what lies above them all), evenly
    spread within a bucket as Prometheus' `histogram_quantile` has it; None of an empty one."""
    rank, below = q * sum(counts), 0.0
    if not rank:
        return None
    for index, bound in enumerate(bounds):
        if counts[index] and below + counts[index] >= rank:
            low = bounds[index - 1] if index else 0.0
            return low + (bound - low) * (rank - below) / counts[index]
        below += counts[index]
    return bounds[-1]
