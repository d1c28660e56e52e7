"""Requests that can wait are held until they can run together, where that saves more than it delays.

What a step costs is shared by all that are in flight, so what counts is how much of the time the engine is busy at all:

    f0 = 1 - exp(-Σ λ·S)                      released at once: Poisson arrivals, λ a second, each served for S seconds
    f1 = (S + X) / (X + x + 1/Λ + W)          held for W seconds, joining what is in flight where that takes x more
    saved watts = (f0 - f1) · (step_j/step_s - rest_w)

Λ is the rate of those that have patience. A batch of n = 1 + Λ·W leaves every W + 1/Λ seconds and is served for S; then
others join it as long as each comes within x of the one before, which they do with probability p = 1 - exp(-Λ·x):
p/(1-p) of them, X seconds in all. The busy time of those without patience is not ours to save: both parts are of what
they leave. Where batches would run into one another (f1 near 1) nothing is saved and nothing is held: so it ends by
itself near saturation.

One that joins x seconds after the last puts off the next batch by 1/Λ, and keeps the engine busy for x: it pays where
x < S/n, its fair share of a batch of its own. `EAGER` of S is put on top: in simulations over 0.5-3 s of patience it
cost less than a fiftieth of the saving, if anything, and took up to a tenth off the latency. Where runs are chains of
calls, a batch comes back as a batch: the calls that wait for it arrive together, the engine rests for W in every S + W
seconds, and f1 is taken to be halfway to that; what is let in late comes back late, so that the part of S stays within
`CHAIN_JOIN`.

The prompts of a batch are computed one after the other: that delays the first token of the last by their time c each,
and interrupts the answers of the first. W is at most what leaves the objectives room for that: n, of chains n + Λ·S
since they come back together, and twice the root of it more, as chance may have it.

Whoever runs beside a batch gets its tokens later, by some percent for each companion. Where a workflow that is not held
is at work too, those that are held stay within what would often be in flight of them anyway: a + 2·√a, with a = λ·S.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil, exp, inf, sqrt
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from policies.interface import Decision, EngineSignals, Prices, Release, Signals, WorkflowSignals

EAGER = 0.15
CHAIN = 1.5  # calls in a row
MOST_JOIN = 0.8  # of the time that a request is expected to take
CHAIN_JOIN = 0.5, 0.32  # in chains, of an engine that is never busy, and of one that always is
TTFT_ROOM, ITL_ROOM = 0.95, 0.9  # of an objective may be used up: the means that are known are exceeded now and then
CROWDED = 1.5  # a step of many takes so much longer than one of few
ITL_LATE = 0.8  # of the objective: what follows from letting go comes on top
LEAST_HOLD_S = 0.05
# Chains that are held send less, and more than usual when they are let go: the objectives are kept at the peak.
EASE = 0.1  # of what holds, a decision
FADE = 0.99  # of the peak, a decision
KV_FULL = 0.8
MOST_SHARED = 0.99


@dataclass(frozen=True, slots=True)
class Stream:
    """A workflow's requests at one engine: how many a second, how long in flight, how many of a run in a row."""

    name: str
    rate: float
    served_s: float
    depth: float
    hold_s: float  # how long they may be held
    prompt_s: float  # of computing a prompt
    tokens_w: float  # watts that its tokens cost, in company or not


@dataclass(frozen=True, slots=True)
class Gathering:
    """What comes of holding: requests in a batch, and the engine's watts with it and without."""

    together: float
    join: float  # the part of its own time by which one may keep the engine busy for longer
    saved_w: float
    default_w: float

    @property
    def part(self) -> float:
        return self.saved_w / self.default_w if self.default_w > 0 else 0.0


