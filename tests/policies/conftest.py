from collections.abc import Callable

import pytest

from policies.interface import DeviceSignals, EngineSignals, Objective, Prices, Signals, WorkflowSignals

# H200 x Llama-2-7B, as measured.
PRICES = Prices(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, rest_w=123.0)


@pytest.fixture
def search() -> Callable[..., WorkflowSignals]:
    """Searches of 40 uncached prompt tokens and 150 output tokens, each served in 0.8 s."""

    def make(
        rate: float, patience_s: float = 0.0, served_s: float = 0.8, **given: float | Objective
    ) -> WorkflowSignals:
        asked = {
            "objective": Objective(patience_s),
            "prompt_tokens": 40.0,
            "output_tokens": 150.0,
            "depth": 1.0,
        } | given
        return WorkflowSignals(requests_per_s=rate, served_s=served_s, **asked)  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture
def signals() -> Callable[..., Signals]:
    """One engine, e1 on h1/gpu:0, with these workflows."""

    def make(
        prices: Prices | None = PRICES,
        kv_usage: float | None = None,
        devices: DeviceSignals | None = None,
        **given: WorkflowSignals,
    ) -> Signals:
        engine = EngineSignals(True, devices=("h1/gpu:0",), kv_usage=kv_usage, prices=prices)
        return Signals(1000.0, given, {"e1": engine}, {"h1/gpu:0": devices or DeviceSignals()})

    return make
