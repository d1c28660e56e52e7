from hypothesis import given
from hypothesis import strategies as st

from emulator.zeusd.meter import Meter


def test_the_counter_moves_at_its_period_alone() -> None:
    """A steady 500 W, looked at every 30 ms."""
    meter = Meter(period_s=0.1)
    shown = []
    for n in range(11):
        meter.see(500 * 0.03 * n, 0.01 + 0.03 * n)
        shown.append(round(meter.energy_mj, -1))
    assert shown == [0] * 4 + [45_000] * 3 + [95_000] * 3 + [145_000]


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1000)), min_size=1, max_size=30), period_s=st.floats(0.01, 1)
)
def test_the_counter_never_falls_nor_runs_ahead(steps: list[tuple[float, float]], period_s: float) -> None:
    meter = Meter(period_s)
    at, energy_j, shown_mj = 50.0, 0.0, 0
    meter.see(0.0, at)
    for seconds, joules in steps:
        at, energy_j = at + seconds, energy_j + joules
        meter.see(energy_j, at)
        assert shown_mj <= meter.energy_mj <= energy_j * 1000 + 1e-3
        shown_mj = meter.energy_mj
    meter.see(energy_j, at + period_s)
    meter.see(energy_j, at + 2 * period_s)
    assert abs(meter.energy_mj - energy_j * 1000) <= 1, "nothing is lost: it comes with the next move"


def test_a_reset_is_shown_at_once() -> None:
    meter = Meter()
    meter.see(90.0, 5.0)
    assert meter.energy_mj == 90_000
    meter.see(0.25, 5.01)
    assert (meter.energy_mj, meter.power_mw) == (250, None)


def test_power_is_the_mean_of_a_moment() -> None:
    meter = Meter()
    assert meter.power_mw is None
    meter.see(0.0, 10.0)
    assert meter.power_mw is None
    meter.see(9.0, 10.03)
    assert meter.power_mw is None, "two looks too close to each other tell nothing"
    meter.see(18.0, 10.06)
    assert meter.power_mw == 300_000
    meter.see(18.0 + 60 * 0.5, 10.56)
    assert meter.power_mw == 60_000
    meter.see(500.0, 20.0)
    assert meter.power_mw is None, "long ago says nothing of now"
