"""An engine put together: which model on which cards, with how much KV cache."""

from dataclasses import replace

from emulator.core.gpu import Gpu
from emulator.core.presets import GpuPreset, ModelPreset, PresetError
from emulator.core.settings import EngineSettings, OutOfMemory, kv_blocks

RUNTIME_BYTES = 1.5e9  # CUDA context, graphs and workspaces: assumed


def engine_of(
    gpu: GpuPreset,
    model: ModelPreset,
    *,
    cards: int = 1,
    gpu_memory_utilization: float = 0.9,
    max_model_len: int | None = None,
    settings: EngineSettings | None = None,
) -> tuple[EngineSettings, list[Gpu]]:
    """The engine's settings, with the KV cache that fits, and its cards. Other settings are taken from `settings`.

    `max_model_len` defaults to the model's, or less if the cache is smaller. Raises PresetError for a model that these
    cards cannot run, OutOfMemory for one that does not fit.
    """
    shape = model.shape
    if cards < 1 or shape.heads % cards or shape.kv_heads % cards:
        raise PresetError(
            f"{model.name} has {shape.heads} heads and {shape.kv_heads} KV heads:"
            f" {cards} cards cannot share them evenly"
        )
    most = max_model_len or shape.max_model_len
    if most > shape.max_model_len:
        raise PresetError(f"max_model_len of {model.name} is at most {shape.max_model_len}, not {most}")
    wanted = settings or EngineSettings(kv_blocks=1, max_model_len=1)
    token_bytes = (2 * shape.intermediate + 4 * shape.hidden) * shape.dtype_bytes
    logits_bytes = 8 * wanted.max_num_seqs * shape.vocab  # in 32 bits, and a copy to sample from
    try:
        blocks = kv_blocks(
            memory_bytes=gpu.card.memory_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
            weight_bytes=shape.weight_bytes,
            activation_bytes=RUNTIME_BYTES + wanted.max_num_batched_tokens * token_bytes / cards + logits_bytes,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype_bytes=shape.dtype_bytes,
            block_size=wanted.block_size,
            gpus=cards,
        )
    except OutOfMemory as error:
        raise OutOfMemory(f"{model.name} on {cards} x {gpu.name}: {error}") from None
    if max_model_len is None:
        most = min(most, blocks * wanted.block_size)
    fitted = replace(wanted, kv_blocks=blocks, max_model_len=most)
    return fitted, [Gpu(gpu.card, gpu.factors, shape, cards) for _ in range(cards)]
