"""A power cap with concurrency: the cap follows the room that objectives leave, and the gate narrows before it is late.

A cap binds where a GPU would draw more than it: in prefill, hardly ever in decode (on an H200 decode drew 137-300 W of
700 W). The main paper saw energy fall with the cap from 250 to 150 W on an A100, at more latency; this project has
measured no cap on hardware. A cap that never binds is reported as such by the gateway.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from policies.interface import Decision, Signals
from policies.narrow import counted, narrow
from policies.room import Trimmed, trim


class PowerCap(BaseModel):
    """Trim the power limit of GPUs, by no more than to `least` of the highest. Needs objectives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    least: Annotated[float, Field(gt=0, le=1)] = 0.6

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]:
        """`state` has the part of the highest limit and the engines' limits, and since when."""
        state = state or {"trim": None, "limits": {}}
        limits = narrow(signals, state["limits"])
        counts, kept = counted(limits), {name: list(limit) for name, limit in limits.items()}
        found = trim(Trimmed.of(state["trim"]), signals, self.least)
        if found is None or not watts_at(signals, 1.0):
            why = "no GPU says what it allows" if found else "no workflow with an objective has been seen at work"
            reason = f"no power limit is set: {why}"
            return Decision(engine_in_flight=counts, reason=reason), {"trim": None, "limits": kept}
        trimmed, why = found
        watts = watts_at(signals, trimmed.part) if trimmed.part < 1 else {}
        reason = f"power limit at {trimmed.part:.0%}: {why}"
        decision = Decision(engine_in_flight=counts, power_limit_w=watts, reason=reason)
        return decision, {"trim": trimmed.state(), "limits": kept}


def watts_at(signals: Signals, part: float) -> dict[str, float]:
    """That part of the highest power limit of each GPU that says what it allows."""
    ranges = {name: device.power_limit_range_w for name, device in signals.devices.items()}
    return {name: max(watts[0], part * watts[1]) for name, watts in ranges.items() if watts}
