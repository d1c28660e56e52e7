"""The last decisions with their reasons, and what was measured under the policy and without it. Sans-I/O."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from math import isclose
from typing import Any

from policies.interface import Decision
from proxy.control.learner import Served
from proxy.control.preview import Preview

_MOST = 100
_TOGETHER_S = 0.02  # who left the gate within so long of the one before left with it
_HELD_S = 0.005  # whoever waited longer was held


class Standing(StrEnum):
    """Who holds the gateway."""

    ACTING = "acting"  # the policy
    DRY_RUN = "dry_run"  # the default; the policy is asked, and its answer is written down
    BACKED_OFF = "backed_off"  # the default: objectives were missed under the policy
    REPLACED = "replaced"  # the default: the policy raised, was late, or answered with something else


@dataclass(slots=True)
class Entry:
    """A decision for as long as it stayed the same: from `t` on, `times` times until `last` (Unix seconds)."""

    t: float
    last: float
    standing: Standing
    decision: Decision
    why: str
    preview: Preview | None
    times: int = 1

    def shown(self) -> dict[str, Any]:
        decision = asdict(self.decision)
        reason, reasons = decision.pop("reason"), decision.pop("reasons")
        return {
            "t": self.t,
            "last": self.last,
            "times": self.times,
            "standing": self.standing.value,
            "why": self.why or None,
            "reason": reason,
            "reasons": reasons,
            "decision": {name: value for name, value in decision.items() if value},
            "preview": None if self.preview is None else asdict(self.preview),
        }


@dataclass(slots=True)
class Measured:
    """What the devices spent, and what was answered meanwhile; idle time and its joules are in it."""

    seconds: float = 0.0
    uj: int = 0
    requests: int = 0
    held: int = 0
    waited_s: float = 0.0
    output_tokens: int = 0

    def grow(self, before: "Measured", now: "Measured") -> None:
        """Add what came between two moments of sums that only grow."""
        for one in fields(self):
            grown = getattr(now, one.name) - getattr(before, one.name)
            setattr(self, one.name, getattr(self, one.name) + max(0, grown))

    def shown(self) -> dict[str, Any]:
        joules = self.uj / 1e6
        return {
            "seconds": self.seconds,
            "joules": joules,
            "requests": self.requests,
            "requests_held": self.held,
            "output_tokens": self.output_tokens,
            "joules_per_request": joules / self.requests if self.requests else None,
            "joules_per_output_token": joules / self.output_tokens if self.output_tokens else None,
            "mean_wait_s": self.waited_s / self.requests if self.requests else None,
        }


@dataclass(slots=True)
class History:
    """Changes of the policy's mind, the newest last, and what was measured under each policy and the default."""

    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=_MOST))
    measured: dict[str, Measured] = field(default_factory=dict)
    _sums: Measured | None = None

    def add(
        self, t: float, standing: Standing, decision: Decision, why: str = "", worth: Preview | None = None
    ) -> bool:
        """Note a decision; True when it is another one than the last, by more than small figures."""
        if self.entries:
            last = self.entries[-1]
            if (last.standing, last.why) == (standing, why) and _alike(_acts(last.decision), _acts(decision)):
                last.last, last.times, last.preview, last.decision = t, last.times + 1, worth, decision
                return False
        self.entries.append(Entry(t, t, standing, decision, why, worth))
        return True

    def count(self, policy: str, sums: Measured) -> None:
        """Everything since this was last told went under this policy; `sums` are of the gateway's whole life."""
        if self._sums is not None:
            self.measured.setdefault(policy, Measured()).grow(self._sums, sums)
        self._sums = sums


def _acts(decision: Decision) -> dict[str, Any]:
    acts = asdict(decision)
    del acts["reason"], acts["reasons"]
    return acts


def _alike(one: Any, other: Any) -> bool:
    """Whether figures differ by less than a fifth, and all else by nothing."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(value, other[name]) for name, value in one.items())
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=0.2, abs_tol=0.01)
    return one == other


def groups(served: Sequence[Served]) -> list[int]:
    """How many left the gate together, of those that were held there: one number a group, in order of time."""
    left = sorted(one.dispatched for one in served if one.dispatched is not None and one.wait_s > _HELD_S)
    sizes: list[int] = []
    for index, t in enumerate(left):
        if index and t - left[index - 1] <= _TOGETHER_S:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes
