"""How much of the objectives is used up, and what a knob may make of what is left."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from policies.interface import Objective, Signals, WorkflowSignals

USED_MOST, USED_LITTLE = 0.95, 0.8  # of an objective: give back, or take more
SETTLE_S = 30.0  # until percentiles of the last minute begin to show what a step did
BACK_S = 10.0  # between two steps back
UP = 0.1  # of the highest setting
PROMPTS_MOST = 0.5
KV_MOST = 0.7


def used(workflows: Mapping[str, WorkflowSignals]) -> tuple[float, str] | None:
    """The largest part of any objective that its workflow's 95th percentile takes up, and whose it is; None where
    nothing that is asked for was seen yet.

    What the gate held is patience, and not the engine's time: it is taken off the first token and its objective.
    """
    found: list[tuple[float, str]] = []
    for name, one in workflows.items():
        asked, held_s = one.objective, min(one.wait_p95_s or 0.0, one.objective.patience_s)
        for what, seen_s, most_s in (
            ("first token", _less(one.ttft_p95_s, held_s), _less(asked.ttft_p95_s, held_s)),
            ("next tokens", one.itl_p95_s, asked.itl_p95_s),
            ("runs", one.run_p95_s, asked.run_p95_s),
        ):
            if seen_s is not None and most_s is not None:
                found.append((seen_s / most_s if most_s > 0 else float("inf"), f"{what} of {name}"))
    return max(found, default=None)


def least_for_prompts(signals: Signals) -> float:
    """The part of a setting at which prompts keep the busiest engine's SMs busy for `PROMPTS_MOST` of the time.

    They are computed as fast as the clock goes, and near saturation everything waits for them.
    """
    prices = [engine.prices for engine in signals.engines.values() if engine.prices is not None and engine.up]
    if not prices:
        return 0.0
    tokens = sum(one.requests_per_s * (one.prompt_tokens or 0.0) for one in signals.workflows.values())
    return tokens * prices[0].prompt_s / len(prices) / PROMPTS_MOST


def least_for_caches(signals: Signals) -> float:
    """The part of a setting at which the fullest cache holds what is there and a quarter more: requests stay in it for
    as much longer as they are slower, and those that find it full wait for them."""
    return max((e.kv_usage or 0.0 for e in signals.engines.values() if e.up), default=0.0) / KV_MOST


def _less(seconds: float | None, held_s: float) -> float | None:
    return None if seconds is None else max(0.0, seconds - held_s)


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A knob's setting as a part of its highest, and when it was changed last."""

    part: float = 1.0
    since: float = float("-inf")

    @classmethod
    def of(cls, state: Any) -> "Trimmed":
        return cls(*state) if state else cls()

    def state(self) -> list[float]:
        return [self.part, self.since]

    def step(self, now: float, used_part: float, least: float) -> "Trimmed":
        """Down at once as far as there is room if times grew with the square of it, for a slower engine takes at most
        so much longer, and queues grow with it; up by `UP`."""
        least = min(1.0, least)
        if self.part < least - UP / 2:
            return Trimmed(least, now)
        if used_part > USED_MOST:
            return Trimmed(min(1.0, self.part + UP), now) if self.part < 1 and now - self.since >= BACK_S else self
        if used_part < USED_LITTLE and self.part > least and now - self.since >= SETTLE_S:
            return Trimmed(max(least, self.part * sqrt(used_part / USED_MOST)), now)
        return self


def trim(before: Trimmed, signals: Signals, least: float) -> tuple[Trimmed, str] | None:
    """The setting from now on, and why; None where no workflow with an objective has been seen at work.

    While nothing comes there is nothing to be learnt, and it stays.
    """
    found = used(signals.workflows)
    if found is not None:
        least = max(least, least_for_prompts(signals), least_for_caches(signals))
        return before.step(signals.now, found[0], least), f"{found[1]} take up {found[0]:.0%} of the objective"
    if before.part < 1 and any(_asks(one.objective) for one in signals.workflows.values()):
        return before, "nothing has come in the last minute"
    return None


def _asks(objective: Objective) -> bool:
    return any(each is not None for each in (objective.ttft_p95_s, objective.itl_p95_s, objective.run_p95_s))
