from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from loadgen.statistics import holm, line_r2, mean_interval, paired_change, unpaired_change

VALUES = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=12).filter(lambda them: max(them) - min(them) > 1e-3)


@given(VALUES)
def test_the_t_interval_is_scipys(values: list[float]) -> None:
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_the_bootstrap_interval_repeats_and_lies_about_the_mean() -> None:
    values = [1.0, 1.2, 0.9, 4.0, 1.1, 1.3]
    found = mean_interval(values, "bootstrap")
    assert found == mean_interval(values, "bootstrap") and found.method == "bootstrap"
    assert found.low is not None and found.high is not None and 0.9 < found.low < np.mean(values) < found.high < 4
    assert found.high - found.mean > found.mean - found.low  # it sees the skew, which t does not


def test_few_and_equal_repeats() -> None:
    assert (mean_interval([3.0]).low, mean_interval([3.0]).n) == (None, 1)
    equal = mean_interval([2.0, 2.0, 2.0])
    assert (equal.low, equal.mean, equal.high) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="no mean"):
        mean_interval([])


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=3, max_size=10))
def test_changes_are_scipys_of_the_logarithms(pairs: list[tuple[float, float]]) -> None:
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    logs = np.log(after) - np.log(before)
    if np.std(logs) < 1e-6 or np.std(np.log(before)) < 1e-6 or np.std(np.log(after)) < 1e-6:
        return
    paired, welch = paired_change(before, after), unpaired_change(before, after)
    expected: Any = stats.ttest_rel(np.log(after), np.log(before))
    interval = expected.confidence_interval(0.95)
    assert paired.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (paired.low, paired.high) == pytest.approx((np.expm1(interval.low), np.expm1(interval.high)), rel=1e-6)
    expected = stats.ttest_ind(np.log(after), np.log(before), equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert welch.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (welch.low, welch.high) == pytest.approx((np.expm1(interval.low), np.expm1(interval.high)), rel=1e-6)


def test_pairs_see_what_their_noise_hides() -> None:
    before, after = [10.0, 20.0, 40.0], [9.0, 18.1, 35.9]
    paired, alone = paired_change(before, after), unpaired_change(before, after)
    assert paired.high is not None and paired.high < -0.08 and paired.p is not None and paired.p < 0.01
    assert alone.p is not None and alone.p > 0.5 and alone.share == pytest.approx(paired.share)


def test_repeats_that_agree_exactly_are_sure_and_one_is_not() -> None:
    assert paired_change([1.0, 1.0], [1.0, 1.0]).p == 1.0
    sure = paired_change([1.0, 2.0], [0.5, 1.0])
    assert (sure.low, sure.high, sure.p) == (pytest.approx(-0.5), pytest.approx(-0.5), 0.0)
    assert paired_change([1.0], [2.0]).low is None and unpaired_change([1.0], [2.0, 3.0]).p is None


def test_ratios_need_values_above_zero_in_pairs() -> None:
    with pytest.raises(ValueError, match="above 0"):
        paired_change([0.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="as many"):
        paired_change([1.0], [1.0, 2.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_never_kinder_than_one_question_nor_harsher_than_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, one in zip(p_values, adjusted, strict=True):
        assert p <= one <= min(1.0, len(p_values) * p) + 1e-12
    in_order = [one for _, one in sorted(zip(p_values, adjusted, strict=True))]
    assert all(a <= b for a, b in pairwise(in_order))


def test_holms_own_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_line_is_judged() -> None:
    assert line_r2([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    fit = cast(Any, stats.linregress([1, 2, 3, 4], [1, 0, 1, 0]))
    assert line_r2([1, 2, 3, 4], [1, 0, 1, 0]) == pytest.approx(fit.rvalue**2)
    with pytest.raises(ValueError, match="three"):
        line_r2([1, 2], [1, 2])
