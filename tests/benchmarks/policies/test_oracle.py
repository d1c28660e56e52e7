from dataclasses import replace
from typing import Any

import pytest

from benchmarks.policies.bars import change_bars, is_reached
from benchmarks.policies.front import best_at
from benchmarks.policies.oracle import Oracle, Setting, converged, later, savings
from benchmarks.policies.trial import Trial

DEFAULT = Trial(
    joules=1000.0,
    early_j=100.0,
    tokens=1000,
    early_tokens=100,
    ended=100.0,
    idle_w=1.0,
    runs=10,
    requests=10,
    run_s=1.0,
    request_s=1.0,
    wait_p95_s=0.0,
    late={"ttft": 0.0, "run": 0.1},
    held_at=None,
)


def test_savings_are_of_the_same_work_and_the_same_time() -> None:
    slow = replace(DEFAULT, joules=905.0, ended=105.0)
    assert savings([DEFAULT], [slow]) == [pytest.approx(1 - 905 / 1005)]
    shifted = replace(DEFAULT, joules=1000.0, early_j=50.0, early_tokens=50)
    assert converged([DEFAULT], [shifted]) == [pytest.approx(0.0)], "what was put off is counted later"


def test_what_is_later_is_the_worst_kind() -> None:
    worse = replace(DEFAULT, late={"ttft": 0.02, "run": 0.05})
    assert later([DEFAULT, DEFAULT], [worse, DEFAULT]) == pytest.approx(0.01)


def oracle(best: Setting, late: Setting | None = None, least_j: float = 700.0) -> Oracle:
    """Joules fall towards one best setting; one setting misses objectives. The default has 1000 J."""

    def measure(setting: Setting, seed: int) -> Trial:
        join, to = min(setting.join, 2.0), min(best.join, 2.0)
        off = abs(setting.hold - best.hold) + abs(join - to) + abs(setting.limit - best.limit) / 100
        off += abs(setting.clock - best.clock)
        missed = {"ttft": 0.5, "run": 0.1} if setting == late else DEFAULT.late
        return replace(DEFAULT, joules=least_j + 100 * off + seed, late=missed)

    return Oracle(measure, [replace(DEFAULT, joules=1000.0 + seed) for seed in range(3)])


def test_it_finds_the_best_setting_from_coarse_to_fine() -> None:
    assert oracle(Setting(1.0, 0.35)).of_gate() == Setting(1.0, 0.35)
    assert oracle(Setting(5 / 6, 0.35)).of_gate().hold == pytest.approx(5 / 6)
    assert oracle(Setting(0.05, 0.35)).of_gate() == Setting(0.05, 0.35), "halfway to nothing"
    assert oracle(Setting(1.0, 0.35, limit=64)).of_gate() == Setting(1.0, 0.35, limit=64)
    assert oracle(Setting(1.0, 0.35, clock=0.7)).with_clock(Setting(1.0, 0.35)) == Setting(1.0, 0.35, clock=0.7)


def test_what_misses_objectives_is_no_answer() -> None:
    best = Setting(1.0, 0.35)
    assert oracle(best, late=best).of_gate() not in (best, Setting())


def test_where_all_others_miss_objectives_sooner_or_later_the_default_is_left() -> None:
    """All of them are better on the first seed, and late on the others."""
    good = oracle(Setting(1.0, 0.35)).measure

    def measure(setting: Setting, seed: int) -> Trial:
        return replace(good(setting, seed), late={"ttft": 0.5 if seed else 0.0})

    late = Oracle(measure, [replace(DEFAULT, joules=1000.0 + seed, late={"ttft": 0.0}) for seed in range(3)])
    assert late.of_gate() == Setting() == late.with_clock(Setting())


def test_finalists_that_miss_objectives_make_room_for_others() -> None:
    """All that hold for longest keep them on the two seeds of the sweep, and not on the third."""
    good = oracle(Setting(1.0, 0.0)).measure

    def measure(setting: Setting, seed: int) -> Trial:
        late = seed == 2 and setting.hold > 0.7
        return replace(good(setting, seed), late={"ttft": 0.5 if late else 0.0})

    found = Oracle(measure, [replace(DEFAULT, joules=1000.0 + seed, late={"ttft": 0.0}) for seed in range(3)]).of_gate()
    assert found == Setting(2 / 3, 0.0)


def test_the_default_may_be_the_answer() -> None:
    assert oracle(Setting(1.0, 0.35), least_j=1001.0).of_gate() == Setting()


def test_after_the_first_seed_the_better_half_goes_on() -> None:
    asked: list[tuple[Setting, int]] = []
    inner = oracle(Setting(1.0, 0.35)).measure

    def measure(setting: Setting, seed: int) -> Trial:
        asked.append((setting, seed))
        return inner(setting, seed)

    settings = [Setting(hold, join) for hold in (0.2, 0.4, 0.6, 0.8, 1.0) for join in (0.0, 0.35)]
    best = Oracle(measure, [replace(DEFAULT, joules=1000.0 + seed) for seed in range(3)]).coarse(settings)
    again = [setting for setting, seed in asked if seed == 1]
    assert best[0] == Setting(1.0, 0.35) and len(again) == 6 and min(setting.hold for setting in again) >= 0.4


def test_nine_tenths_count_where_there_is_something_to_reach() -> None:
    assert is_reached(0.091, 0.1) and not is_reached(0.089, 0.1)
    assert is_reached(-0.005, 0.015) and not is_reached(-0.02, 0.015)


def test_the_front_is_of_those_that_no_other_beats() -> None:
    points = [(1.0, 0.0), (2.0, 0.2), (2.5, 0.1), (3.0, 0.3)]
    assert best_at(points, 2.5) == pytest.approx(0.25)
    assert best_at(points, 0.5) == 0.0 and best_at(points, 9.0) == 0.3


def test_a_load_that_changes_is_followed_in_each_phase() -> None:
    def found(*company: float) -> dict[str, Any]:
        return {"saved": {"company": [{"mean": each} for each in company], "fixed": [{"mean": 0.1}, {"mean": 0.01}]}}

    assert [bar.met for bar in change_bars(found(0.095, 0.0))] == [True]
    assert [bar.met for bar in change_bars(found(0.05, 0.0))] == [False]
    assert [bar.met for bar in change_bars(found(0.2, -0.02))] == [False]
