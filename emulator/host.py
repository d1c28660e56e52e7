"""The emulated machine: its GPUs and CPUs as counters, what may be done to them, and the engines that move them.

The engine's server and zeusd share one `Host`, in one process and one thread: what the one breaks, the other shows.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Gpu(Protocol):
    """What a host knows of a card; `emulator.core.gpu` has it. `energy_j` is cumulative and exact."""

    @property
    def energy_j(self) -> float: ...


class Cpu(Protocol):
    """A CPU package and the memory on it: cumulative joules."""

    @property
    def cpu_energy_j(self) -> float: ...
    @property
    def dram_energy_j(self) -> float: ...


G = TypeVar("G", bound=Gpu)
C = TypeVar("C", bound=Cpu)


class Engine(Protocol):
    """An engine on this host. `catch_up` runs it to the present, so that what its work cost is on the counters."""

    def catch_up(self) -> None: ...


@dataclass
class Card(Generic[G]):
    """A GPU as its driver shows it: a name, and a counter that a reset sets to zero."""

    gpu: G
    name: str  # begins with "Emulated": every reader of it then knows what its joules are worth
    uuid: str
    _zero_j: float = 0.0

    def __post_init__(self) -> None:
        if not self.name.startswith("Emulated"):
            raise ValueError(f"an emulated card must say so: name it 'Emulated {self.name}'")

    @property
    def energy_j(self) -> float:
        """Joules since the counter's last reset; call `Host.catch_up` first."""
        return self.gpu.energy_j - self._zero_j

    def reset_counter(self) -> None:
        self._zero_j = self.gpu.energy_j


@dataclass
class Package(Generic[C]):
    """A CPU package as RAPL shows it: two counters that a reset sets to zero."""

    cpu: C
    _cpu_zero_j: float = 0.0
    _dram_zero_j: float = 0.0

    @property
    def cpu_energy_j(self) -> float:
        return self.cpu.cpu_energy_j - self._cpu_zero_j

    @property
    def dram_energy_j(self) -> float:
        return self.cpu.dram_energy_j - self._dram_zero_j

    def reset_counter(self) -> None:
        self._cpu_zero_j, self._dram_zero_j = self.cpu.cpu_energy_j, self.cpu.dram_energy_j


@dataclass
class Host(Generic[G, C]):
    """One machine. Without `may_set` every call that sets a power limit or clocks is refused."""

    cards: list[Card[G]] = field(default_factory=list)
    packages: list[Package[C]] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    may_set: bool = True

    def catch_up(self) -> None:
        """Bring every counter to the present. To be called before any is read, and before any limit is set."""
        for engine in self.engines:
            engine.catch_up()

    def reset_counters(self) -> None:
        """All energy counters to zero, as a reloaded driver leaves them."""
        self.catch_up()
        for counter in (*self.cards, *self.packages):
            counter.reset_counter()


def cards(gpus: Sequence[G], name: str) -> list[Card[G]]:
    """One card a GPU, named "Emulated `name`", each with a UUID that is the same at every start."""
    named = f"Emulated {name}"
    return [Card(gpu, named, f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{named} {n}')}") for n, gpu in enumerate(gpus)]
