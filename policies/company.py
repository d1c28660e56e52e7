"""Requests that can wait are held until they can run together, where that saves more than it delays.

What it saves, for how long to hold and who may join is computed (`policies.gathering`). Chains of calls that are held
send less, and more than usual when they are let go: so they are taken up and let go bit by bit, their objectives are
kept at the peak of their rate, and the engine is narrowed while tokens come late. While nothing comes, what was found
out holds. Before anything was answered those with patience are held for a while: runs that are let go one by one come
back one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from policies.gathering import CHAIN, KV_FULL, depth_of, gather, most_hold_s, stream_of, usual
from policies.interface import Decision, EngineSignals, Prices, Release, Signals, WorkflowSignals
from policies.narrow import counted, narrow

ITL_LATE = 0.85  # of the objective: what follows from letting go comes on top
LEAST_HOLD_S = 0.05
FIRST_S, FIRST_JOIN = 3.0, 0.5  # before anything was answered: for how long at most, and the part that may join
EASE = 0.1  # of what holds, a decision
WATCHED_S = 1.0  # a decision
FADE = 0.99  # of the peak, a decision
RECENT = 0.1  # of what is new, a decision

Occupied = Mapping[str, Sequence[float]]  # by engine, see `occupied`
Held = Mapping[str, tuple[float | None, float, float]]  # by workflow, see `hold`


class Company(BaseModel):
    """Hold requests of those with patience where it is `worth` a part of the engine's energy. Needs no privilege."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worth: Annotated[float, Field(ge=0, lt=1)] = 0.01

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]:
        """`state` is what is held and how engines are limited, which they are only where something was held."""
        state = state or {"held": {}, "limits": {}, "kv": {}}
        kv = occupied(signals, state["kv"])
        decision, held = hold(signals, self.worth, state["held"], kv)
        limits = narrow(signals, state["limits"]) if any(hold_s is not None for hold_s, *_ in held.values()) else {}
        kept = {name: list(limit) for name, limit in limits.items()}
        return replace(decision, engine_in_flight=counted(limits)), {"held": held, "limits": kept, "kv": kv}


def occupied(signals: Signals, before: Occupied) -> dict[str, list[float]]:
    """By engine the part of its cache in use and the requests that run, of about the last ten seconds: at a moment
    there may be one long request, and it says little of the others."""
    now = {n: (e.kv_usage, e.running) for n, e in signals.engines.items() if e.kv_usage is not None and e.running}
    return {
        **{name: list(pair) for name, pair in before.items() if name in signals.engines},
        **{
            name: [was + RECENT * (new - was) for was, new in zip(before.get(name, pair), pair, strict=True)]
            for name, pair in now.items()
        },
    }


def hold(signals: Signals, worth: float, before: Held, kv: Occupied) -> tuple[Decision, dict[str, Any]]:
    """The release rules, and by workflow for how long requests are held (None: nothing ever was), for which part of its
    own time one may join, and the peak of its rate; `before` is that of the last decision, `kv` is `occupied`."""
    known = {name: one for name, one in signals.workflows.items() if one.requests_per_s and one.served_s}
    peaks = {n: max(one.requests_per_s, FADE * before.get(n, (0, 0, 0.0))[2]) for n, one in known.items()}
    kv_each = max((usage / running for usage, running in kv.values()), default=0.0)
    holding = any(hold_s for hold_s, *_ in before.values())
    engines = [engine for engine in signals.engines.values() if engine.up]
    prices = next((engine.prices for engine in engines if engine.prices is not None), None)
    wanted, first, join = {}, {}, 0.0
    if (why := _why_not(engines, prices, signals.workflows)) or prices is None:
        reason = f"nothing is held: {why}"
    else:
        wanted, join, reason = _wanted(known, peaks, kv_each, len(engines), prices, worth / 2 if holding else worth)
        first = _first(signals.workflows, prices)
    after: dict[str, Any] = {}
    for name, one in signals.workflows.items():
        was_s, was_join, was_peak = before.get(name, (None, 0.0, 0.0))
        if was_s is None and name in first:
            after[name] = [first[name], FIRST_JOIN, 0.0]
            continue
        if was_s and name not in known:
            after[name] = [min(was_s, one.objective.patience_s), was_join, was_peak]
            continue
        after[name] = [_eased(one, wanted.get(name), was_s), join or was_join, peaks.get(name, FADE * was_peak)]
    release = {
        name: Release(hold_s, group=_group(signals.workflows[name]), join_part=part)
        for name, (hold_s, part, _) in after.items()
        if hold_s is not None and hold_s >= LEAST_HOLD_S
    }
    reasons = {
        f"release/{name}": f"held for {rule.hold_s:.2g} s at most; joins what is in flight where that keeps the"
        f" engine busy for no more than {rule.join_part:.0%} of the time that it takes itself"
        for name, rule in release.items()
    }
    if release and not known:
        reason = f"held {'as before' if before else 'at first'}: nothing was answered in the last minute"
    elif release and not wanted:
        reason = f"let go bit by bit: {reason}"
    in_flight: dict[str, int] = {}
    if any(name not in release for name in known):  # whose steps others would make longer
        in_flight = {n: usual(peaks[n] / max(1, len(engines)), known[n].served_s or 0.0) for n in release if n in known}
        reasons |= {f"in_flight/{n}": "no more than there would often be at once anyway" for n in in_flight}
    return Decision(in_flight, release=release, reason=reason, reasons=reasons), after


