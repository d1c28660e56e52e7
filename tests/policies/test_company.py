import json
from collections.abc import Callable
from dataclasses import replace
from math import exp
from typing import Any

import pytest

from policies.company import Company, occupied
from policies.gathering import most_hold_s, stream_of
from policies.interface import Decision, EngineSignals, Objective, Prices, Signals, WorkflowSignals

Search = Callable[..., WorkflowSignals]
Make = Callable[..., Signals]


PRICES = Prices(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, rest_w=123.0)
HELD = {"held": {"search": [3.0, 0.5, 0.0]}, "limits": {}, "kv": {}}


def decide(signals: Signals, state: Any = None) -> Decision:
    decision, kept = Company().decide(signals, state)
    assert json.loads(json.dumps(kept)) == kept and decision.reason
    assert {name for name, (hold_s, *_) in kept["held"].items() if hold_s} >= decision.release.keys()
    assert not (decision.engine_in_flight or decision.power_limit_w or decision.sm_clock_mhz or decision.max_tokens)
    return decision


@pytest.mark.parametrize("rate", [0.01, 0.7, 2.0, 6.0, 100.0])
def test_without_patience_nothing_is_held(signals: Make, search: Search, rate: float) -> None:
    assert not decide(signals(search=search(rate, 0.0))).release


@pytest.mark.parametrize(("rate", "together"), [(0.7, 3.1), (2.0, 7.0), (6.0, 19.0)])
def test_who_can_wait_is_held_for_all_its_patience(signals: Make, search: Search, rate: float, together: float) -> None:
    rule = decide(signals(search=search(rate, 3.0))).release["search"]
    assert rule.hold_s == 3.0
    assert rule.join_part == pytest.approx(1 / together + 0.15, rel=0.01)


# What was saved on the H200 (`coalesce.csv`): of all joules, idle included.
@pytest.mark.parametrize(("rate", "served_s", "saved"), [(0.7, 0.77, 0.24), (2.0, 0.85, 0.38), (6.0, 1.1, 0.30)])
def test_what_it_expects_to_save_is_what_was_measured(
    signals: Make, search: Search, rate: float, served_s: float, saved: float
) -> None:
    reason = decide(signals(search=search(rate, 3.0, served_s, sharing=0.987))).reason
    expected = float(reason.rpartition("about ")[2].rstrip("%")) / 100
    assert expected == pytest.approx(saved, abs=0.07)


def test_near_saturation_batches_would_run_into_one_another_and_nothing_is_held(signals: Make, search: Search) -> None:
    assert not decide(signals(search=search(6.0, 3.0, served_s=20.0))).release


def test_who_is_alone_anyway_is_not_held(signals: Make, search: Search) -> None:
    assert not decide(signals(search=search(0.02, 3.0))).release
    assert decide(signals(search=search(0.02, 60.0))).release


def test_what_is_held_does_not_change_with_every_second(signals: Make, search: Search) -> None:
    barely = next(
        rate / 1000
        for rate in range(1, 1000)
        if not decide(signals(search=search(rate / 1000, 1.0)), HELD).reason.startswith("let go")
    )
    between = signals(search=search(barely * 1.2, 1.0))
    assert not decide(between).release
    assert decide(between, HELD).reason.startswith("held")


def test_chains_are_let_go_bit_by_bit(signals: Make, search: Search) -> None:
    """And taken up again so; what nobody asked for is given up at once."""
    slow = search(2.0, objective=Objective(3.0, itl_p95_s=0.02), itl_p95_s=0.021)
    state: Any = HELD
    held: list[float] = []
    for _ in range(60):
        decision, state = Company().decide(signals(search=slow), state)
        held.append(decision.release["search"].hold_s if decision.release else 0.0)
    assert held[0] == pytest.approx(2.7) and held[1] == pytest.approx(2.43) and held[-1] == 0
    decision, state = Company().decide(signals(search=replace(slow, itl_p95_s=0.01)), state)
    assert decision.release["search"].hold_s == pytest.approx(1.0, abs=0.01), "a second for each that was watched"
    assert not Company().decide(signals(search=search(2.0, 0.0)), HELD)[0].release


def test_objectives_are_kept_at_the_peak_of_the_rate(signals: Make, search: Search) -> None:
    asked = Objective(patience_s=3.0, itl_p95_s=0.016)

    def hold_s(rate: float, state: Any = None) -> tuple[float, Any]:
        seen = search(rate, served_s=0.3, objective=asked, prompt_tokens=1000.0)
        decision, state = Company().decide(signals(long=seen), state)
        return decision.release["long"].hold_s, state

    crowd_s, state = hold_s(40.0)
    assert hold_s(10.0, state)[0] == pytest.approx(crowd_s, rel=0.05) and hold_s(10.0)[0] > 2 * crowd_s


