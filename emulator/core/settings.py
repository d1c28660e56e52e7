"""How an engine is set up, and what of it fits a GPU."""

from dataclasses import dataclass
from typing import Literal


class OutOfMemory(Exception):
    """The engine cannot start: the message says what lacks and what would fit."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """vLLM's engine arguments under their own names, and the cost of the HTTP server before the engine.

    `kv_blocks` are blocks that hold tokens (see `kv_blocks`). `reserve_full_prompt` is vLLM's
    scheduler_reserve_full_isl: nothing is admitted before its whole prompt would fit. `max_num_queued_reqs` counts
    what waits and what runs, as vLLM does. The server works through requests one after the other: each takes
    `request_s`, and `prompt_token_s` for each token of its prompt (HTTP, JSON, tokenising), before the engine sees it;
    `output_s` is from a step's end to the client.

    Raises ValueError for settings that contradict each other, OutOfMemory for a context that the cache cannot hold.
    """

    kv_blocks: int
    max_model_len: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    policy: Literal["fcfs", "priority"] = "fcfs"
    enable_prefix_caching: bool = True
    reserve_full_prompt: bool = True
    max_num_queued_reqs: int | None = None
    request_s: float = 0.0
    prompt_token_s: float = 0.0
    output_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_model_len", "block_size", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("request_s", "prompt_token_s", "output_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is at least 0 seconds, not {getattr(self, name)}")
        if self.policy not in ("fcfs", "priority"):
            raise ValueError(f"policy is fcfs or priority, not {self.policy!r}")
        if self.max_num_queued_reqs is not None and self.max_num_queued_reqs < 1:
            raise ValueError(f"max_num_queued_reqs is at least 1 or None, not {self.max_num_queued_reqs}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs"
                f" ({self.max_num_seqs}): every running sequence decodes a token a step"
            )
        if self.kv_blocks * self.block_size < self.max_model_len:
            raise OutOfMemory(
                f"the KV cache holds {max(0, self.kv_blocks) * self.block_size} tokens, fewer than max_model_len"
                f" ({self.max_model_len}): lower max_model_len to {max(0, self.kv_blocks) * self.block_size} or less,"
                " or raise gpu_memory_utilization"
            )


def kv_blocks(
    *,
    memory_bytes: float,
    gpu_memory_utilization: float,
    weight_bytes: float,
    activation_bytes: float,
    layers: int,
    kv_heads: int,
    head_dim: int,
    dtype_bytes: float = 2,
    block_size: int = 16,
    gpus: int = 1,
) -> int:
    """Blocks of KV cache that hold tokens, on `gpus` cards of `memory_bytes` that share weights and heads evenly.

    A token takes 2 (key and value) x layers x kv_heads x head_dim x dtype_bytes, over all cards. `activation_bytes` is
    what a card needs for a step's activations and the runtime. One block is vLLM's null block, which holds nothing
    (`v1/core/block_pool.py`). Raises OutOfMemory if not even one other fits.
    """
    if not 0 < gpu_memory_utilization <= 1:
        raise ValueError(f"gpu_memory_utilization is above 0 and at most 1, not {gpu_memory_utilization}")
    token_bytes = 2 * layers * kv_heads * head_dim * dtype_bytes / gpus
    left_bytes = memory_bytes * gpu_memory_utilization - weight_bytes / gpus - activation_bytes
    blocks = int(left_bytes // (token_bytes * block_size)) - 1
    if blocks < 1:
        needed_bytes = weight_bytes / gpus + activation_bytes + 2 * token_bytes * block_size
        raise OutOfMemory(
            f"a card needs {needed_bytes / 1e9:.1f} GB for weights, activations and the least KV cache, and may use"
            f" {memory_bytes * gpu_memory_utilization / 1e9:.1f} GB of its {memory_bytes / 1e9:.1f}: more cards,"
            " a smaller model or dtype, or a higher gpu_memory_utilization would fit"
        )
    return blocks
