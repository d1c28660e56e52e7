"""The last decisions with their reasons, and what was measured under the policy and without it. Sans-I/O."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from statistics import fmean
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
    """What the devices spent and what was served meanwhile, idle time and its joules included."""

    seconds: float = 0.0
    uj: int = 0
    requests: int = 0
    held: int = 0
    waited_s: float = 0.0
    output_tokens: int = 0

    def add(self, seconds: float, uj: int, ended: Sequence[Served]) -> None:
        self.seconds += seconds
        self.uj += uj
        self.requests += len(ended)
        self.held += sum(one.wait_s > _HELD_S for one in ended)
        self.waited_s += sum(one.wait_s for one in ended)
        self.output_tokens += sum(one.output_tokens or 0 for one in ended)

    def shown(self) -> dict[str, Any]:
        joules = self.uj / 1e6
        return {
            "seconds": self.seconds,
            "joules": joules,
            "requests": self.requests,
            "requests_held": self.held,
            "joules_per_request": joules / self.requests if self.requests else None,
            "joules_per_output_token": joules / self.output_tokens if self.output_tokens else None,
            "mean_wait_s": self.waited_s / self.requests if self.requests else None,
        }


@dataclass(slots=True)
class History:
    """Changes of the policy's mind, the newest last, and what was measured by who held the gateway."""

    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=_MOST))
    measured: dict[Standing, Measured] = field(default_factory=dict)

    def add(self, t: float, standing: Standing, decision: Decision, why: str = "", worth: Preview | None = None) -> bool:
        """Note a decision; True when it is another one than the last."""
        if self.entries and _same(last := self.entries[-1], standing, decision, why):
            last.last, last.times, last.preview, last.decision = t, last.times + 1, worth, decision
            return False
        self.entries.append(Entry(t, t, standing, decision, why, worth))
        return True

    def count(self, standing: Standing, seconds: float, uj: int, ended: Sequence[Served]) -> None:
        self.measured.setdefault(standing, Measured()).add(seconds, uj, ended)


def _same(entry: Entry, standing: Standing, decision: Decision, why: str) -> bool:
    """Whether nothing but the words changed: a reason may hold figures that move all the time."""
    return (entry.standing, entry.why, _acts(entry.decision)) == (standing, why, _acts(decision))


def _acts(decision: Decision) -> tuple[Mapping[str, Any], ...]:
    return (
        *(decision.in_flight, decision.engine_in_flight, decision.release, decision.priority),
        *(decision.max_tokens, decision.power_limit_w, decision.sm_clock_mhz),
    )


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


def mean_size(sizes: Sequence[int]) -> float | None:
    return fmean(sizes) if sizes else None
