"""One card: what a step takes under its power cap and clocks, and the energy it has used."""

from bisect import bisect_left
from collections.abc import Hashable

from emulator.core.presets import Card, Factors, Model
from emulator.core.roofline import Demand, Roofline
from emulator.core.step import StepCost, StepWork


class Gpu:
    """One of `cards` equal cards that serve a model together.

    Limits are set as on a real card: `power_limit_w` (ValueError outside `limit_range_w`),
    `sm_clock_range_mhz` and `memory_clock_range_mhz` (lowest, highest; None: free). Energy moves by `spend` and `rest`
    alone, whose caller owns the time.

    Power while working is idle_w, and active_w · f/f_max · v², and the work's joules: the card's regulator takes the
    highest supported clock at which the mean over its control interval keeps to the cap. A step with prefill may use
    what the recent past left of the cap; decode, which goes on for longer than the interval, may not, so its cost
    depends on `limits` alone.
    """

    def __init__(self, card: Card, factors: Factors, model: Model, cards: int = 1) -> None:
        self.card = card
        self.idle_power_w = card.idle_w
        self.limit_range_w = (card.power_min_w, card.power_max_w)
        self.default_limit_w = card.power_default_w
        self.supported_sm_mhz = tuple(range(card.sm_mhz_max, card.sm_mhz_min - 1, -card.sm_mhz_step))
        self.supported_memory_mhz = (card.memory_mhz,)
        self.energy_j = 0.0
        self.over_cap_s = 0.0  # time in which even the lowest clock drew more than the cap
        self._roofline = Roofline(card, factors, model, cards)
        self._cap_share = factors.cap_share
        self._hbm_share = factors.hbm_share
        ascending = self.supported_sm_mhz[::-1]
        voltages = [max(card.voltage_floor, 1 - card.voltage_slope * (1 - f / card.sm_mhz_max)) for f in ascending]
        active_w = factors.active_share * card.power_default_w
        self._mhz = ascending
        self._stretch = [card.sm_mhz_max / f for f in ascending]
        self._v2 = [v * v for v in voltages]
        self._static_w = [
            card.idle_w + active_w * f / card.sm_mhz_max * v2 for f, v2 in zip(ascending, self._v2, strict=True)
        ]
        self._sm_range: tuple[int, int] | None = None
        self._memory_range: tuple[int, int] | None = None
        self._memory_stretch = self._memory_stretches(card.memory_mhz)
        self._limit_w = self._cap_w = 0.0
        self._headroom_j = self._most_headroom_j = 0.0
        self._top = len(ascending) - 1
        self.power_limit_w = card.power_default_w

    @property
    def power_limit_w(self) -> float:
        return self._limit_w

    @power_limit_w.setter
    def power_limit_w(self, watts: float) -> None:
        low, high = self.limit_range_w
        if not low <= watts <= high:
            raise ValueError(f"a power limit is {low:g} to {high:g} W, not {watts:g}")
        self._limit_w = watts
        self._cap_w = watts * self._cap_share
        self._most_headroom_j = self._cap_w * self.card.control_s
        self._headroom_j = min(self._headroom_j, self._most_headroom_j)

    @property
    def sm_clock_range_mhz(self) -> tuple[int, int] | None:
        return self._sm_range

    @sm_clock_range_mhz.setter
    def sm_clock_range_mhz(self, range_mhz: tuple[int, int] | None) -> None:
        self._sm_range = _checked_range(range_mhz, "SM")
        highest = range_mhz[1] if range_mhz else self._mhz[-1]
        self._top = max(0, bisect_left(self._mhz, highest + 1) - 1)

    @property
    def memory_clock_range_mhz(self) -> tuple[int, int] | None:
        """A lower clock lowers the bandwidth in proportion; what it saves in watts is not modelled."""
        return self._memory_range

    @memory_clock_range_mhz.setter
    def memory_clock_range_mhz(self, range_mhz: tuple[int, int] | None) -> None:
        self._memory_range = _checked_range(range_mhz, "memory")
        highest = range_mhz[1] if range_mhz else self.card.memory_mhz
        self._memory_stretch = self._memory_stretches(min(highest, self.card.memory_mhz))

    @property
    def limits(self) -> Hashable:
        """What a step without prefill depends on besides its work."""
        return self._limit_w, self._sm_range, self._memory_range

    def step(self, work: StepWork) -> StepCost:
        """What this card's part of a step takes, and the clock that held."""
        demand = self._roofline.demand(work)
        top = self._top
        seconds, joules = self._at(top, demand)
        headroom_j = self._headroom_j if work.prefill_tokens else 0.0
        if joules <= self._cap_w * seconds + headroom_j:
            return StepCost(seconds, joules, self._mhz[top], False)
        low, high = 0, top
        while high - low > 1:
            middle = (low + high) // 2
            seconds, joules = self._at(middle, demand)
            if joules <= self._cap_w * seconds + headroom_j:
                low = middle
            else:
                high = middle
        seconds, joules = self._at(low, demand)
        return StepCost(seconds, joules, self._mhz[low], True)

    def spend(self, joules: float, seconds: float) -> None:
        """Account for `seconds` of work."""
        self.energy_j += joules
        self._recover(joules, seconds)

    def rest(self, seconds: float) -> None:
        """Account for `seconds` with nothing to do."""
        joules = self.card.idle_w * seconds
        self.energy_j += joules
        self._recover(joules, seconds)

    def _recover(self, joules: float, seconds: float) -> None:
        headroom_j = self._headroom_j + self._cap_w * seconds - joules
        if headroom_j < -0.01 * joules:
            self.over_cap_s += seconds
        self._headroom_j = min(max(headroom_j, 0.0), self._most_headroom_j)

    def _memory_stretches(self, memory_mhz: int) -> list[float]:
        """How much longer memory takes at each SM clock: HBM at its clock or the L2 cache at the SMs' is slower."""
        card = self.card
        hbm = memory_mhz / card.memory_mhz
        reached = card.hbm_bytes_per_s * self._hbm_share
        return [max(1 / hbm, reached / (card.l2_bytes_per_clock * f * 1e6)) for f in self._mhz]

    def _at(self, clock: int, demand: Demand) -> tuple[float, float]:
        working_s = max(demand.memory_s * self._memory_stretch[clock], demand.compute_s * self._stretch[clock])
        seconds = demand.overhead_s + working_s
        return seconds, self._static_w[clock] * seconds + demand.hbm_j + demand.core_j * self._v2[clock]


def _checked_range(range_mhz: tuple[int, int] | None, which: str) -> tuple[int, int] | None:
    if range_mhz is not None and not 0 < range_mhz[0] <= range_mhz[1]:
        raise ValueError(f"locked {which} clocks are (lowest, highest) in MHz, not {range_mhz}")
    return range_mhz
