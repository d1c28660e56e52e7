"""Traces of a machine whose prices are known, attributed offline."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.prior import Coefficients
from proxy.energy.replay import Held, Outcome, attribute, found, replay
from proxy.energy.trace import Counter, Scenario, Served, Trace

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
IDLE_W = 100.0
BEGIN = 1000.0


class Machine:
    """Steps of 10 ms, one token each of those that decode; a prompt takes one step. Joules by `prices`, and 100 W at
    rest."""

    def __init__(self, prices: Coefficients = PRICES) -> None:
        self.prices = prices
        self.steps: list[tuple[float, float]] = []  # when one ended, and its joules
        self.served: list[Served] = []
        self.truth: dict[str, float] = {}

    def serve(self, *plans: tuple[str, float, int, int]) -> None:
        """(class, arrival, prompt tokens, output tokens) of each request."""
        waiting = sorted(enumerate(plans), key=lambda plan: plan[1][1])
        running: dict[int, list[float]] = {}
        t, p = 0.0, self.prices
        while waiting or running:
            t += 0.01
            fresh = [plan for plan in waiting if plan[1][1] <= t - 0.01]
            waiting = waiting[len(fresh) :]
            company = {n: [] for n, _ in fresh} | running
            joules = p.step_j if company else 0.0
            for n, line in company.items():
                _, _, prompt, _ = plans[n]
                own = p.output_j + p.context_j * (prompt + len(line) + 0.5) + (0 if line else p.prompt_j * prompt)
                joules += own
                line.append(t)
                self.truth[f"r{n}"] = self.truth.get(f"r{n}", 0.0) + own + p.step_j / len(company)
            self.steps.append((t, joules or IDLE_W * 0.01))
            running = {n: line for n, line in company.items() if len(line) < plans[n][3]}
            for n, line in company.items():
                if n not in running:
                    cls, arrival, prompt, output = plans[n]
                    ticks = [BEGIN + tick for tick in line]
                    times = BEGIN + arrival, ticks[0], BEGIN + t
                    self.served.append(Served(f"r{n}", cls, "", *times, prompt, 0, output, ticks, streamed=True))
        self.steps += [(t + 0.01 * n, IDLE_W * 0.01) for n in range(1, 30)]

    def seen(self, look_s: float = 0.1, ask_s: float = 0.1) -> Scenario:
        ends = np.array([t for t, _ in self.steps])
        joules, working = np.cumsum([j for _, j in self.steps]), [j > 2 * IDLE_W * 0.01 for _, j in self.steps]
        steps = np.cumsum(working)
        tokens = sorted(tick for one in self.served for tick in one.ticks)
        counters, asked, told = [], -1.0, (0.0, 0.0)
        for t in np.arange(0.0, ends[-1], look_s).tolist():
            at = max(0, int(np.searchsorted(ends, t, "right")) - 1)
            if t - asked >= ask_s - 1e-9:
                asked, told = t, (float(steps[at]), float(np.searchsorted(tokens, BEGIN + t, "right")))
            uj = int(np.interp(t, [0.0, *ends], [0.0, *joules]) * 1e6)
            counters.append(Counter(BEGIN + t, uj, "", "", *told, None, None))
        return Scenario(counters, sorted(self.served, key=lambda one: one.t0))


def mix(seed: int, prices: Coefficients = PRICES, seconds: float = 12.0) -> Machine:
    rng, machine = Random(seed), Machine(prices)
    kinds = {"long": (2000, 40), "short": (50, 60), "chat": (400, 150)}
    plans = [(cls, rng.uniform(0.4, seconds), *kinds[cls]) for cls in rng.choices(list(kinds), k=30)]
    machine.serve(*plans)
    return machine


def replayed(scenario: Scenario, prices: Coefficients = PRICES) -> Outcome:
    return replay(scenario, {name: Held(prices) for name in scenario.engines()})


def off(outcome: Outcome, machine: Machine) -> float:
    """Σ |error| / E."""
    errors = (abs(outcome.by_request[name].uj / 1e6 - joules) for name, joules in machine.truth.items())
    return sum(errors) / sum(machine.truth.values())


# Whose joules they are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask_s", [0.1, 1.0])
def test_who_caused_the_joules_is_found(ask_s: float) -> None:
    machine = mix(1)
    outcome = replayed(machine.seen(ask_s=ask_s))
    assert off(outcome, machine) < 0.03
    assert outcome.residual_uj == outcome.gap_uj == outcome.foreign_uj == 0
    assert outcome.idle_uj > 0


def test_every_request_lies_in_its_band() -> None:
    machine = mix(2)
    for amount in replayed(machine.seen()).by_request.values():
        assert 0 < amount.low_uj <= amount.uj <= amount.high_uj


@pytest.mark.parametrize("look_s", [0.05, 0.13, 0.2])
def test_how_often_somebody_looked_changes_no_class_beyond_its_band(look_s: float) -> None:
    machine = mix(3)
    usual, other = replayed(machine.seen()), replayed(machine.seen(look_s))
    for cls in ("long", "short", "chat"):
        names = [one.id for one in machine.served if one.cls == cls]
        low, high = (sum(getattr(usual.by_request[n], at) for n in names) for at in ("low_uj", "high_uj"))
        assert low <= sum(other.by_request[n].uj for n in names) <= high


def test_prices_fitted_on_one_scenario_predict_another() -> None:
    truth = replace(PRICES, step_j=2.6, prompt_j=0.013, output_j=0.03, context_j=0.0001)
    solo = Machine(truth)
    solo.serve(*[("chat", 0.5 + n, 400, 150) for n in range(12)])
    trace = Trace({f"mix{n}": mix(n, truth).seen() for n in range(6)} | {"solo": solo.seen()})
    before = replayed(trace.scenarios["solo"])
    assert abs(before.predicted_j / before.measured_j - 1) > 0.2, "by the prior"
    result = attribute(trace, {"": PRICES}, [f"mix{n}" for n in range(6)])
    after = result.scenarios["solo"]
    assert after.predicted_j == pytest.approx(after.measured_j, rel=0.05)
    assert result.fits[""].windows > 50


# Odd traces ----------------------------------------------------------------------------------------------------------


def test_a_request_at_the_edge_of_a_trace_has_the_joules_that_were_seen() -> None:
    machine = Machine()
    machine.serve(("chat", 0.5, 100, 300))
    whole, scenario = replayed(machine.seen()), machine.seen()
    middle = replayed(Scenario([line for line in scenario.counters if 1.5 < line.t - BEGIN < 2.6], scenario.served))
    assert middle.residual_uj == middle.idle_uj == 0
    assert middle.by_request["r0"].uj == middle.counter_uj < whole.by_request["r0"].uj


def test_a_request_that_nobody_saw_end_ends_with_the_trace() -> None:
    machine = Machine()
    machine.serve(("chat", 0.5, 100, 300))
    scenario = machine.seen()
    scenario.served = [one._replace(end=None, output_tokens=None) for one in scenario.served]
    outcome = replayed(scenario)
    assert outcome.residual_uj == 0 and outcome.by_request["r0"].uj > 0.95 * 1e6 * machine.truth["r0"]


def test_without_a_counter_nobody_has_joules() -> None:
    machine = Machine()
    machine.serve(("chat", 0.5, 100, 30))
    outcome = replayed(Scenario([], machine.served))
    assert (outcome.counter_uj, outcome.by_request["r0"].uj) == (0, 0)


def test_a_counter_that_was_reset_creates_no_energy() -> None:
    machine = mix(4)
    scenario = machine.seen()
    at = len(scenario.counters) // 2
    base = scenario.counters[at].energy_uj
    scenario.counters[at:] = [line._replace(energy_uj=line.energy_uj - base) for line in scenario.counters[at:]]
    outcome = replayed(scenario)
    moved = sum(max(0, b.energy_uj - a.energy_uj) for a, b in pairwise(scenario.counters))
    assert outcome.residual_uj == 0 and outcome.counter_uj == moved


def test_work_that_is_not_in_the_trace_is_foreign() -> None:
    machine = Machine()
    machine.serve(*[("ours" if n % 2 else "theirs", 0.5 + 0.4 * n, 100, 200) for n in range(20)])
    scenario = machine.seen()
    scenario.served = [one for one in scenario.served if one.cls == "ours"]
    outcome = replayed(scenario)
    assert outcome.residual_uj == 0
    assert 0.25 < outcome.foreign_uj / (outcome.counter_uj - outcome.idle_uj) < 0.6


def test_the_same_id_twice_is_two_attempts_of_one_request() -> None:
    machine = Machine()
    machine.serve(("chat", 0.5, 100, 50), ("chat", 1.5, 100, 50))
    scenario = machine.seen()
    scenario.served = [one._replace(id="r0") for one in scenario.served]
    outcome = replayed(scenario)
    assert outcome.residual_uj == 0 and list(outcome.by_request) == ["r0"]
    assert outcome.by_request["r0"].uj / 1e6 == pytest.approx(sum(machine.truth.values()), rel=0.05)


def test_a_trace_without_streams_or_engine_counters_is_shared_all_the_same() -> None:
    machine = mix(5)
    scenario = machine.seen()
    scenario.served = [one._replace(first=None, ticks=[], streamed=False) for one in scenario.served]
    scenario.counters = [line._replace(steps=None, output_tokens=None) for line in scenario.counters]
    outcome = replayed(scenario)
    assert outcome.residual_uj == 0 and off(outcome, machine) < 0.25


@pytest.mark.parametrize("asked", [True, False])
def test_cached_tokens_that_nobody_told_are_found_in_the_engines_counter(asked: bool) -> None:
    """Told by a counter that is asked once a second, of requests with a prompt of 3000 of which 2960 were cached."""
    served = [
        Served(f"r{n}", "c", "", 0.5 + n, 0.6 + n, 0.9 + n, 3000, None if n % 2 else 2960, 30, [], True)
        for n in range(8)
    ]
    lines = [Counter(n / 10, 0, "", "", 0, 0, 2960.0 * (n // 10), n // 10 if asked else None) for n in range(100)]
    assert found(Scenario(lines, served)) == pytest.approx([2960] * 8)


SERVED = st.builds(
    Served,
    id=st.sampled_from(["a", "b", "c", ""]),
    cls=st.sampled_from(["x", "y"]),
    engine=st.sampled_from(["", "", "e2"]),
    t0=st.floats(-5, 30),
    first=st.none() | st.floats(-5, 30),
    end=st.none() | st.floats(-5, 40),
    prompt_tokens=st.none() | st.integers(0, 5000),
    cached_tokens=st.none() | st.integers(0, 6000),
    output_tokens=st.none() | st.integers(0, 300),
    ticks=st.lists(st.floats(-5, 40), max_size=20).map(sorted),
    streamed=st.booleans(),
)
COUNTERS = st.builds(
    Counter,
    t=st.floats(0, 30),
    energy_uj=st.integers(0, 10**10),
    device=st.sampled_from(["", "", "d2"]),
    engine=st.sampled_from(["", "", "e2"]),
    steps=st.none() | st.floats(0, 1e4),
    output_tokens=st.none() | st.floats(0, 1e5),
    cached_tokens=st.none() | st.floats(0, 1e5),
    engine_t=st.none() | st.floats(0, 30),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(COUNTERS, max_size=80), st.lists(SERVED, max_size=12))
def test_every_microjoule_has_one_place_whatever_the_trace_says(counters: list[Counter], served: list[Served]) -> None:
    counters.sort(key=lambda line: line.t)
    served.sort(key=lambda one: one.t0)
    outcome = replayed(Scenario(counters, served))
    assert outcome.residual_uj == 0
    amounts = [amount.uj for amount in outcome.by_request.values()]
    assert min([0, *amounts, outcome.idle_uj, outcome.foreign_uj, outcome.gap_uj]) == 0
