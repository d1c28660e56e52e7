import pytest

from proxy.control.recent import Recent, quantile


def test_growth_is_of_the_last_minute() -> None:
    recent = Recent()
    *_, grown = (recent.grown(float(second), (10.0 * second, 5.0)) for second in range(200))
    assert grown == (pytest.approx(600, rel=0.1), 0.0)


def test_a_counter_that_falls_begins_anew() -> None:
    recent = Recent()
    recent.grown(0.0, (100.0,))
    assert recent.grown(1.0, (120.0,)) == (20.0,)
    assert recent.grown(2.0, (3.0,)) == (0.0,)
    assert recent.grown(3.0, (5.0,)) == (2.0,)


def test_quantiles_as_prometheus_has_them() -> None:
    bounds = (0.1, 0.2, 0.4)
    assert quantile(0.95, bounds, (0, 0, 0, 0)) is None
    assert quantile(0.5, bounds, (10, 0, 0, 0)) == pytest.approx(0.05)
    assert quantile(0.95, bounds, (0, 90, 10, 0)) == pytest.approx(0.3)
    assert quantile(0.95, bounds, (1, 0, 0, 99)) == 0.4, "above the last bound nobody knows how far"
