import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.tables import Histogram, Spread, Totals


@given(deltas=st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
def test_joules_are_exact_however_many_are_added(deltas: list[int]) -> None:
    totals = Totals("e", "", ("a",), per_unit=10**6)
    for delta_uj in deltas:
        totals.add(("x",), delta_uj)
    (family,) = totals.families()
    assert family.samples[0].value == sum(deltas) / 1e6


def test_zero_makes_a_series_visible_and_a_negative_amount_is_refused() -> None:
    totals = Totals("e", "", ("a",))
    totals.add(("x",), 0)
    with pytest.raises(ValueError, match="-1 is negative"):
        totals.add(("x",), -1)
    (family,) = totals.families()
    assert [(sample.name, sample.value) for sample in family.samples] == [("e_total", 0)]


@given(values=st.lists(st.floats(0, 10), max_size=60), cut=st.integers(0, 60))
def test_taking_a_stream_at_once_equals_observing_it(values: list[float], cut: int) -> None:
    bounds = (0.5, 1.0, 5.0)
    one, many, stream = Histogram("h", "", (), bounds), Histogram("h", "", (), bounds), Spread(bounds)
    for value in values:
        one.observe((), value)
    for part in (values[:cut], values[cut:]):
        for value in part:
            stream.observe(value)
        many.series(()).take(stream)
    assert many.series(()).counts == one.series(()).counts
    assert many.series(()).total == pytest.approx(one.series(()).total)
    assert sum(stream.counts) == 0 and stream.total == 0


def test_a_value_on_a_bound_belongs_to_it() -> None:
    histogram = Histogram("h", "", ("a",), (0.5, 1.0))
    for value in (0.5, 0.6, 1.0, 7.0):
        histogram.observe(("x",), value)
    (family,) = histogram.families()
    shown = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert shown == {
        ("h_bucket", "0.5"): 1,
        ("h_bucket", "1.0"): 3,
        ("h_bucket", "+Inf"): 4,
        ("h_count", None): 4,
        ("h_sum", None): pytest.approx(9.1),
    }
