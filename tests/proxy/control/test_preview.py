import pytest

from policies.interface import Decision, EngineSignals, Prices, QueueSignals, Release, Signals, WorkflowSignals
from proxy.control.preview import preview

PRICES = Prices(2.0, 0.016, 0.025, 0.00007, step_s=0.01, prompt_s=0.0001, spread=1.25, rest_w=100.0)
BUSY = {"search": QueueSignals(in_flight=4, queued=0)}


def signals(queues: dict[str, QueueSignals] | None = None) -> Signals:
    workflow = WorkflowSignals(requests_per_s=2.0, output_tokens=100.0)
    return Signals(0.0, {"search": workflow}, {"e1": EngineSignals(True, queues or {}, prices=PRICES)})


def test_company_saves_steps() -> None:
    found = preview(signals(), Decision(release={"search": Release(3.0)}))
    assert found is not None
    # alone each step costs 1 J beyond the rest; of a company of 1 + 2 · 3 each pays a seventh
    assert found.saved_w == pytest.approx(2 * 100 * 1.0 * (1 - 1 / 7))
    assert (found.low_w, found.high_w) == (pytest.approx(found.saved_w / 1.25), pytest.approx(found.saved_w * 1.25))


def test_who_has_company_already_gains_less() -> None:
    found = preview(signals(BUSY), Decision(release={"search": Release(3.0)}))
    assert found is not None and found.saved_w == pytest.approx(2 * 100 * (1 / 4 - 1 / 7))


def test_a_narrow_gate_costs() -> None:
    found = preview(signals(BUSY), Decision({"search": 1}))
    assert found is not None and found.saved_w == pytest.approx(-2 * 100 * (1 - 1 / 4))
    assert found.low_w < found.saved_w < found.high_w


def test_a_shorter_answer_saves_its_tokens() -> None:
    found = preview(signals(), Decision(max_tokens={"search": 40}))
    assert found is not None and found.saved_w == pytest.approx(2 * 60 * (0.025 + 1.0))


def test_what_prices_cannot_say_is_named() -> None:
    found = preview(signals(), Decision(power_limit_w={"h1/gpu:0": 300.0}, sm_clock_mhz={"h1/gpu:0": 900.0}))
    assert found is not None and (found.saved_w, found.uncounted) == (0.0, ("power_limit_w", "sm_clock_mhz"))
    assert preview(Signals(0.0), Decision()) is None
