"""What NVML says of a host's cards and lets be done to them, and RAPL of its CPUs, with NVML's errors."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from emulator.host import Host
from emulator.zeusd.meter import Meter

Range = tuple[int, int]


class Gpu(Protocol):
    """What can be set on a card. Watts and MHz; a clock range of None is not locked."""

    @property
    def power_limit_w(self) -> float: ...
    @power_limit_w.setter
    def power_limit_w(self, watts: float, /) -> None: ...
    @property
    def sm_clock_range_mhz(self) -> Range | None: ...
    @sm_clock_range_mhz.setter
    def sm_clock_range_mhz(self, range_mhz: Range | None, /) -> None: ...
    @property
    def memory_clock_range_mhz(self) -> Range | None: ...
    @memory_clock_range_mhz.setter
    def memory_clock_range_mhz(self, range_mhz: Range | None, /) -> None: ...
    @property
    def energy_j(self) -> float: ...
    @property
    def limit_range_w(self) -> tuple[float, float]: ...
    @property
    def supported_sm_mhz(self) -> Sequence[int]: ...


class NvmlError(Exception):
    """What the driver answers instead; `status` is the HTTP status that zeusd makes of it."""

    status: ClassVar[int] = 500
    words: ClassVar[str] = "an internal driver error occured"

    def __str__(self) -> str:
        return f"NVML error: {self.words}"


class NoPermission(NvmlError):
    status = 403
    words = "the current user does not have permission to perform this operation"


class InvalidArgument(NvmlError):
    status = 400
    words = "a supplied argument was invalid"


class GpuLost(NvmlError):
    words = "device fell off the bus or has otherwise become inacessible"


class Driver:
    """The driver of one host. `at` is in seconds of a clock that never goes back; every call may raise NvmlError."""

    def __init__(self, host: Host[Any, Any], counter_period_s: float = 0.1) -> None:
        self._host = host
        self._meters = [Meter(counter_period_s) for _ in host.cards]
        self._persistent = [False] * len(host.cards)

    @property
    def gpu_names(self) -> list[str]:
        return [card.name for card in self._host.cards]

    @property
    def gpus(self) -> range:
        return range(len(self._host.cards))

    @property
    def cpus(self) -> range:
        return range(len(self._host.packages))

    def energy_mj(self, gpu: int, at: float) -> int:
        """The energy counter: since the driver was loaded, or since its last reset."""
        return self._metered(gpu, at).energy_mj

    def power_mw(self, gpu: int, at: float) -> int | None:
        """The power sensor; None at a look that comes long after the last one: the next tells."""
        return self._metered(gpu, at).power_mw

    def limit_mw(self, gpu: int) -> int:
        return round(self._gpu(gpu).power_limit_w * 1000)

    def limit_range_mw(self, gpu: int) -> Range:
        low_w, high_w = self._gpu(gpu).limit_range_w
        return round(low_w * 1000), round(high_w * 1000)

    def persistent(self, gpu: int) -> bool:
        return self._persistent[gpu]

    def set_limit_mw(self, gpu: int, limit_mw: int) -> None:
        low_mw, high_mw = self.limit_range_mw(gpu)
        card = self._settable(gpu)
        if not low_mw <= limit_mw <= high_mw:
            raise InvalidArgument
        card.power_limit_w = limit_mw / 1000

    def lock_sm_mhz(self, gpu: int, low_mhz: int, high_mhz: int) -> None:
        """Keep the SM clock within a range, which the card rounds to clocks that it has.

        Invalid is a range that is empty or lies wholly beyond those clocks; NVML says no more of it than "not a valid
        combination".
        """
        card = self._settable(gpu)
        clocks_mhz = card.supported_sm_mhz
        if low_mhz > high_mhz or high_mhz < min(clocks_mhz) or low_mhz > max(clocks_mhz):
            raise InvalidArgument
        card.sm_clock_range_mhz = (low_mhz, high_mhz)

    def unlock_sm(self, gpu: int) -> None:
        self._settable(gpu).sm_clock_range_mhz = None

    def lock_memory_mhz(self, gpu: int, low_mhz: int, high_mhz: int) -> None:
        card = self._settable(gpu)
        if not 0 < low_mhz <= high_mhz:
            raise InvalidArgument
        card.memory_clock_range_mhz = (low_mhz, high_mhz)

    def unlock_memory(self, gpu: int) -> None:
        self._settable(gpu).memory_clock_range_mhz = None

    def unlock(self, gpu: int) -> None:
        """Let go of both clocks."""
        self.unlock_sm(gpu)
        self.unlock_memory(gpu)

    def set_persistent(self, gpu: int, on: bool) -> None:
        self._settable(gpu)
        self._persistent[gpu] = on

    def rapl_uj(self, cpu: int) -> tuple[int, int]:
        """The counters of a CPU package and of its memory."""
        self._host.catch_up()
        package = self._host.packages[cpu]
        return int(package.cpu_energy_j * 1e6), int(package.dram_energy_j * 1e6)

    def _gpu(self, gpu: int) -> Gpu:
        return self._host.cards[gpu].gpu

    def _settable(self, gpu: int) -> Gpu:
        """The card, with what it did until now accounted for at the limits that held until now."""
        if not self._host.may_set:
            raise NoPermission
        self._host.catch_up()
        return self._gpu(gpu)

    def _metered(self, gpu: int, at: float) -> Meter:
        self._host.catch_up()
        self._meters[gpu].see(self._host.cards[gpu].energy_j, at)
        return self._meters[gpu]
