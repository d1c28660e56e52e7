"""Energy out of CPU use, where a machine has no counter: good for comparing runs on it, not for absolute figures."""

from collections.abc import Callable
from pathlib import Path

import psutil

from proxy.clock import now
from proxy.energy.records import Quality
from proxy.energy.sources import Counters, Device, Group

# Watts of one logical CPU, idle and fully used: averages over server processors (Cloud Carbon Footprint's methodology,
# section on AWS).
IDLE_W, BUSY_W = 0.74, 3.5


def estimated_uj(elapsed_s: float, busy_s: float, cpus: int, full_w: float) -> int:
    """Microjoules of `cpus` logical CPUs that were used for `busy_s` CPU-seconds in all; `full_w` is with all in use.

    The idle share of the full wattage is that of the averages above.
    """
    idle_w = full_w * IDLE_W / BUSY_W
    return round(1e6 * (idle_w * elapsed_s + (full_w - idle_w) / cpus * min(busy_s, elapsed_s * cpus)))


def busy_s() -> float:
    """CPU-seconds of this machine in use since its start, over all logical CPUs (guests are within user and nice).

    Stolen time is none of it: other virtual machines had the processor then.
    """
    times = psutil.cpu_times()
    parts = ("user", "nice", "system", "irq", "softirq")
    return sum(getattr(times, part, 0.0) for part in parts)


def cpu_model() -> str:
    """The processor's name, as Linux gives it; "CPU" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


class Estimate(Counters):
    """One device, `{host}/cpu:0`, whose counter begins at 0 when this object is made."""

    def __init__(
        self,
        host: str,
        full_w: float | None,
        clock: Callable[[], float] = now,
        busy_s: Callable[[], float] = busy_s,
    ) -> None:
        self._cpus = psutil.cpu_count() or 1
        self._full_w = full_w or BUSY_W * self._cpus
        self._clock, self._busy_s = clock, busy_s
        self._began, self._busy_began_s = clock(), busy_s()
        self._energy_uj = 0
        device = Device(f"{host}/cpu:0", "cpu", cpu_model(), Quality.ESTIMATED)
        whence = "as configured" if full_w else "a guess; cpu_watts sets it"
        note = (
            f"{host}: no GPU or RAPL counter; CPU energy is estimated from CPU use at {self._full_w:.3g} W for "
            f"{self._cpus} logical CPUs ({whence}): good for comparing runs on this machine, not for absolute figures"
        )
        super().__init__([Group((device,), self._read_uj)], [note])

    def _read_uj(self) -> dict[str, int]:
        elapsed_s = self._clock() - self._began
        used_s = max(0.0, self._busy_s() - self._busy_began_s)
        energy_uj = estimated_uj(elapsed_s, used_s, self._cpus, self._full_w)
        self._energy_uj = max(self._energy_uj, energy_uj)  # ticks of CPU time may be corrected backwards
        return {self.devices[0].name: self._energy_uj}
