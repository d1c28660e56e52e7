from itertools import count

import pytest

from proxy.energy.floor import ENOUGH, Floor
from proxy.energy.records import Phase
from proxy.energy.share import Settled, Share
from proxy.energy.work import Progress

GPU = "h1/gpu:0"


def windows(floor: Floor, watts: list[float], begin: float = 0.0, loaded: bool = True) -> float:
    """Idle windows of 0.1 s; returns the time after them."""
    t = begin
    for power_w in watts:
        floor.look(Settled(GPU, t, t + 0.1, (), idle_uj=round(power_w * 1e5)), 0.0, loaded)
        t += 0.1
    return t


def busy(t: float, workflow_uj: int, **parts: int) -> Settled:
    share = Share(Progress("r", 1, "e1", t), Phase.DECODE, workflow_uj, 0, workflow_uj)
    return Settled(GPU, t, t + 0.5, (share,), **parts)


def test_the_floor_is_the_median_of_idle_windows_after_the_clocks_have_slowed_down() -> None:
    floor = Floor()
    t = windows(floor, [300.0] * 20 + [122.0] * (ENOUGH - 1))
    assert floor.watts is None, "too few; those soon after work do not count"
    t = windows(floor, [500.0], t)
    assert floor.watts == pytest.approx(122.0), "one that is off moves no median"
    floor.look(busy(t, 100), 1.0, loaded=True)
    windows(floor, [300.0] * 20, t + 0.5)
    assert floor.watts == pytest.approx(122.0)


def test_a_device_without_weights_shows_no_loaded_floor() -> None:
    floor = Floor()
    windows(floor, [70.0] * 100, loaded=False)
    assert floor.watts is None


def test_what_lies_above_the_floor_is_summed_for_requests_alone() -> None:
    floor = Floor()
    floor.look(busy(0.0, 999), 1.0, loaded=True)
    assert (floor.workflow_uj, floor.active_uj) == (0.0, 0.0), "before it is known nothing is"
    t = windows(floor, [100.0] * 60, 1.0)
    floor.look(busy(t, 150_000_000), 1.0, loaded=True)  # 300 W
    assert (floor.workflow_uj, floor.active_uj) == (150e6, pytest.approx(100e6))
    floor.look(busy(t, 75_000_000, idle_uj=50_000_000), 0.6, loaded=True)  # the same in 0.3 s, then idle
    assert (floor.workflow_uj, floor.active_uj) == (225e6, pytest.approx(145e6))
    floor.look(busy(t, 75_000_000, foreign_uj=75_000_000), 1.0, loaded=True)  # half of it another's
    assert (floor.workflow_uj, floor.active_uj) == (300e6, pytest.approx(195e6))
    floor.look(busy(t, 10_000_000), 1.0, loaded=True)  # less than idle: it is not negative
    assert (floor.workflow_uj, floor.active_uj) == (310e6, pytest.approx(195e6))
    floor.look(busy(t, 10_000_000, gap_uj=1), 1.0, loaded=True)
    assert floor.workflow_uj == 310e6, "of a hole nothing is known"


def test_it_outlives_its_process() -> None:
    floor = Floor()
    windows(floor, [100.0] * 60)
    floor.look(busy(9.0, 150_000_000), 1.0, loaded=True)
    again = Floor.of(floor.state())
    assert (again.watts, again.workflow_uj, again.active_uj) == (floor.watts, floor.workflow_uj, floor.active_uj)
    windows(again, [110.0] * 50)
    assert again.watts == pytest.approx(110.0), "what is seen goes before what was"
    assert Floor.of(Floor().state()).watts is None


def test_idle_windows_are_kept_to_a_bound() -> None:
    floor = Floor()
    for t in count():
        floor.look(Settled(GPU, t / 10, t / 10 + 0.1, (), idle_uj=10_000_000), 0.0, loaded=True)
        if t > 2000:
            break
    assert len(floor._idle_w) <= 600
