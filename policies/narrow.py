"""How many are in flight: all that come, as long as tokens come in time and the engine's cache holds them.

Keeping requests apart costs energy (4.5-7 times as much per run with one in flight as with sixteen on one H200, for
every workload), so this narrows for nothing else. It goes down by a fifth at a time, and up by a tenth.
"""

from collections.abc import Mapping

from policies.interface import EngineSignals, Signals
from policies.room import SETTLE_S, USED_LITTLE, USED_MOST, used_by_queue

LEAST = 4  # fewer would cost more than they can gain
DOWN, UP = 0.8, 1.1
BEAT_S = 5.0

Limits = Mapping[str, tuple[float, float]]  # engine -> limit, and when it was changed last


def narrow(signals: Signals, limits: Limits) -> Limits:
    """The limits from now on; an engine that is not named has none."""
    itl = [
        one.itl_p95_s / one.objective.itl_p95_s
        for one in signals.workflows.values()
        if one.itl_p95_s is not None and one.objective.itl_p95_s is not None
    ]
    slow = max(itl, default=0.0)
    found: dict[str, tuple[float, float]] = {}
    for name, engine in signals.engines.items():
        pressed = any(
            used_by_queue(signals.workflows[workflow], queue, signals.workflows[workflow].objective.patience_s) >= 1
            for workflow, queue in engine.queues.items()
            if workflow in signals.workflows
        )
        limit = _next(engine, limits.get(name), slow, pressed, signals.now)
        if limit is not None:
            found[name] = limit
    return found


def counted(limits: Limits) -> dict[str, int]:
    """The limits as whole requests."""
    return {name: round(limit) for name, (limit, _) in limits.items()}


def in_flight(engine: EngineSignals) -> int:
    """The requests of all workflows that an engine has."""
    return sum(queue.in_flight for queue in engine.queues.values())


def _next(
    engine: EngineSignals, limit: tuple[float, float] | None, slow: float, pressed: bool, now: float
) -> tuple[float, float] | None:
    if pressed and limit is not None:
        return UP * limit[0], now
    if slow > USED_MOST:
        if limit is None:
            there = in_flight(engine)
            return (max(LEAST, DOWN * there), now) if there > LEAST else None
        return (max(LEAST, DOWN * limit[0]), now) if now - limit[1] >= SETTLE_S else limit
    if limit is None or slow > USED_LITTLE or now - limit[1] < BEAT_S:
        return limit
    waiting = sum(queue.queued for queue in engine.queues.values())
    return (UP * limit[0], now) if waiting else None
