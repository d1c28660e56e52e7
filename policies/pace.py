"""How many an engine may have in flight for tokens to come in time on a slower clock, and how slow it may be then.

With n in flight, the answer of each is interrupted by the prompts of the n that come meanwhile, and every step is
longer by what n tokens add to it. At the part p of the highest clock, where prompts take 1/p times as long and steps,
which wait for memory, are taken to last as long as before,

    time between tokens = step_s + n · (slower_s + prompt_s / (p · output))

so that the objective for it has room for n. Those beyond wait at the gate, at the expense of the objective for the
first token. That often has more room, and who waits there is seen at once and not in a percentile of the last minute:
the clock goes up as their wait takes up that room, and at the highest nobody is limited any more.
"""

from collections.abc import Iterator, Mapping
from math import inf

from policies.gathering import ITL_ROOM, KV_FULL, stream_of
from policies.interface import EngineSignals, QueueSignals, Signals
from policies.narrow import LEAST, in_flight
from policies.room import used_by_queue


def most_in_flight(signals: Signals, part: float) -> dict[str, int]:
    """By engine how many the objectives for the next tokens have room for at that part of the highest clock; none for
    an engine without prices, or without such an objective."""
    return {
        name: max(LEAST, round(room_s / (slower_s + interrupted_s / part)))
        for name, room_s, slower_s, interrupted_s in _rooms(signals)
    }


def least_for_crowd(signals: Signals) -> float:
    """The part of the highest clock at which the objectives for the next tokens have room for all in flight."""
    least = 0.0
    for name, room_s, slower_s, interrupted_s in _rooms(signals):
        left_s = room_s / max(LEAST, in_flight(signals.engines[name])) - slower_s
        least = max(least, interrupted_s / left_s if left_s > 0 else 1.0)
    return min(1.0, least)


def least_for_queues(signals: Signals, limits: Mapping[str, int], held_s: Mapping[str, float]) -> float:
    """The part of the highest clock that those need who wait for the `limits` of engines, or in an engine for its full
    cache; `held_s` is by workflow for how long the gate holds its requests anyway."""
    waits = [
        used_by_queue(one, queue, held_s.get(workflow, 0.0))
        for name, engine in signals.engines.items()
        for workflow, one in signals.workflows.items()
        for queue in _queues(workflow, engine, limits.get(name, inf))
    ]
    return min(1.0, max(waits, default=0.0))


def _queues(workflow: str, engine: EngineSignals, limit: float) -> Iterator[QueueSignals]:
    if workflow in engine.queues and in_flight(engine) >= limit:  # else they are held, and could go
        yield engine.queues[workflow]
    if engine.waiting and engine.running and (engine.kv_usage or 0.0) > KV_FULL:
        yield QueueSignals(round(engine.running), round(engine.waiting))


def _rooms(signals: Signals) -> Iterator[tuple[str, float, float, float]]:
    """By engine what the most pressed objective leaves beyond a step, in seconds, and what each in flight takes of it:
    of every step, and of interruptions at the highest clock."""
    known = {name: one for name, one in signals.workflows.items() if one.requests_per_s and one.served_s}
    up = {name: engine.prices for name, engine in signals.engines.items() if engine.up}
    for name, prices in up.items():
        if prices is None or not known:
            continue
        streams = [stream_of(workflow, one, len(up), prices) for workflow, one in known.items()]
        rate = sum(stream.rate for stream in streams)
        prompt_s = sum(stream.rate * stream.prompt_s for stream in streams) / rate
        slower_s = sum(stream.rate * stream.slower_s for stream in streams) / rate
        rooms = [
            (max(0.0, ITL_ROOM * asked_s - prices.step_s), prompt_s / one.output_tokens)
            for one in known.values()
            if (asked_s := one.objective.itl_p95_s) is not None and one.output_tokens
        ]
        if rooms:
            room_s, interrupted_s = min(rooms, key=lambda room: room[0] / (slower_s + room[1]))
            yield name, room_s, slower_s, interrupted_s
