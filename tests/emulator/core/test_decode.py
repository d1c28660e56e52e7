"""Decode steps at once: the same sums as one by one."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.core.decode import GRID, DecodeCosts
from emulator.core.step import StepWork


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    start=st.floats(0, 1e6), sequences=st.integers(1, 256), context=st.integers(1, 100_000), left=st.floats(-0.01, 0.5)
)
def test_a_stretch_knows_which_of_its_steps_are_over(
    start: float, sequences: int, context: int, left: float, make_card: Any
) -> None:
    stretch = DecodeCosts([make_card(curved=0.01)]).stretch(start, sequences, context)
    assert 1 <= stretch.steps <= GRID
    over = [steps for steps in range(1, stretch.steps + 1) if stretch.end(steps) <= start + left]
    assert stretch.over_by(start + left, stretch.steps) == len(over)
    for steps in range(stretch.steps + 1):
        assert stretch.over_by(stretch.end(steps), stretch.steps) == steps


def test_stretch_after_stretch_costs_what_the_steps_cost_singly(make_card: Any) -> None:
    card = make_card(curved=0.002)
    costs, at, joules, context, steps = DecodeCosts([card]), 0.0, 0.0, 7 * 123 + 5, 1000
    seconds_singly = joules_singly = 0.0
    for step in range(steps):
        cost = card.step(StepWork(decode_sequences=7, decode_context=context + 7 * step))
        seconds_singly, joules_singly = seconds_singly + cost.seconds, joules_singly + cost.joules
    done = 0
    while done < steps:
        stretch = costs.stretch(at, 7, context + 7 * done)
        some = min(stretch.steps, steps - done)
        at, done = stretch.end(some), done + some
        joules += sum(stretch.spent(0, some))
    assert at == pytest.approx(seconds_singly, rel=1e-4)
    assert joules == pytest.approx(joules_singly, rel=1e-4)


def test_a_card_is_asked_once_for_each_sample_and_again_under_other_limits(make_card: Any) -> None:
    card = make_card()
    costs = DecodeCosts([card])
    first = costs.stretch(0.0, 4, 1000)
    asked = card.asked
    assert costs.stretch(5.0, 4, 1010).seconds > first.seconds and card.asked == asked
    card.power_limit_w = 350.0
    assert costs.stretch(5.0, 4, 1000).seconds == pytest.approx(2 * first.seconds)
    assert costs.stretch(5.0, 4, 1000).limits != first.limits
