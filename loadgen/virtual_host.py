"""The host of a load in virtual time: which model on which cards, and the knobs that a campaign turns."""

from dataclasses import dataclass

from emulator.core.presets import GpuPreset, load_model
from emulator.core.settings import EngineSettings
from emulator.engine import engine_of
from emulator.replay import ANSWER_S, QUEUE_S
from loadgen.virtual_energy import Metered


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What is loaded: presets by name or path, vLLM's arguments by their own names, and the knobs of a campaign.

    `in_flight` is a gate before the engine, first come first served (None: no gate). Watts and MHz hold for every card;
    None is the card's own default.
    """

    gpu: str = "h200"
    model: str = "llama-2-7b"
    gpus: int = 1
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    in_flight: int | None = None
    power_limit_w: float | None = None
    sm_mhz: int | None = None

    def __post_init__(self) -> None:
        if self.in_flight is not None and self.in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, or None for no gate, got {self.in_flight}")

    def engine(self, preset: GpuPreset) -> tuple[EngineSettings, list[Metered]]:
        """Its settings, with the KV cache that fits, and its cards. Raises OutOfMemory, PresetError, and ValueError for
        watts that the card cannot be set to.
        """
        wanted = EngineSettings(
            kv_blocks=1,
            max_model_len=1,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=max(self.max_num_batched_tokens, self.max_num_seqs),
            enable_prefix_caching=self.enable_prefix_caching,
            request_s=QUEUE_S,
            output_s=ANSWER_S,
        )
        settings, gpus = engine_of(
            preset,
            load_model(self.model),
            cards=self.gpus,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_model_len=self.max_model_len,
            settings=wanted,
        )
        for gpu in gpus:
            if self.power_limit_w is not None:
                gpu.power_limit_w = self.power_limit_w
            if self.sm_mhz is not None:
                gpu.sm_clock_range_mhz = (self.sm_mhz, self.sm_mhz)
        return settings, [Metered(gpu) for gpu in gpus]
