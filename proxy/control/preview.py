"""What a decision is worth before anybody has tried it, by the fitted prices.

A step costs the same whoever is in it, so what counts is how much of the time an engine is busy (f), beside tokens:

    f0 = 1 - exp(-A), A = Σ rate · served_s      now: requests come when they like (Poisson)
    f1 = f + (1 - f) · S / (W + 1/Λ)             Λ a second, served for S, are held for W; without them f as f0
    f1 ≥ A / limit                               a limit spreads the same work over more time
    saved watts = (f0 - f1) · (step_j / step_s - rest_w) + Σ rate · tokens cut off · output_j

A ceiling on answers shortens served_s in proportion. What a cap or a clock saves is not in the prices: it is not
counted, and the preview says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp

from policies.interface import Decision, Prices, Signals, WorkflowSignals


@dataclass(frozen=True, slots=True)
class Preview:
    """Watts less than without the decision, all engines together, and between what they lie as far as prices are known.

    `uncounted` names what the decision does beside.
    """

    saved_w: float
    low_w: float
    high_w: float
    uncounted: tuple[str, ...] = ()


def preview(signals: Signals, decision: Decision) -> Preview | None:
    """The worth of a decision over the default; None where no prices, or no loads, are known."""
    prices = [engine.prices for engine in signals.engines.values() if engine.prices is not None]
    known = {name: one for name, one in signals.workflows.items() if one.requests_per_s and one.served_s}
    if not prices or not known:
        return None
    engines = len(prices)
    before = {name: _work(one) / engines for name, one in known.items()}
    after = {name: work * _kept(known[name], decision.max_tokens.get(name)) for name, work in before.items()}
    busy = _busy(after, known, decision, engines)
    shorter_w = sum(
        one.requests_per_s * (one.output_tokens or 0.0) * (1 - _kept(one, decision.max_tokens.get(name)))
        for name, one in known.items()
    )
    steps_w = engines * (1 - exp(-sum(before.values())) - busy) * _busy_w(prices[0])
    saved_w = steps_w + shorter_w * prices[0].output_j
    low_w, high_w = sorted((saved_w / prices[0].spread, saved_w * prices[0].spread))
    return Preview(saved_w, low_w, high_w, tuple(_uncounted(decision)))


def _work(one: WorkflowSignals) -> float:
    """Requests of a workflow in flight, on average."""
    return one.requests_per_s * (one.served_s or 0.0)


def _kept(one: WorkflowSignals, most: int | None) -> float:
    """The part of an answer that a ceiling leaves."""
    return 1.0 if most is None or not one.output_tokens else min(1.0, most / one.output_tokens)


def _busy(work: Mapping[str, float], known: Mapping[str, WorkflowSignals], decision: Decision, engines: int) -> float:
    """The part of the time that an engine is busy under the decision."""
    held = {name: rule.hold_s for name, rule in decision.release.items() if name in work and rule.hold_s > 0}
    busy = 1 - exp(-sum(one for name, one in work.items() if name not in held))
    if held:
        rate = sum(known[name].requests_per_s for name in held) / engines
        served_s = sum(work[name] for name in held) / rate
        busy += (1 - busy) * min(1.0, served_s / (min(held.values()) + 1 / rate))
    spread = [work[name] / limit for name, limit in decision.in_flight.items() if name in work and limit]
    spread += [sum(work.values()) / limit for limit in decision.engine_in_flight.values() if limit]
    return max([busy, *(min(1.0, one) for one in spread)])


def _busy_w(prices: Prices) -> float:
    """What an engine that steps draws beyond the rest of its devices, tokens aside."""
    return max(0.0, prices.step_j / prices.step_s - (prices.rest_w or 0.0)) if prices.step_s else 0.0


def _uncounted(decision: Decision) -> Iterable[str]:
    for what in ("power_limit_w", "sm_clock_mhz", "priority"):
        if getattr(decision, what):
            yield what
