"""Whether a power cap does anything: one that never holds the clock down costs nothing and saves nothing. Sans-I/O."""

from dataclasses import dataclass

from policies.interface import DeviceSignals

_NEAR = 0.97  # of the cap: drawing so much, the device is held by it
_LONG_S = 60.0  # of work under one cap, until it is said that it does not bind


@dataclass(slots=True)
class Binding:
    """One device's. `worked_s` is how long it worked under this cap, `bound_s` how much of that the cap held it."""

    cap_w: float | None = None
    worked_s: float = 0.0
    bound_s: float = 0.0
    _before: float | None = None

    def look(self, now: float, cap_w: float | None, device: DeviceSignals, busy: bool) -> None:
        """The device as it is at `now` (Unix seconds), under a cap of ours or None; `busy` with requests or not."""
        seconds = 0.0 if self._before is None else min(5.0, now - self._before)
        self._before = now
        if cap_w != self.cap_w:
            self.cap_w, self.worked_s, self.bound_s = cap_w, 0.0, 0.0
        elif cap_w is not None and busy:
            self.worked_s += seconds
            self.bound_s += seconds * _is_held(cap_w, device)

    @property
    def note(self) -> str:
        """What a person should know; empty when there is nothing."""
        if self.cap_w is None or self.worked_s < _LONG_S or self.bound_s:
            return ""
        return f"the cap of {self.cap_w:g} W has not held it once in {self.worked_s:.0f} s of work"


def _is_held(cap_w: float, device: DeviceSignals) -> bool:
    if device.throttle is not None and "sw_power_cap" in device.throttle:
        return True
    return device.power_w is not None and device.power_w >= _NEAR * cap_w
