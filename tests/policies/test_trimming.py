"""Policies that set clocks and caps."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from policies.clocks import Clocks
from policies.hierarchical import Hierarchical
from policies.interface import Decision, DeviceSignals, Objective, Policy, QueueSignals, Signals, WorkflowSignals
from policies.load import load_policy
from policies.paper import Paper
from policies.powercap import PowerCap
from policies.room import BACK_S, SETTLE_S

Search = Callable[..., WorkflowSignals]
Make = Callable[..., Signals]
GPU = "h1/gpu:0"
CAPABLE = DeviceSignals(power_limit_range_w=(200.0, 700.0), sm_clock_range_mhz=(345.0, 1980.0))
ASKED = Objective(patience_s=3.0, itl_p95_s=0.02)


def run(policy: Policy, signals: Signals, seconds: int, state: Any = None) -> tuple[list[Decision], Any]:
    decisions = []
    for second in range(seconds):
        decision, state = policy.decide(replace(signals, now=signals.now + second), state)
        state = json.loads(json.dumps(state))
        decisions.append(decision)
    return decisions, state


@pytest.mark.parametrize(
    ("name", "kind"), [("clocks", Clocks), ("powercap", PowerCap), ("hierarchical", Hierarchical), ("paper", Paper)]
)
@pytest.mark.usefixtures("registered")
def test_they_are_found_by_name(name: str, kind: type) -> None:
    assert isinstance(load_policy(name, {}), kind)
    with pytest.raises(ValueError, match="unknown option 'leats'"):
        load_policy(name, {"leats": 0.5})


@pytest.mark.parametrize("policy", [Clocks(least=0.7), PowerCap(least=0.7), Hierarchical(least=0.7)])
def test_with_room_it_goes_down_to_the_least_and_without_back_up(policy: Policy, signals: Make, search: Search) -> None:
    calm = signals(devices=CAPABLE, search=search(2.0, objective=ASKED, itl_p95_s=0.005))
    decisions, state = run(policy, calm, 3 * int(SETTLE_S))
    last = decisions[-1]
    knob = last.power_limit_w if isinstance(policy, PowerCap) else last.sm_clock_mhz
    assert knob == {GPU: pytest.approx(0.7 * (700 if isinstance(policy, PowerCap) else 1980))}
    late = replace(calm, now=calm.now + 500, workflows={"search": search(2.0, objective=ASKED, itl_p95_s=0.03)})
    decisions, _ = run(policy, late, 4 * int(BACK_S), state)
    assert not decisions[-1].sm_clock_mhz and not decisions[-1].power_limit_w


@pytest.mark.parametrize("policy", [Clocks(), PowerCap(), Hierarchical()])
def test_without_an_objective_or_a_range_no_setting_is_touched(policy: Policy, signals: Make, search: Search) -> None:
    aimless = signals(devices=CAPABLE, search=search(2.0, 3.0, itl_p95_s=0.005))
    unable = signals(search=search(2.0, objective=ASKED, itl_p95_s=0.005))
    for seen in (aimless, unable):
        decisions, _ = run(policy, seen, 100)
        assert not any(decision.sm_clock_mhz or decision.power_limit_w for decision in decisions)
        assert decisions[-1].reason


def test_hierarchical_trims_what_the_gate_leaves(signals: Make, search: Search) -> None:
    """At once; and takes it back, while the gate goes on, when there is less."""
    calm = signals(devices=CAPABLE, search=search(2.0, objective=ASKED, itl_p95_s=0.005))
    decisions, state = run(Hierarchical(), calm, 1)
    assert decisions[0].release and decisions[0].sm_clock_mhz == {GPU: pytest.approx(0.6 * 1980)}
    slow = replace(calm, now=calm.now + BACK_S, workflows={"search": search(2.0, objective=ASKED, itl_p95_s=0.0195)})
    decisions, _ = run(Hierarchical(), slow, 1, state)
    assert decisions[0].sm_clock_mhz == {GPU: pytest.approx(0.7 * 1980)} and decisions[0].release


def test_hierarchical_takes_the_cap_where_clocks_cannot_be_set(signals: Make, search: Search) -> None:
    capped = replace(CAPABLE, sm_clock_range_mhz=None)
    calm = signals(devices=capped, search=search(2.0, objective=ASKED, itl_p95_s=0.005))
    decisions, _ = run(Hierarchical(), calm, 100)
    assert decisions[-1].power_limit_w == {GPU: pytest.approx(420.0)} and not decisions[-1].sm_clock_mhz
    decisions, _ = run(Hierarchical(trim="none"), calm, 100)
    assert not decisions[-1].power_limit_w and decisions[-1].release


def test_on_a_slower_clock_prompts_of_a_batch_take_longer(signals: Make, search: Search) -> None:
    long = search(12.0, served_s=0.3, objective=Objective(3.0, itl_p95_s=0.01), prompt_tokens=1000.0, itl_p95_s=0.003)
    decisions, _ = run(Hierarchical(), signals(devices=CAPABLE, long=long), 150)
    assert decisions[-1].sm_clock_mhz == {GPU: pytest.approx(0.6 * 1980)}
    assert decisions[-1].release["long"].hold_s < 0.8 * decisions[0].release["long"].hold_s


@pytest.mark.parametrize("policy", [Clocks(), PowerCap()])
def test_where_prompts_keep_the_engine_busy_nothing_is_trimmed(policy: Policy, signals: Make, search: Search) -> None:
    """20 a second of 1000 tokens: half of the time, at 25 µs each."""
    full = search(20.0, objective=Objective(itl_p95_s=0.02), prompt_tokens=1000.0, itl_p95_s=0.004)
    decisions, state = run(policy, signals(devices=CAPABLE, full=full), 100)
    assert not any(decision.sm_clock_mhz or decision.power_limit_w for decision in decisions)
    less = replace(full, requests_per_s=14.0)
    decisions, state = run(policy, replace(signals(devices=CAPABLE, full=less), now=2000.0), 100, state)
    assert decisions[-1].sm_clock_mhz == {GPU: 1386.0} or decisions[-1].power_limit_w == {GPU: pytest.approx(490.0)}
    decisions, _ = run(policy, replace(signals(devices=CAPABLE, full=full), now=3000.0), 1, state)
    assert not decisions[-1].sm_clock_mhz and not decisions[-1].power_limit_w, "at once, before anything is late"


def test_hierarchical_keeps_next_tokens_in_time_by_a_limit_and_not_by_the_clock(signals: Make, search: Search) -> None:
    """20 a second of 1000 tokens, whose next tokens take up nine tenths: a clock alone would not dare to go down."""
    full = search(20.0, served_s=0.6, objective=Objective(itl_p95_s=0.02, ttft_p95_s=1.0), prompt_tokens=1000.0)
    near = signals(devices=CAPABLE, full=replace(full, itl_p95_s=0.018, ttft_p95_s=0.1))
    assert not Clocks().decide(near, None)[0].sm_clock_mhz
    decision, state = Hierarchical().decide(near, None)
    most = decision.engine_in_flight["e1"]
    assert decision.sm_clock_mhz == {GPU: pytest.approx(1188)} and 4 < most < 100

    def queue(in_flight: int, queued: int, oldest_s: float) -> Signals:
        engine = replace(near.engines["e1"], queues={"full": QueueSignals(in_flight, queued, oldest_s)})
        return replace(near, now=near.now + 1, engines={"e1": engine})

    few, _ = Hierarchical().decide(queue(most, 1, 0.1), state)
    assert few.sm_clock_mhz == decision.sm_clock_mhz and few.engine_in_flight == decision.engine_in_flight
    some, _ = Hierarchical().decide(queue(most, 3, 0.4), state)
    assert some.sm_clock_mhz == {GPU: pytest.approx(0.8 * 1980)} and some.engine_in_flight["e1"] > most
    late, state = Hierarchical().decide(queue(most, 3, 0.6), state)
    assert not late.sm_clock_mhz and not late.engine_in_flight, "as fast as it goes nobody is kept waiting"
    crowd = replace(queue(2 * most, 0, 0.0), now=near.now + 60)
    still, state = Hierarchical().decide(crowd, state)
    assert not still.engine_in_flight, "nobody of those who are there is made late"
    calm = replace(queue(most // 2, 0, 0.0), now=near.now + 120)
    assert Hierarchical().decide(calm, state)[0].sm_clock_mhz == {GPU: pytest.approx(1188)}
    slow = replace(near.workflows["full"], itl_p95_s=0.0195)
    assert not Hierarchical().decide(replace(near, workflows={"full": slow}), None)[0].sm_clock_mhz, "they are late"


def test_hierarchical_does_not_take_those_who_are_held_for_a_queue(signals: Make, search: Search) -> None:
    calm = signals(devices=CAPABLE, search=search(2.0, objective=replace(ASKED, ttft_p95_s=4.0), itl_p95_s=0.005))
    _, state = run(Hierarchical(), calm, 1)
    engine = replace(calm.engines["e1"], queues={"search": QueueSignals(0, 6, oldest_s=2.9)})
    decisions, _ = run(Hierarchical(), replace(calm, now=calm.now + 1, engines={"e1": engine}), 1, state)
    assert decisions[0].release and decisions[0].sm_clock_mhz == {GPU: pytest.approx(1188)}


def test_the_paper_caps_and_narrows_by_name(signals: Make, search: Search) -> None:
    decision, state = Paper().decide(signals(devices=CAPABLE, search=search(2.0)), None)
    assert decision.in_flight["summarize"] == 1 and decision.in_flight["search"] == 8 and state is None
    assert decision.power_limit_w == {GPU: 560.0} and decision.release["coding"].group == "step"
    assert decision.release["coding"].hold_s == 0
