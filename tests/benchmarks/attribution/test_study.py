"""The study on a mix or two: that its truth adds up, and that its methods see only what a gateway sees."""

from itertools import pairwise

import pytest

from benchmarks.attribution import baselines
from benchmarks.attribution.__main__ import check, summarized
from benchmarks.attribution.load import KINDS, Mix, random_mix
from benchmarks.attribution.seen import COUNTER_S, play
from benchmarks.attribution.study import FITTED, Found, error, study
from benchmarks.attribution.truth import Truth
from emulator.core.presets import load_gpu, load_model
from proxy.energy.trace import Scenario

ALL = Mix(5, dict.fromkeys(KINDS, 1), 6.0)


@pytest.fixture(scope="module")
def played() -> tuple[Truth, Scenario]:
    return play(ALL, load_gpu("h200"), load_model("llama-2-7b"))


def test_every_joule_of_every_step_is_somebodys(played: tuple[Truth, Scenario]) -> None:
    truth, scenario = played
    assert sum(truth.joules.values()) == pytest.approx(sum(joules for _, _, joules in truth.steps), rel=1e-9)
    assert min(truth.joules.values()) > 0
    assert {one.cls for one in scenario.served} == set(KINDS)
    assert set(truth.joules) <= {one.id for one in scenario.served}
    assert truth.off_j < 0.005 * sum(truth.joules.values())


def test_the_gateway_sees_a_counter_that_moves_ten_times_a_second(played: tuple[Truth, Scenario]) -> None:
    truth, scenario = played
    moves = [after.energy_uj - before.energy_uj for before, after in pairwise(scenario.counters)]
    assert min(moves) >= 0 and all(move % 1000 == 0 for move in moves)
    seconds = scenario.counters[-1].t - scenario.counters[0].t
    assert sum(move > 0 for move in moves) == pytest.approx(seconds / COUNTER_S, abs=2)
    idle_j = seconds * load_gpu("h200").card.idle_w
    assert sum(truth.joules.values()) < sum(moves) / 1e6 < sum(truth.joules.values()) + idle_j
    assert len({line.engine_t for line in scenario.counters}) <= 2 * seconds + 2, "the engine is asked more rarely"


def test_who_left_tells_no_usage(played: tuple[Truth, Scenario]) -> None:
    left = [one for one in played[1].served if one.output_tokens is None]
    assert left and all(one.cls == "cancelled" and one.cached_tokens is None for one in left)
    assert all(tick <= (one.end or 0.0) for one in left for tick in one.ticks)


def test_the_others_methods_share_the_busy_time_and_one_counts_it_many_times(played: tuple[Truth, Scenario]) -> None:
    truth, scenario = played
    whole_j = sum(truth.joules.values())
    by_method = baselines.shared(scenario)
    for name in ("tokens", "output", "time"):
        assert sum(by_method[name].values()) == pytest.approx(whole_j, rel=0.05)
    assert sum(by_method["whole GPU"].values()) > 2 * whole_j
    assert by_method.keys() == baselines.METHODS.keys()


def test_error_is_what_was_given_to_the_wrong_ones() -> None:
    assert error({"a": 12.0, "b": 8.0}, {"a": 10.0, "b": 10.0}) == pytest.approx(0.2)
    assert error({"a": 10.0}, {"a": 10.0, "b": 10.0}) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def found() -> list[Found]:
    return [study((3, 5.0, "")), study((3, 5.0, "cap")), study((4, 5.0, "evictions"))]


def test_ours_is_nearer_to_shapley_than_the_others(found: list[Found]) -> None:
    for one in found:
        errors = one.figures["errors"]
        assert errors[FITTED] < 0.1 and errors[FITTED] < min(errors[name] for name in baselines.METHODS)
        assert one.figures["residual_uj"] == 0


def test_a_mix_is_the_same_every_time(found: list[Found]) -> None:
    assert study((3, 5.0, "")).figures == found[0].figures
    assert random_mix(1, 5.0) != random_mix(2, 5.0)


def test_a_missed_bar_is_missed(found: list[Found]) -> None:
    def off_by(part: float, residual_uj: int = 0) -> list[Found]:
        figures = found[0].figures
        errors = dict.fromkeys(figures["errors"], part)
        return [Found({**figures, "errors": errors, "residual_uj": residual_uj}, [], [])]

    for group, met in (
        (off_by(0.02), [True, True, True]),
        (off_by(0.05), [False, True, True]),
        (off_by(0.07), [False, False, True]),
        (off_by(0.02, residual_uj=1), [True, True, False]),
    ):
        assert [bar.met for bar in check(group, group)] == met
    assert summarized(found)["mixes"] == 3
