"""A zeusd over GPUs and CPUs that do as a test says, in a thread of the test's own process."""

import asyncio
import threading
import time
from typing import Any

from emulator.host import Card, Host, Package
from emulator.zeusd.app import Zeusd
from emulator.zeusd.driver import GpuLost
from emulator.zeusd.serve import listener, server


class Ramp:
    """An energy counter that grows by `power_w` watts from now on, which tests set, as they do `spent_j`."""

    def __init__(self) -> None:
        self.spent_j, self._power_w, self._since = 0.0, 0.0, time.monotonic()

    @property
    def power_w(self) -> float:
        return self._power_w

    @power_w.setter
    def power_w(self, power_w: float) -> None:
        self.spent_j = self.energy_j
        self._power_w, self._since = power_w, time.monotonic()

    @property
    def energy_j(self) -> float:
        return self.spent_j + self._power_w * (time.monotonic() - self._since)


class PlayedGpu(Ramp):
    """An H200; a lost one cannot be read."""

    def __init__(self) -> None:
        super().__init__()
        self.power_limit_w = 700.0
        self.sm_clock_range_mhz: tuple[int, int] | None = None
        self.memory_clock_range_mhz: tuple[int, int] | None = None
        self.limit_range_w = (200.0, 700.0)
        self.supported_sm_mhz = range(345, 1981, 15)
        self.lost = False

    @property
    def energy_j(self) -> float:
        if self.lost:
            raise GpuLost
        return super().energy_j


class PlayedCpu:
    def __init__(self) -> None:
        self.package, self.dram = Ramp(), Ramp()

    @property
    def cpu_energy_j(self) -> float:
        return self.package.energy_j

    @property
    def dram_energy_j(self) -> float:
        return self.dram.energy_j


class Served:
    """`host` and `gpus` are there to be changed while it runs."""

    def __init__(self, gpus: int = 2, cpus: int = 1, at: str = "127.0.0.1:0", **options: Any) -> None:
        """`at` is where it listens; the options are those of `Zeusd`."""
        self.gpus, self.cpus = [PlayedGpu() for _ in range(gpus)], [PlayedCpu() for _ in range(cpus)]
        cards = [Card(gpu, "Emulated H200", f"GPU-{n}") for n, gpu in enumerate(self.gpus)]
        self.host = Host(cards, [Package(cpu) for cpu in self.cpus])
        self._listener = listener(at)
        name = self._listener.getsockname()
        self.address: str = name if isinstance(name, str) else f"{name[0]}:{name[1]}"
        self._server = server(Zeusd(self.host, **options))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._listener])), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; a second time does nothing."""
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()
