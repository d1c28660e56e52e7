"""The SM clock follows the room that objectives leave: down while there is some, up where there is none.

Decode waits for memory and not for the SMs, so that a lower clock costs it little time: 1.6 instead of 2 GHz gave about
the same throughput at under 80 % of the energy (Stojkovic et al. 2024), locked clocks up to 32 % of decode energy where
power caps did nothing (arXiv 2605.11999). Prompts do get slower. None of this was measured by this project: what comes
of it has to be looked at on the machine itself.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from policies.interface import Decision, Signals
from policies.room import Trimmed, trim


class Clocks(BaseModel):
    """Trim the highest SM clock of GPUs, by no more than to `least` of it. Needs objectives, and refuses without."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    least: Annotated[float, Field(gt=0, le=1)] = 0.6

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]:
        """`state` is the part of the highest clock, and since when."""
        if not clocks_at(signals, 1.0):
            return Decision(reason="no clock is set: no GPU says which it supports"), None
        found = trim(Trimmed.of(state), signals, self.least)
        if found is None:
            return Decision(reason="no clock is set: no workflow with an objective has been seen at work"), None
        trimmed, reason = found
        if trimmed.part == 1:
            return Decision(reason=f"clocks are free: {reason}"), trimmed.state()
        clocks = clocks_at(signals, trimmed.part)
        return Decision(sm_clock_mhz=clocks, reason=f"clocks at {trimmed.part:.0%}: {reason}"), trimmed.state()


def clocks_at(signals: Signals, part: float) -> dict[str, float]:
    """That part of the highest SM clock, in megahertz, of each GPU that says which it supports."""
    ranges = {name: device.sm_clock_range_mhz for name, device in signals.devices.items()}
    return {name: max(mhz[0], float(round(part * mhz[1]))) for name, mhz in ranges.items() if mhz}
