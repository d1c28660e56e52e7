"""What the step machine asks of a GPU: the protocol that `emulator.core.gpu.Gpu` fulfils."""

from collections.abc import Hashable
from typing import Protocol

from emulator.core.step import StepCost, StepWork


class Device(Protocol):
    """One card of an engine.

    The machine needs no closed form for many steps: it samples `step` for pure decode at contexts that are multiples
    of `emulator.core.decode.GRID` tokens a sequence, keeps what it got while `limits` is the same, and takes the cost
    between two such contexts as linear. A call may therefore be slow (tens of microseconds) but must be pure.
    """

    @property
    def idle_power_w(self) -> float:
        """Weights loaded, nothing running."""
        ...

    @property
    def limits(self) -> Hashable:
        """All that `step` depends on and that may change (power limit, locked clocks): equal values, equal costs."""
        ...

    def step(self, work: StepWork) -> StepCost:
        """What this card's part of a step takes. With n cards a card knows that it does 1/n, and what it says to
        the others: every card is asked about the whole work, and the slowest one sets the pace."""
        ...

    def spend(self, joules: float, seconds: float) -> None:
        """Account for `seconds` of work."""
        ...

    def rest(self, seconds: float) -> None:
        """Account for `seconds` with nothing to do."""
        ...
