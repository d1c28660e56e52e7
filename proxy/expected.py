"""How long requests of a kind are in flight, learnt from those that were."""

from collections import OrderedDict

MOST_KINDS = 1024  # workflow and step names are bounded, so this only ever guards
_WEIGHT = 0.2  # of the newest: about the last ten count


class Expected:
    """Mean seconds in flight by kind, the recent ones counting most. An unknown kind is taken to be as the others."""

    def __init__(self) -> None:
        self._mean_s: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._any_s = 0.0

    def learn(self, kind: tuple[str, str], served_s: float) -> None:
        """A request of this kind was in flight for so long."""
        self._any_s += _WEIGHT * (served_s - self._any_s) if self._mean_s else served_s
        mean_s = self._mean_s.get(kind, served_s)
        self._mean_s[kind] = mean_s + _WEIGHT * (served_s - mean_s)
        if len(self._mean_s) > MOST_KINDS:
            self._mean_s.popitem(last=False)

    def seconds(self, kind: tuple[str, str]) -> float:
        """What to expect of the next one of this kind; 0 while nothing at all is known."""
        return self._mean_s.get(kind, self._any_s)
