"""Company first, then clocks, or a power cap where clocks cannot be set; and concurrency so that both fit.

Company comes first because it saves most (this project's H200) and costs no privilege. Where it saves least, near
saturation, tokens come late by the number in flight rather than by the clock: so a limit keeps that within what the
objective has room for at the clock of the moment, and the clock goes as low as first tokens and runs allow.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from policies.clocks import clocks_at
from policies.company import hold, occupied
from policies.interface import Decision, Signals
from policies.narrow import counted, narrow
from policies.pace import least_for_crowd, least_for_queues, most_in_flight
from policies.powercap import watts_at
from policies.room import USED_MOST, Trimmed, least_for_caches, trim_by, used


class Hierarchical(BaseModel):
    """`worth` is `company`'s, `least` that of `clocks` and `powercap`; `trim` says which of these, if any."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worth: Annotated[float, Field(ge=0, lt=1)] = 0.01
    least: Annotated[float, Field(gt=0, le=1)] = 0.6
    trim: Literal["auto", "clocks", "power", "none"] = "auto"

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]:
        """`state` has what the gate and the trim were."""
        state = state or {"held": {}, "limits": {}, "trim": None, "paced": {}, "kv": {}}
        before, kv = Trimmed.of(state["trim"]), occupied(signals, state["kv"])
        gate, held = hold(_slowed(signals, before.part), self.worth, state["held"], kv)
        narrowed = narrow(signals, state["limits"])
        limits: dict[str, int] = counted(narrowed)
        kept = {
            "held": held,
            "kv": kv,
            "limits": {name: list(limit) for name, limit in narrowed.items()},
            "trim": None,
            "paced": {},
        }
        held_s = {name: hold_s or 0.0 for name, (hold_s, *_) in held.items()}
        set_at, found = self._knob(signals), self._trim(before, signals, state["paced"], held_s)
        if set_at is None or found is None:
            return replace(gate, engine_in_flight=limits, reason=f"{gate.reason}; nothing is trimmed"), kept
        trimmed, why = found
        kept["trim"] = trimmed.state()
        reason = f"{gate.reason}; trimmed to {trimmed.part:.0%}: {why}"
        if trimmed.part == 1:
            return replace(gate, engine_in_flight=limits, reason=reason), kept
        kept["paced"] = paced = most_in_flight(signals, trimmed.part) or state["paced"]
        limits |= {name: min(most, limits.get(name, most)) for name, most in paced.items()}
        return replace(gate, engine_in_flight=limits, reason=reason, **set_at(signals, trimmed.part)), kept

    def _knob(self, signals: Signals) -> Callable[[Signals, float], dict[str, dict[str, float]]] | None:
        if self.trim in ("auto", "clocks") and clocks_at(signals, 1.0):
            return lambda signals, part: {"sm_clock_mhz": clocks_at(signals, part)}
        if self.trim in ("auto", "power") and watts_at(signals, 1.0):
            return lambda signals, part: {"power_limit_w": watts_at(signals, part)}
        return None

    def _trim(
        self, before: Trimmed, signals: Signals, limits: Mapping[str, int], held_s: Mapping[str, float]
    ) -> tuple[Trimmed, str] | None:
        """Where a limit keeps the next tokens in time, they say nothing against a lower setting, until they are late
        all the same. Nobody who is in flight already is made late: it goes down when there is room for all of them."""
        seen = used(signals.workflows)
        if seen is not None and seen[0] <= USED_MOST and most_in_flight(signals, before.part):
            others = {name: replace(one, itl_p95_s=None) for name, one in signals.workflows.items()}
            seen = used(others) or seen
        needed = max(
            least_for_caches(signals, before.part),
            least_for_queues(signals, limits, held_s),
            min(before.part, least_for_crowd(signals)),
        )
        return trim_by(seen, needed, before, signals, self.least)


def _slowed(signals: Signals, part: float) -> Signals:
    """Prompts take longer on a slower GPU, at worst in proportion."""
    engines = {
        name: replace(engine, prices=replace(engine.prices, prompt_s=engine.prices.prompt_s / part))
        if engine.prices
        else engine
        for name, engine in signals.engines.items()
    }
    return replace(signals, engines=engines)