class Company(BaseModel):
    """Hold requests of those with patience where it is `worth` a part of the engine's energy. Needs no privilege."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worth: Annotated[float, Field(ge=0, lt=1)] = 0.01

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]:
        """`state` is, by workflow, for how long requests are held (None: nothing ever was), for which part of its own
        time one may join, and the peak of its rate."""
        before: Mapping[str, tuple[float | None, float, float]] = state or {}
        known = {name: one for name, one in signals.workflows.items() if one.requests_per_s and one.served_s}
        peaks = {n: max(one.requests_per_s, FADE * before.get(n, (0, 0, 0.0))[2]) for n, one in known.items()}
        wanted, join, reason = self._wanted(signals, known, peaks, any(hold_s for hold_s, *_ in before.values()))
        after: dict[str, tuple[float | None, float, float]] = {}
        for name, one in signals.workflows.items():
            was_s, was_join, was_peak = before.get(name, (None, 0.0, 0.0))
            hold_s = eased(wanted.get(name, 0.0), was_s)
            hold_s = min(hold_s, one.objective.patience_s) if hold_s or was_s else None
            after[name] = hold_s, join or was_join, peaks.get(name, FADE * was_peak)
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
        if release and not wanted:
            reason = f"let go bit by bit: {reason}"
        in_flight: dict[str, int] = {}
        if any(name not in release for name in known):  # whose steps others would make longer
            engines = max(1, sum(engine.up for engine in signals.engines.values()))
            in_flight = {n: usual(peaks[n] / engines, known[n].served_s or 0.0) for n in release if n in known}
            reasons |= {f"in_flight/{n}": "no more than there would often be at once anyway" for n in in_flight}
        decision = Decision(in_flight, release=release, reason=reason, reasons=reasons)
        return decision, {name: list(values) for name, values in after.items()}

    def _wanted(
        self, signals: Signals, known: Mapping[str, WorkflowSignals], peaks: Mapping[str, float], holding: bool
    ) -> tuple[dict[str, float], float, str]:
        """For how long to hold whom, what may join, and why. Empty where nothing is to be held."""
        engines = [engine for engine in signals.engines.values() if engine.up]
        prices = next((engine.prices for engine in engines if engine.prices is not None), None)
        if why := _why_not(engines, prices, known):
            return {}, 0.0, f"nothing is held: {why}"
        assert prices is not None
        streams = [stream_of(name, one, len(engines), prices) for name, one in known.items()]
        at_peak = [replace(stream, rate=peaks[stream.name] / len(engines)) for stream in streams]
        most_s = {name: most_hold_s(one, at_peak, prices) for name, one in known.items()}
        streams = [replace(stream, hold_s=most_s[stream.name]) for stream in streams]
        patient = [stream for stream in streams if stream.hold_s >= LEAST_HOLD_S]
        if not patient:
            return {}, 0.0, "nothing is held: no objective leaves time for it"
        found = gather(patient, [stream for stream in streams if stream not in patient], prices)
        if found.part < (self.worth / 2 if holding else self.worth):
            return {}, 0.0, f"nothing is held: it would save {found.part:.1%} of the engines' energy"
        reason = f"held for company: {found.together:.1f} requests together save about {found.part:.0%}"
        return {stream.name: stream.hold_s for stream in patient}, found.join, reason


def usual(rate: float, served_s: float) -> int:
    """Requests in flight that are exceeded once in twenty or forty times when all are released at once."""
    mean = rate * served_s
    return ceil(mean + 2 * sqrt(mean))


def eased(wanted_s: float, before_s: float | None) -> float:
    """From what held before towards what is wanted, a tenth at a time; at once where nothing was held yet (None)."""
    if before_s is None:
        return wanted_s
    return min(max(wanted_s, (1 - EASE) * before_s), (1 + EASE) * before_s + EASE)


def stream_of(name: str, one: WorkflowSignals, engines: int, prices: Prices) -> Stream:
    rate, output, prompt = one.requests_per_s / engines, one.output_tokens or 0.0, one.prompt_tokens or 0.0
    shared = min(one.sharing or 0.0, MOST_SHARED)
    context = output * (prompt / (1 - shared) + output / 2)  # what was found in the cache is read all the same
    tokens_j = prices.prompt_j * prompt + prices.output_j * output + prices.context_j * context
    patience_s = one.objective.patience_s
    return Stream(
        name, rate, one.served_s or 0.0, one.depth or 1.0, patience_s, prices.prompt_s * prompt, rate * tokens_j
    )


def most_hold_s(one: WorkflowSignals, streams: Iterable[Stream], prices: Prices) -> float:
    """Patience, as far as the objectives for tokens leave time when all streams that have patience come in batches.

    (The objective for a run is kept ticket by ticket: the gate holds none for longer than its run can spare.)
    """
    asked = one.objective
    batched = [stream for stream in streams if stream.hold_s > 0]
    rate = sum(stream.rate for stream in batched)
    prompt_s = sum(stream.rate * stream.prompt_s for stream in batched) / rate if rate else 0.0
    returning = sum(stream.rate * stream.served_s for stream in batched if stream.depth > CHAIN)
    engine_s = max(0.0, (one.ttft_p95_s or 0.0) - (one.wait_p95_s or 0.0))  # what it takes for a first token now

    def fits(hold_s: float) -> bool:
        together = 1 + rate * hold_s + returning
        prompts_s = (together + 2 * sqrt(together)) * prompt_s
        if asked.ttft_p95_s is not None and hold_s + max(prompts_s, engine_s) > TTFT_ROOM * asked.ttft_p95_s:
            return False
        if asked.itl_p95_s is None or not one.output_tokens:
            return True
        return CROWDED * prices.step_s + prompts_s / one.output_tokens <= ITL_ROOM * asked.itl_p95_s

    return _largest(fits, asked.patience_s)


def _largest(fits: Callable[[float], bool], most: float) -> float:
    """The largest value up to `most` that fits, where all below one that fits do; 0 where none does."""
    if fits(most):
        return most
    least = 0.0
    for _ in range(20):
        middle = (least + most) / 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


def gather(patient: Iterable[Stream], others: Iterable[Stream], prices: Prices) -> Gathering:
    """What holding the patient ones comes to. At least one is patient, and has a rate above 0."""
    patient, others = sorted(patient, key=lambda stream: stream.hold_s), list(others)
    rate = sum(stream.rate for stream in patient)
    served_s = sum(stream.rate * stream.served_s for stream in patient) / rate
    depth = rate / sum(stream.rate / stream.depth for stream in patient)
    every_s, arriving = inf, 0.0  # the first that is due takes all with it
    for stream in patient:
        arriving += stream.rate
        every_s = min(every_s, stream.hold_s + 1 / arriving)
    together = max(1.0, rate * every_s)
    join = min(MOST_JOIN, 1 / together + EAGER)
    left = exp(-sum(stream.rate * stream.served_s for stream in others))
    busy = left * (1 - exp(-rate * served_s))
    if depth > CHAIN:
        join = CHAIN_JOIN[0] + (CHAIN_JOIN[1] - CHAIN_JOIN[0]) * busy
    held = _held(rate, served_s, every_s, join * served_s)
    if depth > CHAIN:
        held = min(held, (held + served_s / (served_s + patient[0].hold_s)) / 2)
    rest_w = prices.rest_w or 0.0
    working_w = max(0.0, prices.step_j / prices.step_s - rest_w)
    default_w = rest_w + (1 - left + busy) * working_w + sum(stream.tokens_w for stream in (*patient, *others))
    return Gathering(together, join, (busy - left * held) * working_w, default_w)


def _held(rate: float, served_s: float, every_s: float, join_s: float) -> float:
    """The part of the time in which the engine is busy with batches and with who joins them (f1)."""
    within = 1 - exp(-rate * join_s)
    if within < 1e-6:
        return min(1.0, served_s / every_s)
    joined_s = (1 / rate - join_s * (1 - within) / within) * within / max(1 - within, 1e-12)
    return min(1.0, (served_s + joined_s) / (joined_s + join_s + every_s))


def _why_not(engines: list[EngineSignals], prices: Prices | None, known: Mapping[str, WorkflowSignals]) -> str:
    if not any(one.objective.patience_s > 0 for one in known.values()):
        return "no workflow that has requests has patience"
    if prices is None or not prices.step_s:
        return "what a step costs is not known"
    if any(engine.kv_usage is not None and engine.kv_usage > KV_FULL for engine in engines):
        return "the engine's cache is full"
    late = [name for name, one in known.items() if _is_late(one.itl_p95_s, one.objective.itl_p95_s)]
    return f"tokens of {late[0]} come too slowly" if late else ""


def _is_late(seen_s: float | None, most_s: float | None) -> bool:
    return seen_s is not None and most_s is not None and seen_s > ITL_LATE * most_s


def _group(one: WorkflowSignals) -> Any:
    return "prefix" if (one.sharing or 0.0) > 0.2 else "step"
