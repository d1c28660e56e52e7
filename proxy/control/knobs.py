"""The power limit and the SM clock of a GPU, as things to read and to turn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

T = TypeVar("T")


class KnobError(RuntimeError):
    """The device did not do what it was asked; the message says why."""


class NoPrivilege(KnobError):
    """This process, or its token, may not set what it was asked to."""


class Knob(Protocol):
    """One thing to turn on one GPU, in the unit of its `Quantity`. Every call may block for some milliseconds and raise
    KnobError."""

    @property
    def uuid(self) -> str | None: ...

    @property
    def place(self) -> str:
        """What tells this GPU from all others of the host, for a lock."""
        ...

    def read(self) -> float | None:
        """What was set last, by whomever; None where nobody can tell."""
        ...

    def write(self, value: float) -> None:
        """Set it. Raises NoPrivilege when that is not allowed."""
        ...

    def put_back(self, found: float | None) -> None:
        """Set what was found, or what the driver does of itself where that could not be read."""
        ...

    def range(self) -> tuple[float, float] | None:
        """Smallest and largest value that the device takes; None where it does not say."""
        ...

    def enforced(self) -> float | None:
        """What really holds, which another limiter may keep below what was set; None where nobody can tell."""
        ...


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a knob turns. Values that differ by less than `same` are one: drivers round."""

    name: str
    unit: str
    same: float

    def words(self, value: float | None) -> str:
        return "the driver's own" if value is None else f"{value:g} {self.unit}"


POWER = Quantity("power limit", "W", 1.0)
SM_CLOCK = Quantity("SM clock", "MHz", 8.0)  # half of the steps in which NVIDIA's clocks come


class PowerKnob(Knob, Protocol):
    def throttle(self) -> frozenset[str] | None:
        """What holds the clock down now, as NVML names it; None where nobody can tell."""
        ...


@dataclass(frozen=True, slots=True)
class Knobs:
    """The knobs of the GPUs that can be reached, by device name."""

    power: Mapping[str, PowerKnob] = field(default_factory=dict)
    sm_clock: Mapping[str, Knob] = field(default_factory=dict)


def asked(ask: Callable[[], T]) -> T:
    """Ask the device, with whatever it raises turned into our two errors."""
    from zeus.device.gpu.common import ZeusGPUNoPermissionError

    try:
        return ask()
    except ZeusGPUNoPermissionError as error:
        raise NoPrivilege(str(error)) from error
    except Exception as error:
        # The edge to the libraries of several vendors, each with errors of its own; whatever it is, the device did not
        # answer. zeusd gives NVML's own words for a missing privilege of its own.
        if "nsufficient permission" in str(error) or "does not have permission" in str(error):
            raise NoPrivilege(str(error)) from error
        raise KnobError(str(error) or type(error).__name__) from error
