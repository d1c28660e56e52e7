from dataclasses import replace

import pytest

from policies.interface import EngineSignals, Objective, QueueSignals, Signals, WorkflowSignals
from policies.room import BACK_S, SETTLE_S, UP, Trimmed, trim, used, used_by_queue


def test_the_most_pressed_objective_counts() -> None:
    asked = Objective(ttft_p95_s=2.0, itl_p95_s=0.05, run_p95_s=20.0)
    seen = {
        "a": WorkflowSignals(asked, ttft_p95_s=1.0, itl_p95_s=0.02, run_p95_s=12.0),
        "b": WorkflowSignals(asked, ttft_p95_s=1.4),
        "c": WorkflowSignals(ttft_p95_s=99.0),
    }
    assert used(seen) == (pytest.approx(0.7), "first token of b")
    assert used({"c": seen["c"], "d": WorkflowSignals(asked)}) is None


def test_what_the_gate_held_is_not_the_engines_time() -> None:
    held = WorkflowSignals(Objective(patience_s=3.0, ttft_p95_s=4.0), ttft_p95_s=3.2, wait_p95_s=3.0)
    assert used({"a": held}) == (pytest.approx(0.2), "first token of a")
    queued = WorkflowSignals(Objective(patience_s=0.0, ttft_p95_s=4.0), ttft_p95_s=3.2, wait_p95_s=3.0)
    assert used({"a": queued}) == (pytest.approx(0.8), "first token of a")


def test_who_waits_at_a_limit_takes_up_the_first_tokens_objective() -> None:
    """By age, or by when the last one goes; half of it is all that there is."""
    one = WorkflowSignals(Objective(patience_s=1.0, ttft_p95_s=3.0), requests_per_s=2.0, served_s=0.5)
    assert used_by_queue(one, QueueSignals(5, 1, oldest_s=1.5), held_s=1.0) == pytest.approx(0.5)
    assert used_by_queue(one, QueueSignals(5, 12), held_s=1.0) == pytest.approx(1.0), (
        "ten beyond those two that are held"
    )
    assert used_by_queue(one, QueueSignals(5, 2, oldest_s=0.9), held_s=1.0) == 0, "held, as it was to be"
    assert used_by_queue(one, QueueSignals(5, 1), held_s=3.0) == 1, "nothing is left"
    assert used_by_queue(replace(one, objective=Objective(1.0)), QueueSignals(5, 99, oldest_s=99.0), 0.0) == 0


def at(part: float, since: float = float("-inf")) -> Trimmed:
    return Trimmed(part, since, part, since)


def test_it_goes_down_where_there_is_room_and_no_further_than_that() -> None:
    full = Trimmed()
    assert full.step(0.0, 0.1, least=0.6) == at(0.6, 0.0)
    assert full.step(0.0, 0.76, least=0.6).part == pytest.approx((0.76 / 0.95) ** 0.5)
    assert full.step(0.0, 0.85, least=0.6) == full, "too little room to try"
    low = at(0.65, 0.0)
    assert low.step(SETTLE_S - 1, 0.1, 0.6) == low, "what the last step did is not seen yet"
    assert low.step(SETTLE_S, 0.1, 0.6) == at(0.6, SETTLE_S)
    assert at(0.6, 0.0).step(1000.0, 0.1, 0.6) == at(0.6, 0.0)


def test_it_goes_back_up_within_seconds_where_there_is_none() -> None:
    low = at(0.6, 0.0)
    assert low.step(BACK_S - 1, 1.2, 0.6) == low
    assert low.step(BACK_S, 1.2, 0.6) == at(0.6 + UP, BACK_S)
    assert at(0.95, 0.0).step(BACK_S, 1.2, 0.6).part == 1.0
    assert Trimmed().step(99.0, 1.2, 0.6) == Trimmed()


def test_what_is_needed_is_given_at_once_and_taken_back_without_percentiles() -> None:
    low = at(0.6, 0.0)
    needed = low.step(1.0, 0.1, 0.6, needed=0.9)
    assert needed.part == 0.9 and needed.allowed == 0.6
    assert needed.step(2.0, 0.1, 0.6, needed=1.0).part == 1.0, "more at once"
    assert needed.step(2.0, 0.1, 0.6, needed=0.88).part == 0.9, "as good as the same"
    assert needed.step(BACK_S, 0.1, 0.6).part == 0.9, "not yet"
    assert needed.step(1.0 + BACK_S, 0.1, 0.6) == replace(needed, part=0.6, since=1.0 + BACK_S)
    late = needed.step(1.0 + BACK_S, 1.2, 0.6)
    assert late.part == late.allowed == 1.0, "and late at that is one step more than that"


def test_its_state_is_plain() -> None:
    assert Trimmed.of(Trimmed(0.7, 12.0).state()) == Trimmed(0.7, 12.0) and Trimmed.of(None) == Trimmed()


def test_it_stays_while_nothing_comes_and_goes_when_nothing_is_asked_for_any_more() -> None:
    asked, low = Objective(itl_p95_s=0.02), at(0.7, 5.0)

    def after(one: WorkflowSignals, before: Trimmed) -> Trimmed | None:
        found = trim(before, Signals(9.0, {"search": one}), least=0.6)
        return found and found[0]

    assert after(WorkflowSignals(asked), low) == low
    assert after(WorkflowSignals(asked), Trimmed()) is None and after(WorkflowSignals(), low) is None
    assert after(WorkflowSignals(asked, itl_p95_s=0.001), Trimmed()) == at(0.6, 9.0)


def test_a_fuller_cache_leaves_less_of_the_speed_to_give_away() -> None:
    """Requests stay longer in it when they are slower; how long they do now is seen already."""
    seen = {"search": WorkflowSignals(Objective(itl_p95_s=0.02), itl_p95_s=0.001)}

    def part(*usage: float | None, up: bool = True, before: Trimmed | None = None) -> float:
        engines = {str(place): EngineSignals(up, kv_usage=one) for place, one in enumerate(usage)}
        found = trim(before or Trimmed(), Signals(9.0, seen, engines), least=0.6)
        assert found is not None
        return found[0].part

    assert part(None) == part(0.1) == part(0.99, up=False) == 0.6
    assert part(0.1, 0.7) == pytest.approx(0.7)
    assert part(0.97) == pytest.approx(0.97)
    assert part(0.97, before=at(0.6, 8.0)) == 0.6, "there it is full, and not fuller by that"
