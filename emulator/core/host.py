"""The machine around the cards: what its CPUs and its memory draw. All figures are assumptions of the preset."""

from emulator.core.presets import HostFigures


class HostPower:
    """Cumulative joules of CPUs and DRAM, moved by `account` alone.

    The packages draw cpu_idle_w, and cpu_core_w for each busy core: engine_cores while a step runs (vLLM's engine core
    and worker poll), and the HTTP server's core for a while per request, prompt token and output token. DRAM draws
    dram_idle_w, and dram_active_w more while a step runs.
    """

    def __init__(self, figures: HostFigures) -> None:
        self._figures = figures
        self.cpu_energy_j = 0.0
        self.dram_energy_j = 0.0

    def account(
        self,
        seconds: float,
        *,
        busy_s: float = 0.0,
        requests: int = 0,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        """Let `seconds` pass, in `busy_s` of which the engine ran steps, and count what was served in them."""
        if not 0 <= busy_s <= seconds:
            raise ValueError(f"busy_s is 0 to seconds ({seconds:g}), not {busy_s:g}")
        figures = self._figures
        core_s = (
            figures.engine_cores * busy_s
            + figures.request_core_s * requests
            + figures.prompt_token_core_s * prompt_tokens
            + figures.output_token_core_s * output_tokens
        )
        self.cpu_energy_j += figures.cpu_idle_w * seconds + figures.cpu_core_w * core_s
        self.dram_energy_j += figures.dram_idle_w * seconds + figures.dram_active_w * busy_s
