from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.energy.wrap import Steady, Unwrap

RANGE_UJ = 262_143_328_850  # of a real package


@given(first=st.integers(0, RANGE_UJ - 1), deltas_uj=st.lists(st.integers(0, 150_000_000), max_size=50))
def test_unwrapping_loses_no_microjoule(first: int, deltas_uj: list[int]) -> None:
    counter, true_uj, t = Unwrap(RANGE_UJ), first, 0.0
    assert counter.at(first, t) == first
    for delta_uj in deltas_uj:
        true_uj, t = true_uj + delta_uj, t + 0.1
        assert counter.at(true_uj % RANGE_UJ, t) == true_uj


def test_a_wrap_adds_the_range() -> None:
    counter = Unwrap(RANGE_UJ)
    assert counter.at(RANGE_UJ - 10, 0.0) == RANGE_UJ - 10
    assert counter.at(5, 0.1) == RANGE_UJ + 5


def test_a_fall_that_no_power_explains_is_a_reset() -> None:
    counter = Unwrap(RANGE_UJ)
    counter.at(RANGE_UJ // 2, 0.0)
    assert counter.at(7, 0.1) == 7


def test_a_wrap_noticed_late_is_waited_for() -> None:
    counter = Steady()
    seen = [counter.at(uj, t) for t, uj in ((0.0, 990), (0.1, 5), (0.9, 40), (1.0, 1050), (1.1, 1060))]
    assert seen == [990, None, None, 1050, 1060]


def test_a_reset_is_passed_on_after_two_seconds() -> None:
    counter = Steady()
    seen = [counter.at(uj, t) for t, uj in ((0.0, 990), (0.1, 5), (2.0, 40), (2.2, 50), (2.3, 60))]
    assert seen == [990, None, None, 50, 60]


@given(st.lists(st.integers(0, 10**12), max_size=50))
def test_a_steady_counter_never_falls_within_two_seconds(values_uj: list[int]) -> None:
    counter = Steady()
    shown = [uj for i, value_uj in enumerate(values_uj) if (uj := counter.at(value_uj, i * 0.01)) is not None]
    assert all(a <= b for a, b in pairwise(shown))
