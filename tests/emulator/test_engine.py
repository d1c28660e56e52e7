import pytest

from emulator.core.presets import PresetError, load_gpu, load_model
from emulator.core.settings import OutOfMemory
from emulator.engine import engine_of


def test_a_model_that_fits() -> None:
    settings, cards = engine_of(load_gpu("h200"), load_model("llama-2-7b"))
    assert len(cards) == 1
    assert settings.max_model_len == 4096
    assert 200_000 < settings.kv_blocks * settings.block_size < 250_000  # tokens of half a megabyte in some 115 GB


def test_a_context_that_the_cache_cannot_hold_is_shortened() -> None:
    settings, _ = engine_of(load_gpu("a100-40g"), load_model("llama-3.1-8b"), gpu_memory_utilization=0.55)
    assert settings.max_model_len == settings.kv_blocks * settings.block_size < 131_072


def test_a_model_that_needs_more_cards_says_so() -> None:
    with pytest.raises(OutOfMemory, match=r"llama-2-70b on 1 x a100-40g: a card needs 1\d\d\.\d GB"):
        engine_of(load_gpu("a100-40g"), load_model("llama-2-70b"))
    _, cards = engine_of(load_gpu("a100-40g"), load_model("llama-2-70b"), cards=8)
    assert len(cards) == 8


def test_heads_that_cards_cannot_share() -> None:
    with pytest.raises(PresetError, match="64 heads and 8 KV heads: 16 cards"):
        engine_of(load_gpu("h200"), load_model("llama-2-70b"), cards=16)
    with pytest.raises(PresetError, match="0 cards"):
        engine_of(load_gpu("h200"), load_model("llama-2-7b"), cards=0)


def test_a_context_longer_than_the_model() -> None:
    with pytest.raises(PresetError, match="at most 4096, not 8192"):
        engine_of(load_gpu("h200"), load_model("llama-2-7b"), max_model_len=8192)