def _wanted(
    known: Mapping[str, WorkflowSignals],
    peaks: Mapping[str, float],
    kv_each: float,
    engines: int,
    prices: Prices,
    worth: float,
) -> tuple[dict[str, float], float, str]:
    """For how long to hold whom, what may join, and why. Empty where nothing is to be held."""
    if not known:
        return {}, 0.0, "nothing is held: nothing was answered in the last minute"
    streams = [stream_of(name, one, engines, prices) for name, one in known.items()]
    crowd = [(stream, peaks[stream.name] / engines) for stream in streams]
    most_s = {name: most_hold_s(one, crowd, prices, kv_each) for name, one in known.items()}
    streams = [replace(stream, hold_s=most_s[stream.name]) for stream in streams]
    patient = [stream for stream in streams if stream.hold_s >= LEAST_HOLD_S]
    if not patient:
        return {}, 0.0, "nothing is held: no objective leaves time for it"
    found = gather(patient, [stream for stream in streams if stream not in patient], prices)
    if found.part < worth:
        return {}, 0.0, f"nothing is held: it would save {found.part:.1%} of the engines' energy"
    reason = f"held for company: {found.together:.1f} requests together save about {found.part:.0%}"
    return {stream.name: stream.hold_s for stream in patient}, found.join, reason


def _first(workflows: Mapping[str, WorkflowSignals], prices: Prices) -> dict[str, float]:
    """For how long to hold whom before anything is known."""
    most_s = {name: most_hold_s(one, (), prices) for name, one in workflows.items() if one.served_s is None}
    return {name: min(FIRST_S, hold_s) for name, hold_s in most_s.items() if hold_s >= LEAST_HOLD_S}


def _eased(one: WorkflowSignals, wanted_s: float | None, was_s: float | None) -> float | None:
    """From what held towards what is wanted: up by `WATCHED_S`, down by `EASE`. Nobody knows how many come in so long
    before it has been watched for so long; a chain begins with the time that one of its calls takes."""
    if was_s is None:
        return wanted_s if wanted_s is None or depth_of(one) <= CHAIN else min(wanted_s, one.served_s or 0.0)
    hold_s = max(min(wanted_s or 0.0, was_s + WATCHED_S), (1 - EASE) * was_s)
    return min(hold_s, one.objective.patience_s)


def _why_not(engines: list[EngineSignals], prices: Prices | None, workflows: Mapping[str, WorkflowSignals]) -> str:
    if not any(one.objective.patience_s > 0 for one in workflows.values()):
        return "no workflow has patience"
    if prices is None or not prices.step_s:
        return "what a step costs is not known"
    if any(engine.kv_usage is not None and engine.kv_usage > KV_FULL for engine in engines):
        return "the engine's cache is full"
    late = [name for name, one in workflows.items() if _is_late(one.itl_p95_s, one.objective.itl_p95_s)]
    return f"tokens of {late[0]} come too slowly" if late else ""


def _is_late(seen_s: float | None, most_s: float | None) -> bool:
    return seen_s is not None and most_s is not None and seen_s > ITL_LATE * most_s


def _group(one: WorkflowSignals) -> Any:
    return "prefix" if (one.sharing or 0.0) > 0.2 else "step"
