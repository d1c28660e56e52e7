import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.core.presets import GpuPreset, Model, load_model
from emulator.core.roofline import Roofline
from emulator.core.step import StepWork


def test_one_sequence_reads_every_weight_once(h200: GpuPreset, llama: Model) -> None:
    demand = Roofline(h200.card, h200.factors, llama).demand(StepWork(decode_sequences=1, decode_context=1))
    read = llama.weight_bytes - llama.head_weights * llama.dtype_bytes  # the embedding is looked up, not read
    assert demand.memory_s == pytest.approx(read / (4.8e12 * h200.factors.hbm_share), rel=1e-3)
    assert demand.memory_s > 50 * demand.compute_s


def test_a_long_prompt_is_bound_by_arithmetic(h200: GpuPreset, llama: Model) -> None:
    roofline = Roofline(h200.card, h200.factors, llama)
    demand = roofline.demand(StepWork(1, 2048, 2048 * 2049 // 2, 2048))
    assert demand.compute_s > 5 * demand.memory_s
    flops = 2 * llama.layer_weights * 2048 + 2 * llama.head_weights + 4 * 32 * 4096 * 2048 * 2049 // 2
    assert demand.compute_s == pytest.approx(flops / (989.4e12 * 1980 / 1830 * h200.factors.flops_share), rel=1e-6)


def test_context_costs_its_cache_and_a_shared_prefix_less(h200: GpuPreset, llama: Model) -> None:
    roofline = Roofline(h200.card, h200.factors, llama)
    short, long, shared = (
        roofline.demand(StepWork(decode_sequences=8, decode_context=context, decode_shared=common))
        for context, common in ((8000, 0), (24000, 0), (24000, 14000))
    )
    rate = 4.8e12 * h200.factors.hbm_share
    assert long.memory_s - short.memory_s == pytest.approx(16000 * llama.kv_bytes_per_token / rate)
    assert short.memory_s < shared.memory_s < long.memory_s
    assert shared.hbm_j < long.hbm_j


def test_grouped_heads_read_less(h200: GpuPreset, llama: Model) -> None:
    work = StepWork(decode_sequences=8, decode_context=24000)
    grouped = load_model("llama-3.1-8b").shape
    of_llama_2, of_llama_3 = (Roofline(h200.card, h200.factors, model).demand(work) for model in (llama, grouped))
    assert of_llama_3.memory_s < of_llama_2.memory_s
    assert of_llama_3.overhead_s == of_llama_2.overhead_s


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 4000),
    sequences=st.integers(0, 64),
    context=st.integers(0, 4000),
    cards=st.sampled_from([2, 4, 8]),
)
def test_cards_share_the_work_and_wait_for_each_other(
    h200: GpuPreset, llama: Model, tokens: int, sequences: int, context: int, cards: int
) -> None:
    work = StepWork(1, tokens, tokens * (tokens + 1) // 2, tokens, sequences, sequences * context)
    alone = Roofline(h200.card, h200.factors, llama).demand(work)
    part = Roofline(h200.card, h200.factors, llama, cards).demand(work)
    for quantity in ("memory_s", "compute_s", "hbm_j", "core_j"):
        assert getattr(part, quantity) * cards == pytest.approx(getattr(alone, quantity))
    assert part.overhead_s > alone.overhead_s
