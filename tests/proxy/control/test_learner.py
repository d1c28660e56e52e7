from dataclasses import astuple

import pytest

from proxy.control.learner import Lately, Learner, Served, p95


def serve(
    learner: Learner,
    request: str,
    run: str,
    t: float,
    seconds: float = 1.0,
    *,
    wait_s: float = 0.0,
    last: bool = False,
    well: bool = True,
    workflow: str = "search",
    opened: float | None = None,
) -> None:
    """A request of 100 tokens in and 11 out that begins at `t` and ends before anything else happens."""
    learner.arrived(request, run, workflow, t if opened is None else opened, 60.0, t)
    begun = t + wait_s
    served = Served(t, begun, begun + 0.1 * seconds, begun + seconds, 100, 11, well)
    learner.ended(request, served, last)


def test_a_minute_in_figures() -> None:
    learner = Learner(0.0)
    for n in range(20):
        serve(learner, f"q{n}", f"r{n}", 100.0 + n, wait_s=0.5 if n == 7 else 0.0, last=True)
    lately = learner.lately("search", 120.0)
    assert lately.requests_per_s == pytest.approx(20 / 60)
    assert (lately.ttft_p95_s, lately.wait_p95_s) == (pytest.approx(0.1), pytest.approx(0.0))
    assert (lately.served_s, lately.prompt_tokens, lately.output_tokens) == (pytest.approx(1.0), 100, 11)
    assert (lately.run_p95_s, lately.depth) == (pytest.approx(1.0), 1.0)
    assert learner.lately("search", 300.0).ttft_p95_s is None, "a minute later nothing is left of it"
    assert learner.lately("nobody", 300.0) == Lately()


def test_the_rate_follows_a_change_within_seconds() -> None:
    learner = Learner(0.0)
    for n in range(100):
        serve(learner, f"slow{n}", f"s{n}", n * 1.0, last=True)
    assert learner.lately("search", 100.0).requests_per_s == pytest.approx(1.0, rel=0.1)
    for n in range(50):
        serve(learner, f"fast{n}", f"f{n}", 100.0 + n / 10, last=True)
    assert learner.lately("search", 105.0).requests_per_s == pytest.approx(10, rel=0.1)


def test_a_request_that_failed_says_nothing_of_the_service() -> None:
    learner = Learner(0.0)
    serve(learner, "q", "r", 1.0, well=False, last=True)
    lately = learner.lately("search", 2.0)
    assert lately.requests_per_s > 0 and lately.ttft_p95_s is None
    learner.ended("never seen", Served(0, 0, 0, 1))


def test_depth_is_the_longest_chain_of_a_run() -> None:
    learner = Learner(0.0)
    for name in ("map-1", "map-2", "map-3"):  # together
        learner.arrived(name, "r", "summarize", 0.0, 60.0, 0.0)
    for name in ("map-1", "map-2", "map-3"):
        learner.ended(name, Served(0.0, 0.0, 0.5, 1.0))
    serve(learner, "reduce", "r", 2.0, workflow="summarize", opened=0.0, last=True)
    lately = learner.lately("summarize", 3.0)
    assert (lately.depth, lately.run_p95_s) == (2.0, 3.0)


def test_those_that_were_sent_at_once_and_wait_for_one_another_are_as_deep_as_if_sent_in_turn() -> None:
    learner = Learner(0.0)
    for name in ("map", "reduce"):
        learner.arrived(name, "r", "summarize", 0.0, 60.0, 0.0)
    learner.ended("map", Served(0.0, 0.0, 0.5, 1.0))
    learner.follows("reduce")
    learner.follows("never seen")
    learner.ended("reduce", Served(1.0, 1.0, 1.5, 2.0), last=True)
    lately = learner.lately("summarize", 3.0)
    assert (lately.depth, lately.run_p95_s, lately.wait_p95_s) == (2.0, 2.0, 0.0)


def test_a_run_that_says_nothing_is_over_after_its_quiet_time() -> None:
    learner = Learner(0.0)
    serve(learner, "q", "r", 10.0)
    learner.tick(70.0)
    assert learner.runs_since("search", 0.0) == []
    learner.tick(71.0)
    assert learner.runs_since("search", 0.0) == [1.0], "it took until its last answer"
    assert learner.attained_s("r") == 0.0


def test_slack_is_what_the_steps_to_come_leave() -> None:
    learner, lately = Learner(0.0), Lately(served_s=2.0, depth=3.0)
    learner.arrived("q1", "r", "coding", 10.0, 60.0, 10.0)
    assert learner.slack_s("r", 11.0, 20.0, lately) == 20 - 1 - 3 * 2
    learner.ended("q1", Served(10.0, 10.0, 11.0, 12.0))
    assert learner.attained_s("r") == 2.0
    assert learner.slack_s("r", 12.0, 20.0, lately) == 20 - 2 - 2 * 2
    assert learner.least_slack_s("coding", 12.0, 20.0, lately) is None, "nothing of it is here"
    learner.arrived("q2", "r", "coding", 10.0, 60.0, 13.0)
    learner.arrived("q3", "other", "coding", 13.0, 60.0, 13.0)
    assert learner.least_slack_s("coding", 13.0, 20.0, lately) == 20 - 3 - 2 * 2
    assert learner.slack_s("nobody", 13.0, 20.0, lately) is None


def test_alone_is_who_met_no_other_run() -> None:
    learner = Learner(0.0)
    serve(learner, "alone", "r1", 0.0, 2.0, last=True)
    learner.arrived("first", "r2", "search", 10.0, 60.0, 10.0)
    serve(learner, "second", "r3", 10.5, 5.0, last=True)  # it came while the first was there
    learner.ended("first", Served(10.0, 10.0, 19.0, 20.0, 100, 11), last=True)
    assert astuple(learner.isolated("search")) == pytest.approx((0.2, 0.18, 2.0))
    learner.arrived("a", "r4", "search", 30.0, 60.0, 30.0)
    learner.arrived("b", "r4", "search", 30.0, 60.0, 30.0)
    for name in ("a", "b"):
        learner.ended(name, Served(30.0, 30.0, 30.4, 34.0, 100, 11), last=name == "b")
    assert learner.isolated("search").run_s == 3.0, "a run is in its own company: the median of 2 s and 4 s"


def test_nearest_rank() -> None:
    assert p95([]) is None and p95([3.0]) == 3.0
    assert p95([float(n) for n in range(1, 101)]) == 95.0
