from typing import Any

import pytest

from emulator.core.settings import EngineSettings, OutOfMemory, kv_blocks

LLAMA_2_7B = {"weight_bytes": 13.5e9, "layers": 32, "kv_heads": 32, "head_dim": 128}


def test_blocks_fill_what_weights_and_activations_leave() -> None:
    blocks = kv_blocks(memory_bytes=141e9, gpu_memory_utilization=0.9, activation_bytes=2e9, **LLAMA_2_7B)
    token_bytes = 2 * 32 * 32 * 128 * 2  # 512 KiB
    left = 141e9 * 0.9 - 13.5e9 - 2e9
    assert (blocks + 1) * 16 * token_bytes <= left < (blocks + 2) * 16 * token_bytes


def test_two_cards_share_weights_and_heads() -> None:
    one = kv_blocks(memory_bytes=40e9, gpu_memory_utilization=0.9, activation_bytes=0, **LLAMA_2_7B)
    two = kv_blocks(memory_bytes=20e9, gpu_memory_utilization=0.9, activation_bytes=0, gpus=2, **LLAMA_2_7B)
    assert one == two


def test_a_model_too_big_for_the_card_says_what_it_needs() -> None:
    with pytest.raises(OutOfMemory, match=r"needs 15\.6 GB .* may use 14\.4 GB of its 16\.0"):
        kv_blocks(memory_bytes=16e9, gpu_memory_utilization=0.9, activation_bytes=2.1e9, **LLAMA_2_7B)
    with pytest.raises(ValueError, match="gpu_memory_utilization"):
        kv_blocks(memory_bytes=16e9, gpu_memory_utilization=1.2, activation_bytes=0, **LLAMA_2_7B)


def test_a_context_that_the_cache_cannot_hold_says_which_would_fit() -> None:
    with pytest.raises(OutOfMemory, match="max_model_len to 1600 or less"):
        EngineSettings(kv_blocks=100, max_model_len=4096)
    assert EngineSettings(kv_blocks=100, max_model_len=1600).max_num_seqs == 256


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is at least 1"),
        ({"max_num_batched_tokens": 100}, r"max_num_batched_tokens \(100\) must be at least max_num_seqs \(256\)"),
        ({"policy": "lifo"}, "fcfs or priority, not 'lifo'"),
        ({"request_s": -1.0}, "request_s is at least 0"),
        ({"output_s": float("nan")}, "output_s is at least 0"),
        ({"max_num_queued_reqs": 0}, "max_num_queued_reqs is at least 1 or None"),
    ],
)
def test_what_contradicts_itself_is_refused(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"kv_blocks": 1000, "max_model_len": 4096}
    with pytest.raises(ValueError, match=message):
        EngineSettings(**right | wrong)
