from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.fit import ENOUGH, Fit
from proxy.energy.prior import Coefficients

PRIOR = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
Kinds = tuple[list[float], ...]
PRICES = ("step_j", "prompt_j", "output_j", "context_j")
# Half a second of: a lone decode, a full batch, a long prefill beside a decode, long contexts.
KINDS: Kinds = ([100, 0, 100, 20_000], [60, 0, 1800, 500_000], [20, 20_000, 20, 4_000], [50, 500, 400, 1_200_000])


def cost(prices: Coefficients, quantities: list[float]) -> float:
    return sum(getattr(prices, name) * x for name, x in zip(PRICES, quantities, strict=True))


def shown(truth: Coefficients, windows: int = 400, kinds: Kinds = KINDS, error: float = 0.1) -> Fit:
    fit, rng = Fit(PRIOR), np.random.default_rng(1)
    for k in range(windows):
        quantities = kinds[k % len(kinds)]
        joules = cost(truth, quantities) * float(rng.normal(1.0, error))
        fit.observe(np.array(quantities, float), joules, 0.5)
    fit.refit()
    return fit


def test_without_windows_the_prior_stands() -> None:
    fit = shown(PRIOR, windows=ENOUGH - 5)
    assert fit.prices() is PRIOR and fit.windows == 0


def test_mixed_work_shows_what_each_thing_costs() -> None:
    truth = replace(PRIOR, step_j=2.4, prompt_j=0.014, output_j=0.030, context_j=0.00006)
    fitted = shown(truth, windows=4000).prices()
    for quantities in KINDS:
        assert cost(fitted, quantities) == pytest.approx(cost(truth, quantities), rel=0.04)
    assert fitted.source.startswith("fitted on ") and fitted.spread < PRIOR.spread


def test_one_kind_of_work_leaves_the_shape_of_the_others_alone() -> None:
    """A load that decodes alone says nothing of a prompt's price relative to the machine's level."""
    truth = replace(PRIOR, **{name: getattr(PRIOR, name) * 1.5 for name in PRICES})
    fitted = shown(truth, kinds=KINDS[:1]).prices()
    for quantities in KINDS:
        assert cost(fitted, quantities) == pytest.approx(cost(truth, quantities), rel=0.1)


def test_every_setting_of_the_clocks_has_a_gain_of_its_own() -> None:
    fit = Fit(PRIOR)
    for k in range(200):
        quantities = np.array(KINDS[k % 4], float)
        fit.observe(quantities, cost(PRIOR, KINDS[k % 4]), 0.5, "700 W")
        fit.observe(quantities, cost(PRIOR, KINDS[k % 4]) * 0.7, 0.5, "400 W")
    fit.refit()
    fast, slow = fit.prices("700 W"), fit.prices("400 W")
    assert slow.step_j / fast.step_j == pytest.approx(0.7, rel=0.01)
    assert slow.prompt_j / fast.prompt_j == pytest.approx(0.7, rel=0.01)
    assert fit.drifts == 0, "a change that was said is no drift"


def test_a_machine_that_changed_unsaid_is_found_out_and_learnt_anew() -> None:
    fit = shown(PRIOR, windows=1500)
    changed = replace(PRIOR, **{name: getattr(PRIOR, name) * 1.4 for name in PRICES})
    for k in range(200):
        fit.observe(np.array(KINDS[k % 4], float), cost(changed, KINDS[k % 4]), 0.5)
        fit.refit()
    assert fit.drifts == 1
    for quantities in KINDS:
        assert cost(fit.prices(), quantities) == pytest.approx(cost(changed, quantities), rel=0.05)


def test_noise_alone_is_no_drift() -> None:
    fit = Fit(PRIOR)
    rng = np.random.default_rng(3)
    for k in range(3000):
        fit.observe(np.array(KINDS[k % 4], float), cost(PRIOR, KINDS[k % 4]) * float(rng.normal(1, 0.12)), 0.5)
        if k % 50 == 0:
            fit.refit()
    assert fit.drifts == 0


@given(
    st.lists(
        st.tuples(*[st.floats(0, 1e5)] * 4, st.floats(0, 1e4), st.floats(0, 2), st.sampled_from(["", "a"])),
        min_size=1,
        max_size=80,
    )
)
@settings(deadline=None)
def test_no_price_is_negative_or_unheard_of(
    windows: list[tuple[float, float, float, float, float, float, str]],
) -> None:
    fit = Fit(PRIOR)
    for *quantities, joules, seconds, setting in windows:
        fit.observe(np.array(quantities), joules, seconds, setting)
        fit.refit()
    for name in PRICES:
        assert 0 <= getattr(fit.prices("a"), name) < float("inf")
    assert 1.0 <= fit.prices().spread <= PRIOR.spread
