import numpy as np
import pytest
from scipy import stats

from loadgen.variance import shares


def test_effects_that_multiply_are_found_and_nothing_else() -> None:
    batch, cap = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.1])
    values = np.repeat((batch[:, None] * cap[None, :])[..., None], 3, axis=2)
    found = {one.factors: one for one in shares(values, ("batch", "cap"))}
    expected = np.var(np.log(batch)) / (np.var(np.log(batch)) + np.var(np.log(cap)))
    assert found[("batch",)].share == pytest.approx(expected) and found[("batch",)].low == pytest.approx(expected)
    assert found[("batch", "cap")].share == pytest.approx(0) and found[()].share == pytest.approx(0)
    assert shares(values, ("batch", "cap"))[0].factors == ("batch",)


def test_one_factor_is_scipys_analysis_of_variance() -> None:
    rng = np.random.default_rng(1)
    values = np.exp(rng.normal([[0.0], [0.3], [0.5]], 0.2, (3, 6)))
    (share, rest) = shares(values, ("knob",))
    f = share.share / 2 / (rest.share / 15)
    assert f == pytest.approx(float(np.asarray(stats.f_oneway(*np.log(values)))[0]))
    assert share.low is not None and share.high is not None and share.low < share.share < share.high


def test_an_interaction_is_told_from_what_each_does_alone() -> None:
    values = np.exp(np.array([[0.0, 0.0], [0.0, 1.0]]))[..., None]
    found = {one.factors: one for one in shares(values, ("a", "b"))}
    assert [found[key].share for key in (("a",), ("b",), ("a", "b"))] == pytest.approx([1 / 3] * 3)
    assert found[("a",)].low is None


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        shares(np.zeros((2, 2, 1)), ("a", "b"))
    with pytest.raises(ValueError, match="the same"):
        shares(np.ones((2, 2, 2)), ("a", "b"))
