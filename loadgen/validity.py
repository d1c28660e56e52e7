"""Whether a load was what it says: the generator was not the bottleneck, and little of it failed.

A generator that is late makes a server look fast, since it asks less of it than the schedule says. So requests that
were sent late, a generator that woke up late and one that was out of CPU make a load invalid. Lateness is measured
against the latencies that it disturbs: at most 20 ms, or 5 % of the median latency where that is more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.record import RequestRecord


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a valid load keeps to, at the 99th percentile where it is a time."""

    late_s: float = 0.02
    late_share: float = 0.05  # of the median latency
    cpu_share: float = 0.9  # of one core: a generator is one thread
    failed_share: float = 0.01


@dataclass(frozen=True, slots=True)
class Punctuality:
    """How late requests were sent, in seconds; null where none was."""

    p50_s: float | None
    p99_s: float | None
    max_s: float | None


def punctuality(requests: Sequence[RequestRecord]) -> Punctuality:
    delays = [request.start_delay_s for request in requests]
    if not delays:
        return Punctuality(None, None, None)
    p50, p99 = np.percentile(delays, (50, 99))
    return Punctuality(float(p50), float(p99), max(delays))


def reasons(
    requests: Sequence[RequestRecord],
    lag_p99_s: float | None = None,
    cpu_share: float | None = None,
    bounds: Bounds | None = None,
) -> tuple[str, ...]:
    """Why the load is not valid; empty for a valid one. Lag and CPU are null where there is no generator to watch."""
    bounds = bounds or Bounds()
    if not requests:
        return ("no request was sent",)
    served = [request.latency_s for request in requests if request.outcome == "ok"]
    found: list[str] = []
    failed = sum(request.outcome == "failed" for request in requests)
    if failed > bounds.failed_share * len(requests):
        found.append(f"{failed} of {len(requests)} requests failed, more than {bounds.failed_share:.0%}")
    late_s = max(bounds.late_s, bounds.late_share * float(np.median(served)) if served else 0.0)
    delay_s = punctuality(requests).p99_s
    if delay_s is not None and delay_s > late_s:
        found.append(f"requests were sent {delay_s * 1e3:.0f} ms late (p99), {late_s * 1e3:.0f} are allowed")
    if lag_p99_s is not None and lag_p99_s > late_s:
        found.append(f"the generator woke up {lag_p99_s * 1e3:.0f} ms late (p99), {late_s * 1e3:.0f} are allowed")
    if cpu_share is not None and cpu_share > bounds.cpu_share:
        found.append(f"the generator took {cpu_share:.0%} of a core, more than {bounds.cpu_share:.0%}: add workers")
    return tuple(found)
