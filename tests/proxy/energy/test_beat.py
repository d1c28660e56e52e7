"""A counter that moves by a clock of its own, read by another."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.energy.beat import MEMORY, PERIOD_S, Beat, moved_at

TRUE_S = 0.09999  # as measured on an H200


def power_w(t: float) -> float:
    """At rest, then work whose power changes all the time."""
    return 120.0 if t < 3 else 400 + 150 * Random(int(t / 0.037)).random()


TIMES = np.arange(0, 40, 0.001)
DRAWN_UJ = np.cumsum([power_w(t) for t in TIMES.tolist()]) * 1000


def drawn_uj(t: float) -> int:
    return int(np.interp(t, TIMES, DRAWN_UJ))


def readings(phase_s: float, look_s: float, late_s: float, seconds: float = 30.0) -> list[tuple[float, float, int]]:
    """(time, when it really moved, microjoules) of each reading; each comes up to `late_s` late."""
    rng, t, found = Random(phase_s), 0.3, []
    while t < seconds:
        moved = int((t - phase_s) / TRUE_S) * TRUE_S + phase_s
        found.append((t, moved, drawn_uj(moved)))
        t += look_s + rng.uniform(0, late_s)
    return found


@pytest.mark.parametrize(
    ("look_s", "late_s"), [(0.097, 0.002), (0.1, 0.02), (0.105, 0.005), (0.05, 0.01), (0.13, 0.02)]
)
@pytest.mark.parametrize("phase_s", [0.0, 0.03, 0.081])
def test_the_moves_of_a_counter_are_found_between_its_readings(look_s: float, late_s: float, phase_s: float) -> None:
    times, moved, energies = zip(*readings(phase_s, look_s, late_s), strict=True)
    found = moved_at(times, energies)
    off = [abs(a - b) for a, b in zip(found, moved, strict=True)]
    assert sorted(off)[len(off) * 9 // 10] < 0.008
    beat, live, before = Beat(), [], 0
    for t, uj in zip(times, energies, strict=True):
        live.append(beat.moved_at(t, uj - before))
        before = uj
    late = [abs(a - b) for a, b in zip(live[MEMORY:], moved[MEMORY:], strict=True)]
    assert sorted(late)[len(late) * 9 // 10] < 0.008


@pytest.mark.parametrize("look_s", [0.05, 0.097, 0.1, 0.13])
def test_a_counter_that_moves_all_the_time_has_no_beat(look_s: float) -> None:
    times = [look_s * n + Random(n).uniform(0, 0.02) for n in range(300)]
    assert moved_at(times, [drawn_uj(t) for t in times]) == times


def test_read_in_step_with_it_a_counter_does_not_show_its_beat() -> None:
    times = [0.1 * n for n in range(200)]
    assert moved_at(times, [drawn_uj(t) for t in times]) == times


def test_a_counter_that_stands_still_and_moves_once_has_no_beat() -> None:
    beat = Beat()
    times = [1000.0 + t for t in np.arange(0, 6, 0.1).tolist()]
    assert [beat.moved_at(t, 4_000_000 if n == 43 else 0) for n, t in enumerate(times)] == times


@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.integers(0, 10**8)), max_size=150))
def test_whatever_a_counter_does_it_moved_at_most_a_period_before_it_was_read(moves: list[tuple[float, int]]) -> None:
    beat, t = Beat(), 100.0
    for seconds, moved_uj in moves:
        t += seconds
        assert t - PERIOD_S <= beat.moved_at(t, moved_uj) <= t
