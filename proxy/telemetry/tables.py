"""Series kept as plain numbers under tuples of label values, and shown to Prometheus when it asks.

`prometheus_client` keeps floats behind locks; here totals stay integers, so that joules agree with the ledger however
many are added, and a stream can add all its intervals at once.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]
EXEMPLAR_CHARACTERS = 128  # OpenMetrics: the names and values of an exemplar's labels together


class Totals:
    """A counter in integers; what is shown is the integer divided by `per_unit`."""

    def __init__(self, name: str, doc: str, labels: Sequence[str], per_unit: int = 1) -> None:
        self.name, self.doc, self.labels, self.per_unit = name, doc, labels, per_unit
        self.totals: dict[Labels, int] = {}

    def add(self, key: Labels, amount: int = 1) -> None:
        """Add to one series; 0 makes it visible. Raises ValueError for a negative amount: a counter never falls."""
        if amount < 0:
            raise ValueError(f"{self.name}{key}: {amount} is negative, a counter can only grow")
        self.totals[key] = self.totals.get(key, 0) + amount

    def families(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self.name, self.doc, labels=self.labels)
        for key, total in self.totals.items():
            family.add_metric(key, total / self.per_unit)
        yield family


class Spread:
    """Counts of values between upper bounds, with their sum. Kept by one stream, or by one series of a histogram."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> int:
        """Count a value; returns the index of its bucket."""
        index = bisect_left(self.bounds, value)
        self.counts[index] += 1
        self.total += value
        return index

    def take(self, other: "Spread") -> None:
        """Move everything that `other` holds into this one; `other` is empty afterwards."""
        for index, count in enumerate(other.counts):
            self.counts[index] += count
        self.total += other.total
        other.counts = [0] * len(other.counts)
        other.total = 0.0


class Histogram:
    """A histogram with upper bounds `bounds`, +Inf understood; the latest exemplar of every bucket is kept."""

    def __init__(self, name: str, doc: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self.name, self.doc, self.labels, self.bounds = name, doc, labels, tuple(bounds)
        self._les = [*map(floatToGoString, self.bounds), "+Inf"]
        self._series: dict[Labels, Spread] = {}
        self._exemplars: dict[tuple[Labels, int], Exemplar] = {}

    def series(self, key: Labels) -> Spread:
        spread = self._series.get(key)
        if spread is None:
            spread = self._series[key] = Spread(self.bounds)
        return spread

    def spreads(self) -> Mapping[Labels, Spread]:
        """All series as they are."""
        return self._series

    def observe(self, key: Labels, value: float) -> None:
        (self._series.get(key) or self.series(key)).observe(value)

    def observe_with(self, key: Labels, value: float, exemplar: dict[str, str], at: float) -> None:
        """Observe, and remember `exemplar` (of Unix time `at`) unless it is longer than OpenMetrics allows.

        It is left out rather than shortened: half an id finds nothing.
        """
        bucket = self.series(key).observe(value)
        if sum(len(name) + len(text) for name, text in exemplar.items()) <= EXEMPLAR_CHARACTERS:
            self._exemplars[key, bucket] = Exemplar(exemplar, value, at)

    def families(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self.name, self.doc, labels=self.labels)
        for key, spread in self._series.items():
            family.add_metric(key, list(self._buckets(key, spread)), spread.total)
        yield family

    def _buckets(self, key: Labels, spread: Spread) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
        below = 0
        for index, count in enumerate(spread.counts):
            below += count
            exemplar = self._exemplars.get((key, index))
            yield (self._les[index], below, exemplar) if exemplar else (self._les[index], below)
