"""Whether a policy may act: not while objectives are missed under it, and not for a while after it failed.

Sans-I/O. An objective is a 95th percentile, so one request in twenty may be late. It counts as missed when so many are
that chance would bring it about less than once in a hundred times: the tail of the binomial distribution.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb, inf

from policies.interface import EngineSignals, Objective, WorkflowSignals
from proxy.control.learner import Learner

LATE_PART = 0.05  # of the requests within an objective of p95
REASONS = ("raised", "late", "not_a_decision", "objective")  # why the default takes a policy's place
_CHANCE = 0.01
_LOOK_BACK_S = 30.0
_FRESH_S = 300.0  # what the default was worth so long ago says nothing any more
_PAUSE_S = 10.0  # the first; then twice as long each time
_PAUSE_LATE_S = 2.0  # of one that was late: the machine may have had something else to do
_LONGEST_PAUSE_S = 600.0


@dataclass(frozen=True, slots=True)
class Late:
    """Of so many requests (or runs) so many missed their objective."""

    late: int = 0
    of: int = 0

    def is_missed(self, part: float = LATE_PART) -> bool:
        """Whether more than `part` are late, beyond what chance explains."""
        return self.late > part * self.of and tail(self.late, self.of, part) < _CHANCE


def tail(late: int, of: int, part: float) -> float:
    """The probability of `late` or more in `of` trials, each late with probability `part`."""
    return 1.0 - sum(comb(of, k) * part**k * (1 - part) ** (of - k) for k in range(late))


def missed(
    objective: Objective, learner: Learner, workflow: str, engines: Iterable[EngineSignals], since: float
) -> dict[str, Late]:
    """By kind of objective, of the requests of a workflow that came since then, and of those that wait, how many are
    late already."""
    served = [one for one in learner.since(workflow, since) if one.received >= since]
    found: dict[str, Late] = {}
    if (most_s := objective.ttft_p95_s) is not None:
        firsts = [s for one in served if (s := one.ttft_s) is not None]
        overdue = sum(1 for e in engines if (q := e.queues.get(workflow)) is not None and q.oldest_s > most_s)
        found["ttft_p95"] = Late(sum(s > most_s for s in firsts) + overdue, len(firsts) + overdue)
    if (most_s := objective.itl_p95_s) is not None:
        means = [s for one in served if (s := one.itl_s) is not None]
        found["itl_p95"] = Late(sum(s > most_s for s in means), len(means))
    if (most_s := objective.run_p95_s) is not None:
        runs = learner.runs_since(workflow, since)
        found["run_p95"] = Late(sum(s > most_s for s in runs), len(runs))
    return found


class Guard:
    """Tells when the default takes a policy's place, and why. Times are passed in, in Unix seconds."""

    def __init__(self) -> None:
        self._acting = False
        self._since = -inf  # when the policy, or the default in its place, began to hold
        self._until = -inf  # the end of the last pause
        self._failures = 0
        self._parts: dict[tuple[str, str], tuple[float, float]] = {}  # (workflow, kind) -> when, late by default
        self.why = ""  # of the pause that lasts, empty without one
        self.reason = ""  # the kind of it, one of REASONS

    def failed(self, reason: str, why: str, now: float) -> None:
        """The policy failed, or must not go on: the default holds until the pause is over, twice as long each time."""
        first_s = _PAUSE_LATE_S if reason == "late" else _PAUSE_S
        pause_s = min(first_s * 2**self._failures, _LONGEST_PAUSE_S)
        if now - self._until > 10 * pause_s:  # it went well for long
            self._failures, pause_s = 0, first_s
        self._failures = min(self._failures + 1, 20)
        self.reason, self.why = reason, why
        self._acting, self._since, self._until = False, now, now + pause_s

    def is_pausing(self, now: float) -> bool:
        """Whether the default holds. The policy acts again once this is False."""
        if self.why and now >= self._until:
            self.why = ""
        return bool(self.why)

    def look(
        self,
        workflows: Mapping[str, WorkflowSignals],
        engines: Mapping[str, EngineSignals],
        learner: Learner,
        acts: bool,
        now: float,
    ) -> bool:
        """Compare with the objectives; True when the policy has just been stopped because of them.

        `acts` is whether what the policy decided differs from the default. What the default misses just as often is not
        the policy's doing.
        """
        acts = acts and not self.is_pausing(now)
        if acts != self._acting:
            self._acting, self._since = acts, now
        since = max(self._since, now - _LOOK_BACK_S)
        for name, signals in workflows.items():
            for kind, late in missed(signals.objective, learner, name, engines.values(), since).items():
                if not acts:
                    self._parts[name, kind] = (now, late.late / late.of if late.is_missed() else 0.0)
                elif late.is_missed(self._by_default(name, kind, now)):
                    self.failed("objective", f"{name} misses its {kind}: {late.late} of {late.of} are late", now)
                    return True
        return False

    def _by_default(self, workflow: str, kind: str, now: float) -> float:
        """The part of the requests that may be late: what the objective allows, or what is late anyway."""
        seen, part = self._parts.get((workflow, kind), (now, 0.0))
        return max(LATE_PART, part) if now - seen <= _FRESH_S else LATE_PART
