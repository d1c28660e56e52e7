"""How much of the objectives is used up, and what a knob may make of what is left."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any

from policies.interface import Objective, QueueSignals, Signals, WorkflowSignals

USED_MOST, USED_LITTLE = 0.95, 0.8  # of an objective: give back, or take more
SETTLE_S = 30.0  # until percentiles of the last minute begin to show what a step did
BACK_S = 10.0  # between two steps back, and before a step down
UP = 0.1  # of the highest setting
SAME = UP / 2  # settings that are so near to each other are not worth a change
PROMPTS_MOST = 0.5
QUEUE_MOST = 0.5


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
                found.append((seen_s / most_s if most_s > 0 else inf, f"{what} of {name}"))
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


def least_for_caches(signals: Signals, part: float) -> float:
    """The part of a setting at which the fullest cache holds what is there now, at `part`, even if requests stay in it
    for as much longer as the setting is lower."""
    return part * max((e.kv_usage or 0.0 for e in signals.engines.values() if e.up), default=0.0)


def used_by_queue(one: WorkflowSignals, queue: QueueSignals, held_s: float) -> float:
    """How much those who wait at a limit take up of `QUEUE_MOST` of the objective for the first token: by their age,
    and by how long it takes until the last of them may go. For `held_s` the gate holds them anyway."""
    if one.objective.ttft_p95_s is None:
        return 0.0
    waiting = max(0.0, queue.queued - one.requests_per_s * held_s)
    wait_s = max(queue.oldest_s - held_s, waiting * (one.served_s or 0.0) / max(1, queue.in_flight))
    left_s = QUEUE_MOST * (one.objective.ttft_p95_s - held_s)
    return wait_s / left_s if left_s > 0 else 1.0


def _less(seconds: float | None, held_s: float) -> float | None:
    return None if seconds is None else max(0.0, seconds - held_s)


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A knob's setting as a part of its highest and when it was changed last; and what the objectives' use alone would
    have it be, and since when."""

    part: float = 1.0
    since: float = -inf
    allowed: float = 1.0
    allowed_since: float = -inf

    @classmethod
    def of(cls, state: Any) -> "Trimmed":
        return cls(*state) if state else cls()

    def state(self) -> list[float]:
        return [self.part, self.since, self.allowed, self.allowed_since]

    def step(self, now: float, used_part: float, least: float, needed: float = 0.0) -> "Trimmed":
        """Down at once as far as there is room if times grew with the square of it, for a slower engine takes at most
        so much longer, and queues grow with it; up by `UP`. Never below what is `needed` now: that is not learnt from
        percentiles, so it is given at once, and taken back as soon as `BACK_S` are over."""
        allowed, allowed_since = self.allowed, self.allowed_since
        if used_part > USED_MOST:
            if self.part < 1 and now - self.since >= BACK_S:
                allowed, allowed_since = min(1.0, self.part + UP), now
        elif used_part < USED_LITTLE and least < allowed >= self.part and now - allowed_since >= SETTLE_S:
            allowed, allowed_since = max(least, self.part * sqrt(used_part / USED_MOST)), now
        part = min(1.0, max(least, allowed, needed))
        kept = replace(self, allowed=allowed, allowed_since=allowed_since)
        if part < self.part and now - self.since < BACK_S:
            return kept
        if abs(part - self.part) < SAME and allowed == self.allowed and part < 1:
            return kept
        return kept if part == self.part else replace(kept, part=part, since=now)


def trim(before: Trimmed, signals: Signals, least: float) -> tuple[Trimmed, str] | None:
    """The setting from now on, and why; None where no workflow with an objective has been seen at work.

    While nothing comes there is nothing to be learnt, and it stays.
    """
    needed = max(least_for_prompts(signals), least_for_caches(signals, before.part))
    return trim_by(used(signals.workflows), needed, before, signals, least)


def trim_by(
    seen: tuple[float, str] | None, needed: float, before: Trimmed, signals: Signals, least: float
) -> tuple[Trimmed, str] | None:
    """The same by what is `seen` to be used of the objectives, and what part is `needed` whatever that is."""
    if seen is not None:
        after = before.step(signals.now, seen[0], least, needed)
        why = f"{seen[1]} take up {seen[0]:.0%} of the objective"
        return after, f"what is there now needs it; {why}" if after.part > max(after.allowed, least) + SAME else why
    if before.part < 1 and any(_asks(one.objective) for one in signals.workflows.values()):
        return before, "nothing has come in the last minute"
    return None


def _asks(objective: Objective) -> bool:
    return any(each is not None for each in (objective.ttft_p95_s, objective.itl_p95_s, objective.run_p95_s))
