"""Company and concurrency first, then clocks, or a power cap where clocks cannot be set.

In this order because it is the order of what they save (the main paper says so of batch size and cap, this project's
H200 of company), and because each leaves the next one less room: what the gate does is seen in the objectives' use, and
the trim takes what is left of that.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from policies.clocks import clocks_at
from policies.company import hold, occupied
from policies.interface import Decision, Signals
from policies.narrow import counted, narrow
from policies.powercap import watts_at
from policies.room import Trimmed, trim


class Hierarchical(BaseModel):
    """`worth` is `company`'s, `least` that of `clocks` and `powercap`; `trim` says which of these, if any."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worth: Annotated[float, Field(ge=0, lt=1)] = 0.01
    least: Annotated[float, Field(gt=0, le=1)] = 0.6
    trim: Literal["auto", "clocks", "power", "none"] = "auto"

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]:
        """`state` has what the gate and the trim were."""
        state = state or {"held": {}, "limits": {}, "trim": None, "kv": {}}
        trimmed, kv = Trimmed.of(state["trim"]), occupied(signals, state["kv"])
        gate, held = hold(_slowed(signals, trimmed.part), self.worth, state["held"], kv)
        limits = narrow(signals, state["limits"])
        kept = {
            "held": held,
            "kv": kv,
            "limits": {name: list(limit) for name, limit in limits.items()},
            "trim": None,
        }
        decision = replace(gate, engine_in_flight=counted(limits))
        set_at, found = self._knob(signals), trim(trimmed, signals, self.least)
        if set_at is None or found is None:
            return replace(decision, reason=f"{gate.reason}; nothing is trimmed"), kept
        trimmed, why = found
        kept["trim"] = trimmed.state()
        if trimmed.part < 1:
            decision = replace(decision, **set_at(signals, trimmed.part))
        return replace(decision, reason=f"{gate.reason}; trimmed to {trimmed.part:.0%}: {why}"), kept

    def _knob(self, signals: Signals) -> Callable[[Signals, float], dict[str, dict[str, float]]] | None:
        if self.trim in ("auto", "clocks") and clocks_at(signals, 1.0):
            return lambda signals, part: {"sm_clock_mhz": clocks_at(signals, part)}
        if self.trim in ("auto", "power") and watts_at(signals, 1.0):
            return lambda signals, part: {"power_limit_w": watts_at(signals, part)}
        return None


def _slowed(signals: Signals, part: float) -> Signals:
    """Prompts take longer on a slower GPU, at worst in proportion."""
    engines = {
        name: replace(engine, prices=replace(engine.prices, prompt_s=engine.prices.prompt_s / part))
        if engine.prices
        else engine
        for name, engine in signals.engines.items()
    }
    return replace(signals, engines=engines)