def test_the_objective_for_the_first_token_bounds_what_is_held(signals: Make, search: Search) -> None:
    asked = Objective(patience_s=3.0, ttft_p95_s=2.0)
    seen = search(2.0, objective=asked, ttft_p95_s=1.8, wait_p95_s=1.4)
    assert decide(signals(search=seen)).release["search"].hold_s == pytest.approx(0.95 * 2.0 - 0.4, rel=1e-4)
    assert not decide(signals(search=replace(seen, ttft_p95_s=2.5, wait_p95_s=0.4))).release


def test_prompts_that_are_computed_together_delay_each_other(signals: Make, search: Search) -> None:
    """Each of 1000 tokens takes 25 ms; 36 come in each second."""
    asked, tokens = Objective(patience_s=3.0, ttft_p95_s=2.9), 1000.0
    long = search(36.0, served_s=0.3, objective=asked, prompt_tokens=tokens)
    hold_s = decide(signals(long=long)).release["long"].hold_s
    most = 1 + 36 * hold_s
    assert hold_s == pytest.approx(0.95 * 2.9, rel=1e-4), "who was held for longest goes first"
    assert 0.025 * (most + most**0.5) <= hold_s + 1e-9, "and the last were held for least"
    slow = replace(long, objective=Objective(patience_s=3.0, itl_p95_s=0.016))
    hold_s = decide(signals(long=slow)).release["long"].hold_s
    most = 1 + 36 * hold_s
    most += most**0.5
    slower_s = 0.5 * 0.0046 * (0.025 + 0.00007 * 1075) / 2.0  # that a companion with so much context makes a step
    assert 0.0046 + most * (slower_s + 0.025 / 150) == pytest.approx(0.85 * 0.016, rel=1e-4)


def test_a_chains_calls_come_back_together_and_were_all_held_for_longest() -> None:
    """12 of them, whose prompts take 40 ms each."""
    asked = Objective(patience_s=3.0, ttft_p95_s=3.2)
    chain = WorkflowSignals(asked, 10.0, served_s=1.2, prompt_tokens=1600.0, output_tokens=150.0, depth=20.0)
    stream = stream_of("chain", chain, 1, PRICES)
    first_s = 0.04 * (12 + 12**0.5)
    assert most_hold_s(chain, [(stream, 10.0)], PRICES) == pytest.approx(0.95 * 3.2 - first_s, rel=1e-4)
    single = replace(chain, depth=1.0)
    alone = stream_of("single", single, 1, PRICES)
    assert most_hold_s(single, [(alone, 10.0)], PRICES) == 3.0
    assert most_hold_s(single, [(alone, 90.0)], PRICES) < 0.95 * 3.2 / (90 * 0.04), "as many prompts as come at a peak"


def test_a_batch_fits_the_engines_cache(signals: Make, search: Search) -> None:
    """Four requests that run take 0.2 of it."""
    seen = signals(kv_usage=0.2, search=search(2.0, 30.0))
    engine = replace(seen.engines["e1"], running=4.0)
    hold_s = decide(replace(seen, engines={"e1": engine})).release["search"].hold_s
    most = 1 + 2 * hold_s
    assert 0.05 * (most + most**0.5) == pytest.approx(0.8, rel=1e-4)


def test_one_long_request_says_little_of_what_others_take_of_the_cache() -> None:
    def after(usage: float, running: float, before: dict[str, list[float]]) -> dict[str, list[float]]:
        engine = EngineSignals(True, kv_usage=usage, running=running)
        return occupied(Signals(0.0, {}, {"e1": engine}), before)

    many = after(0.2, 10.0, {})
    assert many == {"e1": [0.2, 10.0]} and after(0.0, 0.0, many) == many
    usage, running = after(0.1, 1.0, many)["e1"]
    assert usage / running == pytest.approx(0.19 / 9.1)
    assert occupied(Signals(0.0), many) == {}, "an engine that is gone is forgotten"


def test_chains_are_held_for_no_more_than_ten_times_of_what_a_call_takes(signals: Make, search: Search) -> None:
    chain = signals(search=search(2.0, 30.0, served_s=0.5, depth=20.0))
    held: list[float] = []
    state: Any = None
    for _ in range(10):
        decision, state = Company().decide(chain, state)
        held.append(decision.release["search"].hold_s)
    assert held == [0.5, 1.5, 2.5, 3.5, 4.5, 5.0, 5.0, 5.0, 5.0, 5.0], "at first for no longer than one is served"


