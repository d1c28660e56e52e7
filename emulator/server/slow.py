"""A card that can be slowed down on purpose."""

from collections.abc import Hashable

from emulator.core.device import Device
from emulator.core.step import StepCost, StepWork


class SlowDevice:
    """A device whose steps take `factor` times as long; it idles for what they take more. `busy_s` were at work."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.factor = 1.0
        self.busy_s = 0.0

    @property
    def idle_power_w(self) -> float:
        return self._device.idle_power_w

    @property
    def limits(self) -> Hashable:
        return self.factor, self._device.limits

    def step(self, work: StepWork) -> StepCost:
        cost = self._device.step(work)
        if self.factor == 1.0:
            return cost
        longer_s = (self.factor - 1.0) * cost.seconds
        joules = cost.joules + longer_s * self.idle_power_w
        return StepCost(cost.seconds + longer_s, joules, cost.sm_mhz, cost.capped)

    def spend(self, joules: float, seconds: float) -> None:
        self.busy_s += seconds
        self._device.spend(joules, seconds)

    def rest(self, seconds: float) -> None:
        self._device.rest(seconds)
