"""The simulation against the emulator's own replay of what was measured, and against itself."""

from collections.abc import Callable
from math import inf

import pytest

from benchmarks.emulator_workloads import HEAD, _arrivals, coalesce
from benchmarks.policies.observing import Learning
from benchmarks.policies.work import Job, Task
from benchmarks.sim import Observer, Outcome, Simulation
from emulator.core.presets import load_gpu, load_model
from emulator.core.prompt import Text
from policies.company import Company
from policies.interface import Decision, Objective, Policy, Prices, Signals
from policies.observe import Observe
from policies.static import Hold, Static

WARM_S = 2.0
PRICES = Prices(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, rest_w=123.0)


class Blind(Observer):
    def signals(self, now: float, simulation: Simulation) -> Signals:
        return Signals(now)


def job(name: str | int, output: int = 150, *after: int) -> Job:
    return Job("query", (HEAD, Text(("own", name), 40)), output, after)


@pytest.fixture(scope="module")
def simulate() -> Callable[..., Outcome]:
    gpu, model = load_gpu("h200"), load_model("llama-2-7b")

    def run(policy: Policy, tasks: list[tuple[float, Task]], observer: Observer | None = None) -> Outcome:
        simulation = Simulation(gpu, model, policy, observer or Blind())
        return simulation.run([(0.0, Task("search", (job("warm", 8),))), *tasks], [WARM_S])

    return run


def searches(rate: float) -> list[tuple[float, Task]]:
    return [(WARM_S + at, Task("search", (job(n),))) for n, at in enumerate(_arrivals(rate))]


@pytest.mark.parametrize(
    ("rule", "wait", "hold"),
    [("now", 0.0, None), ("window", 3.0, Hold(hold_s=3)), ("hitch", 3.0, Hold(hold_s=3, join_s=inf))],
)
def test_fixed_rules_come_out_as_in_the_replay_of_the_measured_trials(
    simulate: Callable[..., Outcome], rule: str, wait: float, hold: Hold | None
) -> None:
    expected = coalesce(load_gpu("h200"), load_model("llama-2-7b"), 2.0, rule, wait)
    outcome = simulate(Static(release={"search": hold} if hold else {}), searches(2.0))
    assert outcome.joules_by(WARM_S + 31.0) - outcome.marks_j[WARM_S] == pytest.approx(expected.joules, rel=1e-9)
    latency_s = [sent.ended - sent.arrived for sent in outcome.sent[1:]]
    assert sum(latency_s) / len(latency_s) == pytest.approx(expected.latency_s, rel=1e-9)


def test_the_same_load_gives_the_same_to_the_last_bit(simulate: Callable[..., Outcome]) -> None:
    def once() -> tuple[float, list[float]]:
        observer = Learning({"search": Objective(3.0)}, PRICES)
        outcome = simulate(Company(), searches(2.0), observer)
        return outcome.joules, [sent.ended for sent in outcome.sent]

    assert once() == once()


@pytest.mark.parametrize("rate", [0.7, 2.0, 6.0])
def test_company_reaches_nine_tenths_of_what_a_fixed_window_saves(
    simulate: Callable[..., Outcome], rate: float
) -> None:
    load = searches(rate) + [(at + 24, Task("search", (job(f"again {at}"),))) for at, _ in searches(rate)]

    def joules(policy: Policy, observer: Observer | None = None) -> float:
        return simulate(policy, load, observer).joules_by(60.0)

    default = joules(Observe())
    window = 1 - joules(Static(release={"search": Hold(hold_s=3)})) / default
    company = 1 - joules(Company(), Learning({"search": Objective(3.0)}, PRICES)) / default
    assert window > 0.15 and company >= 0.9 * window


def test_calls_wait_for_those_whose_answers_they_read(simulate: Callable[..., Outcome]) -> None:
    task = Task("search", (job("a"), job("b"), job("c", 50, 0, 1)))
    outcome = simulate(Observe(), [(WARM_S, task)])
    first, second, third = outcome.sent[1:]
    assert third.arrived == max(first.ended, second.ended) and outcome.runs[1].ended == third.ended
    assert (third.output_tokens, third.prompt_tokens) == (50, 3040)
    assert third.cached_tokens == 2992, "whole blocks"


def test_limits_clocks_caps_and_ceilings_act_on_the_engine(simulate: Callable[..., Outcome]) -> None:
    class Table:
        def decide(self, signals: Signals, state: None) -> tuple[Decision, None]:
            return Decision({"search": 1}, max_tokens={"search": 20}, sm_clock_mhz={"h1/gpu:0": 1200.0}), None

    default = simulate(Observe(), [(WARM_S, Task("search", (job(n),))) for n in range(3)])
    outcome = simulate(Table(), [(WARM_S, Task("search", (job(n),))) for n in range(3)])
    assert [sent.output_tokens for sent in outcome.sent[1:]] == [20, 20, 20]
    released = [sent.released for sent in outcome.sent[1:]]
    assert released == sorted(set(released)) and released[1] >= outcome.sent[1].ended
    assert len({sent.released for sent in default.sent[1:]}) == 1
