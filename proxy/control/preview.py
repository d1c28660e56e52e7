"""What a decision is worth before anybody has tried it, by the fitted prices.

A request in a company of c pays 1/c of each of its steps, beyond what the devices draw at rest anyway:

    watts = rate · output tokens · (step_j - rest_w · step_s) · (1/c - 1/c')

c is the company now (requests in flight, at least the request itself); c' is what the decision makes of it: 1 + rate ·
hold_s where requests are held, never more than a limit lets in flight. A shorter answer saves its tokens, and its part
of their steps. What a cap or a clock saves is not in the prices: it is not counted, and the preview says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from policies.interface import Decision, Prices, Signals


@dataclass(frozen=True, slots=True)
class Preview:
    """Watts less than without the decision, all devices together, and between what they lie as far as prices are known.

    `uncounted` names what the decision does beside.
    """

    saved_w: float
    low_w: float
    high_w: float
    uncounted: tuple[str, ...] = ()


def preview(signals: Signals, decision: Decision) -> Preview | None:
    """The worth of a decision over the default; None where no prices, or no loads, are known."""
    engines = [engine for engine in signals.engines.values() if engine.prices is not None]
    known = {name: one for name, one in signals.workflows.items() if one.requests_per_s and one.output_tokens}
    if not engines or not known:
        return None
    prices = engines[0].prices
    assert prices is not None
    saved_w = 0.0
    for name, one in known.items():
        rate, output = one.requests_per_s, one.output_tokens or 0.0
        now = max(1.0, sum(q.in_flight for e in engines for q in e.queues.values()) / len(engines))
        then = now
        if (release := decision.release.get(name)) is not None:
            then = max(then, 1.0 + rate * release.hold_s / len(engines))
        limits = [decision.in_flight.get(name), *decision.engine_in_flight.values()]
        then = max(1.0, min([then, *(limit for limit in limits if limit is not None)]))
        step_j = _step_j(prices)
        saved_w += rate * output * step_j * (1 / now - 1 / then)
        if (most := decision.max_tokens.get(name)) is not None:
            saved_w += rate * max(0.0, output - most) * (prices.output_j + step_j / then)
    low_w, high_w = sorted((saved_w / prices.spread, saved_w * prices.spread))
    return Preview(saved_w, low_w, high_w, tuple(_uncounted(decision)))


def _step_j(prices: Prices) -> float:
    """What a step costs beyond the rest of the devices, which draw that whether it is made or not."""
    return max(0.0, prices.step_j - (prices.rest_w or 0.0) * prices.step_s)


def _uncounted(decision: Decision) -> Iterable[str]:
    for what in ("power_limit_w", "sm_clock_mhz", "priority"):
        if getattr(decision, what):
            yield what
