import numpy as np
import pytest

from proxy.energy.fit import ENOUGH
from proxy.energy.prior import Coefficients
from proxy.energy.records import Quality
from proxy.energy.savings import saved
from proxy.energy.serving import Serving
from proxy.energy.sources import Device
from proxy.energy.work import Progress

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")


def progress(cached: int | None) -> Progress:
    return Progress("q1", 1, "e1", 100.0, ended=101.0, prompt_tokens=1000, cached_tokens=cached)


def device(name: str, quality: Quality = Quality.MEASURED) -> Device:
    return Device(name, "gpu", "NVIDIA H200", quality)


GPU = {"h1/gpu:0": device("h1/gpu:0")}


def fitted(serving: Serving) -> Serving:
    for _ in range(ENOUGH + 1):
        serving.fit.observe(np.array([100.0, 0.0, 100.0, 20_000.0]), 210.0, 0.5)
    serving.learn("")
    return serving


def test_cached_tokens_times_the_price_of_one_that_is_not() -> None:
    """By hand: 800 tokens of 16.5 mJ are 13.2 J; nothing of them is measured, as long as nothing is fitted."""
    assert saved(progress(800), Serving("e1", ["h1/gpu:0"], PRICES), GPU) == (Quality.ESTIMATED, 13_200_000)


def test_a_fitted_price_makes_it_attributed() -> None:
    serving = fitted(Serving("e1", ["h1/gpu:0"], PRICES))
    assert serving.prices.prompt_j != PRICES.prompt_j
    assert saved(progress(800), serving, GPU) == (Quality.ATTRIBUTED, round(800e6 * serving.prices.prompt_j))


@pytest.mark.parametrize("quality", [Quality.ESTIMATED, Quality.EMULATED])
def test_it_is_no_better_than_the_counter(quality: Quality) -> None:
    serving = fitted(Serving("e1", ["h1/gpu:0"], PRICES))
    found = saved(progress(1), serving, {"h1/gpu:0": device("h1/gpu:0", quality)})
    assert found is not None and found[0] is quality


def test_the_price_is_one_devices_and_holds_for_each_of_its_kind() -> None:
    names = ["h1/gpu:0", "h1/gpu:1", "h1/cpu:0"]
    serving = Serving("e1", names, PRICES)
    assert saved(progress(800), serving, {name: device(name) for name in names}) == (Quality.ESTIMATED, 26_400_000)


@pytest.mark.parametrize(("cached", "devices"), [(0, GPU), (None, GPU), (800, {})])
def test_nothing_found_nothing_told_or_nobody_counting(cached: int | None, devices: dict[str, Device]) -> None:
    assert saved(progress(cached), Serving("e1", ["h1/gpu:0"], PRICES), devices) is None
