import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.energy.prior import Coefficients, prior

PRICES = ("step_j", "prompt_j", "output_j", "context_j")
NUMBERS = tuple(field.name for field in fields(Coefficients) if field.name != "source")


def test_the_measured_pair_is_what_was_measured() -> None:
    found = prior("NVIDIA H200", "meta-llama/Llama-2-7b-hf")
    assert [getattr(found, name) for name in PRICES] == [2.0, 0.0165, 0.025, 0.00007]
    assert found.source.startswith("measured")


def test_the_demos_pair_is_measured() -> None:
    found = prior("AMD EPYC 9B14", "SmolLM2-135M-Instruct")
    assert found.source.startswith("CPU-seconds measured") and found.step_j == 0.037


def test_an_unknown_model_is_scaled_by_its_size() -> None:
    small, large = prior("NVIDIA H200", "qwen2.5-0.5B"), prior("NVIDIA H200", "Llama-3.1-70B-Instruct")
    assert large.step_j / small.step_j == pytest.approx(140)
    assert large.prompt_j / small.prompt_j == pytest.approx(140)
    assert large.spread > prior("NVIDIA H200", "llama-2-7b").spread
    assert "scaled" in large.source and "unknown" not in large.source


def test_an_unknown_device_is_scaled_by_its_datasheet() -> None:
    l4, h200 = prior("NVIDIA L4", "llama-2-7b"), prior("NVIDIA H200", "llama-2-7b")
    assert l4.step_s / h200.step_s == pytest.approx(7 / 6.7 * 4800 / 300)
    assert l4.step_j / h200.step_j == pytest.approx(7 / 6.7 * 4800 / 300 * 72 / 700)


def test_what_is_not_known_is_said() -> None:
    source = prior("Frobnicator 9", "my-model").source
    assert "device 'Frobnicator 9'" in source and "model 'my-model'" in source
    assert "device" not in prior("NVIDIA A100-SXM4-80GB", "my-model").source.partition("unknown")[2]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Llama-2-7b", 7), ("qwen2.5-0.5B", 0.5), ("SmolLM2-135M", 0.135), ("gpt-4", 6.7), ("mixtral-8x7b", 6.7)],
)
def test_sizes_are_read_from_names(name: str, billions: float) -> None:
    assert prior("NVIDIA H100", name).step_j == pytest.approx(prior("NVIDIA H100", f"x-{billions}b").step_j)


@given(st.text(max_size=30), st.text(max_size=30) | st.from_regex(r"x-\d{1,3}(\.\d)?[bBmM]", fullmatch=True))
def test_any_names_give_prices_that_can_be_used(device: str, model: str) -> None:
    found = prior(device, model)
    assert all(math.isfinite(getattr(found, name)) and getattr(found, name) > 0 for name in NUMBERS)
