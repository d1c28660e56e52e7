"""The knobs of this machine's GPUs, through Zeus and NVML."""

import logging
from typing import TYPE_CHECKING

from proxy.control.knobs import Knob, KnobError, Knobs, PowerKnob, asked

if TYPE_CHECKING:
    from zeus.device.gpu.common import GPU

logger = logging.getLogger(__name__)

_REASONS = {  # NVML's nvmlClocksEventReason bits
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}


class ZeusGpu:
    """What the knobs of a GPU of this machine share."""

    def __init__(self, gpu: "GPU") -> None:
        from zeus.device.gpu.nvidia import NVIDIAGPU

        self._gpu = gpu
        self._handle = gpu.handle if isinstance(gpu, NVIDIAGPU) else None
        self.uuid = self._nvml_uuid()

    @property
    def place(self) -> str:
        return self.uuid or f"local-gpu-{self._gpu.gpu_index}"

    def _nvml_uuid(self) -> str | None:
        if self._handle is None:
            return None
        import pynvml

        return asked(lambda: pynvml.nvmlDeviceGetUUID(self._handle))


class ZeusPower(ZeusGpu):
    """The power limit of a GPU of this machine, in watts."""

    def read(self) -> float:
        return asked(self._gpu.get_power_management_limit) / 1000

    def write(self, value: float) -> None:
        asked(lambda: self._gpu.set_power_management_limit(round(value * 1000)))

    def put_back(self, found: float | None) -> None:
        if found is None:
            asked(self._gpu.reset_power_management_limit)
        else:
            self.write(found)

    def range(self) -> tuple[float, float] | None:
        low_mw, high_mw = asked(self._gpu.get_power_management_limit_constraints)
        return low_mw / 1000, high_mw / 1000

    def enforced(self) -> float:
        if self._handle is None:
            return self.read()
        import pynvml

        return asked(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle)) / 1000

    def throttle(self) -> frozenset[str] | None:
        """What holds the clock down now, as NVML names it; None where nobody can tell."""
        if self._handle is None:
            return None
        import pynvml

        mask = asked(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))
        return frozenset(name for bit, name in _REASONS.items() if mask & bit)


class ZeusClock(ZeusGpu):
    """The highest SM clock of a GPU of this machine, in MHz. What was locked before cannot be read."""

    def __init__(self, gpu: "GPU") -> None:
        super().__init__(gpu)
        self._range_mhz: tuple[float, float] | None = None

    def read(self) -> None:
        return None

    def write(self, value: float) -> None:
        asked(lambda: self._gpu.set_gpu_locked_clocks(round(self.range()[0]), round(value)))

    def put_back(self, found: float | None) -> None:
        asked(self._gpu.reset_gpu_locked_clocks)

    def range(self) -> tuple[float, float]:
        if self._range_mhz is None:
            self._range_mhz = asked(self._supported_mhz)
        return self._range_mhz

    def _supported_mhz(self) -> tuple[float, float]:
        clocks_mhz = self._gpu.get_supported_graphics_clocks(max(self._gpu.get_supported_memory_clocks()))
        return float(min(clocks_mhz)), float(max(clocks_mhz))

    def enforced(self) -> float | None:
        """The clock at this moment, which says that a lock holds, not which one."""
        if self._handle is None:
            return None
        import pynvml

        return float(asked(lambda: pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM)))


def local_knobs(host: str) -> Knobs:
    """The knobs of every GPU that Zeus finds here, by device name."""
    from zeus.device import get_gpus
    from zeus.exception import ZeusBaseError

    try:
        gpus = get_gpus().gpus
    except (ZeusBaseError, ImportError, ValueError) as error:
        logger.info("%s: no GPU whose power could be limited: %s", host, error)
        return Knobs()
    power: dict[str, PowerKnob] = {}
    sm_clock: dict[str, Knob] = {}
    for gpu in gpus:
        name = f"{host}/gpu:{gpu.gpu_index}"
        try:
            knob = ZeusPower(gpu)
            knob.read()
        except KnobError as error:
            logger.warning("%s has no power limit to set: %s", name, error)
            continue
        power[name] = knob
        clock = ZeusClock(gpu)
        try:
            clock.range()
        except KnobError as error:
            logger.info("%s has no SM clock to set: %s", name, error)
        else:
            sm_clock[name] = clock
    return Knobs(power, sm_clock)
