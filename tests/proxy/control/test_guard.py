from itertools import product

import pytest

from policies.interface import EngineSignals, Objective, QueueSignals, WorkflowSignals
from proxy.control.guard import Guard, Late, missed, tail
from proxy.control.learner import Learner, Served

ASKED = Objective(ttft_p95_s=1.0, itl_p95_s=0.1, run_p95_s=10.0)
WORKFLOWS = {"search": WorkflowSignals(ASKED)}


def serve(learner: Learner, t: float, ttft_s: float = 0.5, itl_s: float = 0.05) -> None:
    request = f"q{t}"
    learner.arrived(request, request, "search", t, 60.0, t)
    learner.ended(request, Served(t, t, t + ttft_s, t + ttft_s + 10 * itl_s, 100, 11), last=True)


@pytest.mark.parametrize(("late", "of", "part"), [(1, 1, 0.05), (2, 9, 0.05), (4, 7, 0.3), (0, 9, 0.05), (9, 9, 1.0)])
def test_the_tail_is_the_sum_over_all_that_could_have_been(late: int, of: int, part: float) -> None:
    outcomes = (sum(outcome) for outcome in product((0, 1), repeat=of))
    expected = sum(part**count * (1 - part) ** (of - count) for count in outcomes if count >= late)
    assert tail(late, of, part) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("late", "of", "is_missed"),
    [(0, 0, False), (1, 1, False), (2, 3, True), (3, 20, False), (5, 20, True), (7, 60, False)],
)
def test_chance_alone_is_no_reason(late: int, of: int, is_missed: bool) -> None:
    assert Late(late, of).is_missed() is is_missed


def test_every_kind_of_objective_is_looked_at() -> None:
    learner = Learner(0.0)
    serve(learner, 1.0)
    serve(learner, 2.0, ttft_s=1.5)
    serve(learner, 3.0, itl_s=0.2)
    serve(learner, 4.0, itl_s=2.0)
    found = missed(ASKED, learner, "search", [], since=0.0)
    assert found == {"ttft_p95": Late(1, 4), "itl_p95": Late(2, 4), "run_p95": Late(1, 4)}
    assert missed(ASKED, learner, "search", [], since=2.5)["ttft_p95"] == Late(0, 2), "of those that came since"
    assert missed(Objective(), learner, "search", [], since=0.0) == {}


def test_who_waits_too_long_already_counts() -> None:
    engine = EngineSignals(up=True, queues={"search": QueueSignals(0, 3, oldest_s=1.2)})
    assert missed(ASKED, Learner(0.0), "search", [engine], 0.0)["ttft_p95"] == Late(1, 1)


def run(guard: Guard, learner: Learner, t: float, seconds: int, ttft_s: float, acts: bool = True) -> list[float]:
    """One request a second; the times at which the policy was stopped."""
    stopped = []
    for now in range(seconds):
        serve(learner, t + now, ttft_s)
        if guard.look(WORKFLOWS, {}, learner, acts, t + now + 2.0):
            stopped.append(now)
    return stopped


def test_a_missed_objective_stops_the_policy_within_seconds_and_later_it_tries_again() -> None:
    guard, learner = Guard(), Learner(0.0)
    assert run(guard, learner, 100.0, 20, 0.5) == [] and not guard.why
    (stopped, *_) = run(guard, learner, 120.0, 9, 3.0)
    assert stopped <= 6 and guard.reason == "objective" and "search misses its ttft_p95" in guard.why
    assert guard.is_pausing(130.0) and run(guard, learner, 130.0, 10, 0.5) == []
    assert not guard.is_pausing(140.0) and not guard.why


def test_what_the_default_misses_too_is_not_the_policys_doing() -> None:
    guard, learner = Guard(), Learner(0.0)
    stopped = run(guard, learner, 100.0, 60, 3.0)  # it is late whoever holds the gateway
    assert len(stopped) == 1, "once it was stopped; then it was seen that this changes nothing"


def test_what_the_default_missed_long_ago_excuses_nothing() -> None:
    guard, learner = Guard(), Learner(0.0)
    run(guard, learner, 100.0, 30, 3.0, acts=False)
    assert run(guard, learner, 130.0, 300, 0.5) == []
    assert len(run(guard, learner, 430.0, 30, 3.0)) == 1


def test_a_policy_that_does_nothing_is_not_blamed() -> None:
    guard, learner = Guard(), Learner(0.0)
    assert run(guard, learner, 100.0, 60, 3.0, acts=False) == []
    assert run(guard, learner, 160.0, 30, 3.0) == [], "it was as late without it"
    assert run(guard, learner, 200.0, 60, 0.5, acts=False) == []
    assert len(run(guard, learner, 260.0, 9, 3.0)) == 1, "it was well without it"


def test_pauses_grow_and_are_forgotten_after_a_good_while() -> None:
    guard, lengths = Guard(), []
    for t in (0.0, 20.0, 60.0, 10_000.0):
        guard.failed("raised", "no luck", t)
        lengths.append(next(s for s in range(700) if not guard.is_pausing(t + s)))
    assert lengths == [10, 20, 40, 10]
    for n in range(12):
        guard.failed("raised", "no luck", 20_000.0 + n)
    assert guard.is_pausing(20_011.0 + 599) and not guard.is_pausing(20_011.0 + 601), "ten minutes at most"