def test_while_nothing_comes_it_stays_as_it_was(signals: Make, search: Search) -> None:
    silent = replace(search(0.0, 3.0, depth=5.0), served_s=None)
    decision = decide(signals(search=silent), HELD)
    assert decision.release["search"].hold_s == 3.0 and decision.release["search"].join_part == 0.5
    assert decision.reason == "held as before: nothing was answered in the last minute"
    assert decide(signals(search=replace(silent, objective=Objective(1.0))), HELD).release["search"].hold_s == 1.0
    assert not decide(signals(search=replace(silent, objective=Objective())), HELD).release
    seldom = search(0.02, 3.0, depth=5.0)
    assert decide(signals(search=seldom), HELD).reason.startswith("let go"), "what comes says that it does not pay"


def test_before_anything_was_answered_it_is_held_for_a_while(signals: Make, search: Search) -> None:
    unknown = replace(search(0.0, 30.0), served_s=None)
    decision, state = Company().decide(signals(search=unknown, chat=replace(unknown, objective=Objective())), None)
    assert [(name, rule.hold_s) for name, rule in decision.release.items()] == [("search", 3.0)]
    assert decision.reason == "held at first: nothing was answered in the last minute"
    assert Company().decide(signals(search=replace(unknown, requests_per_s=1.0)), state)[0].release == decision.release
    for asked, held_s in ((Objective(1.0), 1.0), (Objective(30.0, ttft_p95_s=2.0), 1.9), (Objective(), None)):
        release = decide(signals(search=replace(unknown, objective=asked))).release
        assert release["search"].hold_s == pytest.approx(held_s, abs=0.001) if held_s else not release
    known, grown = search(2.0, 30.0, depth=1.0), []
    for _ in range(3):
        decision, state = Company().decide(signals(search=known), state)
        grown.append(decision.release["search"].hold_s)
    assert grown == [4.0, 5.0, 6.0], "from there on as it is computed"
    assert not decide(signals(None, search=unknown)).release, "not where what a step costs is not known"


def test_in_chains_less_joins_the_likelier_others_are_in_flight(signals: Make, search: Search) -> None:
    for rate, hold_s, part in ((0.02, 60.0, 0.5 - 0.16 * (1 - exp(-0.04))), (20.0, 3.0, 0.34)):
        chain = search(rate, hold_s, 2.0 if rate < 1 else 0.8, depth=5.0)
        state = {"held": {"search": [hold_s, 0.0, 0.0]}, "limits": {}, "kv": {}}
        assert decide(signals(search=chain), state).release["search"].join_part == pytest.approx(part, abs=0.001)
        single = replace(chain, depth=1.0)
        assert decide(signals(search=single), state).release["search"].join_part != pytest.approx(part, abs=0.001)


def test_chains_that_cannot_wait_for_the_end_of_another_join_it(signals: Make, search: Search) -> None:
    """Served for 12 s, held for 3 at most: three quarters of them cannot."""
    slow = search(0.05, 3.0, served_s=12.0, depth=5.0)
    company = 1 - exp(-0.05 * 12)
    part = decide(signals(search=slow)).release["search"].join_part
    assert part == pytest.approx(0.75 + (0.34 - 0.75) * company)


def test_without_prices_it_refuses(signals: Make, search: Search) -> None:
    decision = decide(signals(None, search=search(2.0, 3.0)))
    assert not decision.release and "not known" in decision.reason


def test_the_impatient_are_not_held_and_leave_less_to_save(signals: Make, search: Search) -> None:
    assert set(decide(signals(search=search(2.0, 3.0), coding=search(0.1))).release) == {"search"}
    assert not decide(signals(search=search(2.0, 3.0), coding=search(6.0))).release, "the engine is busy anyway"


def test_beside_the_impatient_no_more_are_in_flight_than_there_often_were(signals: Make, search: Search) -> None:
    alone, beside = signals(search=search(1.5, 3.0)), signals(search=search(1.5, 3.0), chat=search(1.5))
    assert decide(alone).in_flight == {}
    assert decide(beside).in_flight == {"search": 4}, "1.2 on average, and twice the root of it"
    assert decide(replace(beside, workflows={**beside.workflows, "chat": search(0.0)})).in_flight == {}


def test_the_first_that_is_due_takes_the_others_along(signals: Make, search: Search) -> None:
    alone = decide(signals(slow=search(2.0, 30.0))).release["slow"]
    beside = decide(signals(slow=search(2.0, 30.0), search=search(1.0, 3.0))).release
    assert beside["slow"].hold_s == 30.0 and beside["search"].hold_s == 3.0
    assert beside["slow"].join_part > alone.join_part, "smaller batches: joining is a larger share of one of its own"


def test_on_two_engines_each_has_half_of_the_company(signals: Make, search: Search) -> None:
    one = signals(search=search(2.0, 3.0))
    two = replace(one, engines={**one.engines, "e2": one.engines["e1"]})
    half = signals(search=search(1.0, 3.0))
    assert decide(two).release == decide(half).release
    down = replace(one, engines={**one.engines, "e2": EngineSignals(up=False)})
    assert decide(down).release == decide(one).release
