"""What a policy knows of the GPUs and does to them: power limits, SM clocks, and whether a cap binds."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from policies.interface import Decision, DeviceSignals
from proxy.control.actuator import Actuator, Applied, Effect
from proxy.control.binding import Binding
from proxy.control.knobs import SM_CLOCK, KnobError, Knobs
from proxy.control.watchdog import Watchdog

T = TypeVar("T")
logger = logging.getLogger("joulegate.control")

_ASK_AGAIN_S = 10.0
_NOT_ALLOWED = "SM clocks can be reset but not set back: allow that with policy.allow_clocks"


class Devices:
    """All GPUs that can be reached. Every call blocks for some milliseconds a GPU, and raises nothing of theirs."""

    def __init__(self, knobs: Knobs, power: Actuator, clocks: Actuator, watchdog: Watchdog | None = None) -> None:
        self._knobs, self._power, self._clocks, self._watchdog = knobs, power, clocks, watchdog
        self._ranges: dict[tuple[str, str], tuple[float, float] | None] = {}
        self._bindings: dict[str, Binding] = {}
        self._ask_at: dict[str, float] = {}
        self.allow_clocks = False
        self.applied: list[Applied] = []

    def dwell(self, dwell_s: float) -> None:
        """Keep a setting for so many seconds at least."""
        self._power.dwell_s = self._clocks.dwell_s = dwell_s

    def look(self, power_w: Mapping[str, float], now: float) -> dict[str, DeviceSignals]:
        """Every GPU as it is at `now` (Unix seconds); what it does not tell is None.

        One that does not answer is left in peace for a while: others wait for it.
        """
        seen = {name: DeviceSignals(power_w=watts) for name, watts in power_w.items()}
        for name, knob in self._knobs.power.items():
            if now < self._ask_at.get(name, now):
                continue
            limit_w = _or_none(knob.enforced)
            if limit_w is None:
                self._ask_at[name] = now + _ASK_AGAIN_S
                continue
            clock = self._knobs.sm_clock.get(name)
            seen[name] = DeviceSignals(
                power_w=power_w.get(name),
                power_limit_w=limit_w,
                power_limit_range_w=self._range("power", name, knob.range),
                sm_clock_mhz=_or_none(clock.enforced) if clock else None,
                sm_clock_range_mhz=self._range("clock", name, clock.range) if clock else None,
                throttle=_or_none(knob.throttle),
            )
        return seen

    def apply(self, decision: Decision, now: float) -> list[Applied]:
        """Bring all GPUs to what is decided, and those that it does not name back to what was found."""
        clocks = decision.sm_clock_mhz if self.allow_clocks else {}
        self.applied = self._power.apply(decision.power_limit_w, now) + self._clocks.apply(clocks, now)
        if not self.allow_clocks:
            self.applied += [
                Applied(name, SM_CLOCK, mhz, None, Effect.REFUSED, _NOT_ALLOWED)
                for name, mhz in decision.sm_clock_mhz.items()
            ]
        return self.applied

    def set_back(self) -> list[Applied]:
        """Set all GPUs back to what was found, now."""
        self.applied = self._power.set_back() + self._clocks.set_back()
        return self.applied

    def watch(self, now: float, seen: Mapping[str, DeviceSignals], busy: Iterable[str]) -> None:
        """Note whether the caps in force hold the devices, of which those in `busy` have work."""
        working = set(busy)
        caps = {one.device: one.wanted for one in self.applied if one.quantity is not SM_CLOCK and one.in_force}
        for name, device in seen.items():
            binding = self._bindings.setdefault(name, Binding())
            before = binding.note
            binding.look(now, caps.get(name), device, name in working)
            if binding.note and not before:
                logger.warning("%s: %s", name, binding.note)

    @property
    def notes(self) -> dict[str, str]:
        """By device, what a person should know."""
        return {name: binding.note for name, binding in self._bindings.items() if binding.note}

    def restore(self) -> None:
        """Leave everything as it was found."""
        self._power.restore()
        self._clocks.restore()
        if self._watchdog is not None:
            self._watchdog.stop()

    def _range(self, kind: str, name: str, ask: Callable[[], tuple[float, float] | None]) -> tuple[float, float] | None:
        if (kind, name) not in self._ranges:
            try:
                self._ranges[kind, name] = ask()
            except KnobError:
                return None
        return self._ranges[kind, name]


def _or_none(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except KnobError:
        return None
