from math import exp

import pytest

from policies.interface import Decision, EngineSignals, Prices, Release, Signals, WorkflowSignals
from proxy.control.preview import preview

PRICES = Prices(2.0, 0.016, 0.025, 0.00007, step_s=0.01, prompt_s=0.0001, spread=1.25, rest_w=100.0)
BUSY_W = 2.0 / 0.01 - 100.0


def signals(rate: float = 0.7, **workflows: WorkflowSignals) -> Signals:
    """One engine, and a workflow whose requests are served for a second."""
    search = WorkflowSignals(requests_per_s=rate, served_s=1.0, output_tokens=100.0)
    return Signals(0.0, {"search": search, **workflows}, {"e1": EngineSignals(True, prices=PRICES)})


def saved_w(signals: Signals, decision: Decision) -> float:
    found = preview(signals, decision)
    assert found is not None
    assert (found.low_w, found.high_w) == pytest.approx(sorted((found.saved_w / 1.25, found.saved_w * 1.25)))
    return found.saved_w


def test_the_default_saves_nothing() -> None:
    assert saved_w(signals(), Decision()) == 0.0


def test_holding_saves_busy_time() -> None:
    rule = Decision(release={"search": Release(3.0)})
    assert saved_w(signals(), rule) == pytest.approx((1 - exp(-0.7) - 1 / (3 + 1 / 0.7)) * BUSY_W)
    hasty = WorkflowSignals(requests_per_s=2.0, served_s=1.0, output_tokens=100.0)
    assert 0 < saved_w(signals(hasty=hasty), rule) < 0.2 * saved_w(signals(), rule), "the engine is busy anyway"


def test_a_narrow_gate_costs() -> None:
    assert saved_w(signals(4.0), Decision({"search": 4})) == pytest.approx(-exp(-4) * BUSY_W)
    assert saved_w(signals(0.9), Decision(engine_in_flight={"e1": 1})) == pytest.approx((1 - exp(-0.9) - 0.9) * BUSY_W)


def test_a_shorter_answer_saves_its_tokens_and_its_time() -> None:
    shorter = Decision(max_tokens={"search": 40})
    expected = (exp(-0.7 * 0.4) - exp(-0.7)) * BUSY_W + 0.7 * 60 * 0.025
    assert saved_w(signals(), shorter) == pytest.approx(expected)
    assert saved_w(signals(), Decision(max_tokens={"search": 400})) == 0.0


def test_what_prices_cannot_say_is_named() -> None:
    found = preview(signals(), Decision(power_limit_w={"h1/gpu:0": 300.0}, sm_clock_mhz={"h1/gpu:0": 900.0}))
    assert found is not None and (found.saved_w, found.uncounted) == (0.0, ("power_limit_w", "sm_clock_mhz"))
    assert preview(Signals(0.0), Decision()) is None
