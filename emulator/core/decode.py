"""Many decode steps at once: their cost as a line, their times as a parabola.

With a fixed set of sequences every step adds one token to each context, so a step's cost is a smooth function of the
number of steps. It is sampled at multiples of GRID tokens a sequence and linear between, whoever asks and however many
steps at a time: going through them one by one or all at once gives the same times to the last bit.
"""

from collections.abc import Hashable, Sequence
from math import sqrt

from emulator.core.device import Device
from emulator.core.step import StepWork

GRID = 16  # tokens of context a sequence between two samples
SHARED_GRID = 64  # tokens of shared context a sequence, rounded to so many
MOST_SAMPLES = 1 << 17  # beyond that they are forgotten, so that memory stays flat


def shares(devices: Sequence[Device], work: StepWork) -> tuple[float, list[float]]:
    """Seconds of a step, and the joules of each card: who is done sooner waits for the slowest, at idle power."""
    if len(devices) == 1:
        cost = devices[0].step(work)
        return cost.seconds, [cost.joules]
    costs = [device.step(work) for device in devices]
    seconds = max(cost.seconds for cost in costs)
    waits = (device.idle_power_w * (seconds - cost.seconds) for device, cost in zip(devices, costs, strict=True))
    return seconds, [cost.joules + joules for cost, joules in zip(costs, waits, strict=True)]


class Stretch:
    """Up to `steps` decode steps of the same sequences. The first takes `seconds`, each further one `more` more; and
    so with joules."""

    __slots__ = ("done", "joules", "joules_more", "limits", "more", "seconds", "start", "steps")

    def __init__(self, start: float, steps: int, limits: Hashable) -> None:
        self.start = start  # time
        self.steps = steps
        self.limits = limits
        self.done = 0
        self.seconds = self.more = 0.0
        self.joules: list[float] = []
        self.joules_more: list[float] = []

    def end(self, steps: int) -> float:
        """The time when so many of its steps are over."""
        return self.start + steps * (self.seconds + self.more * (steps - 1) * 0.5)

    def spent(self, first: int, last: int) -> list[float]:
        """Joules of each card for the steps from `first` to before `last`, counted from 0."""
        between = (last * (last - 1) - first * (first - 1)) * 0.5
        return [j * (last - first) + more * between for j, more in zip(self.joules, self.joules_more, strict=True)]

    def over_by(self, time: float, most: int) -> int:
        """How many of its steps, at most `most`, have ended by `time`."""
        if self.end(most) <= time:
            return most
        if self.end(1) > time:
            return 0
        left, slope = time - self.start, self.seconds - self.more * 0.5
        root = slope + sqrt(max(0.0, slope * slope + 2 * self.more * left))
        steps = min(int(2 * left / root), most) if root > 0 else most
        while self.end(steps) > time:  # the root is right but for rounding
            steps -= 1
        while steps < most and self.end(steps + 1) <= time:
            steps += 1
        return steps


class DecodeCosts:
    """What decode steps cost on some cards, as sampled under their present limits."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._limits: Hashable = None
        self._samples: dict[tuple[int, int, int], tuple[float, list[float]]] = {}
        self.limits()

    def limits(self) -> Hashable:
        """What the costs depend on now."""
        devices = self._devices
        return devices[0].limits if len(devices) == 1 else tuple(device.limits for device in devices)

    def stretch(self, start: float, sequences: int, context: int, shared: int = 0) -> Stretch:
        """Decode steps from `start` on, the first over `context` tokens of all sequences together, of which further
        readers share `shared`."""
        limits = self.limits()
        if limits != self._limits or len(self._samples) > MOST_SAMPLES:
            self._samples.clear()
            self._limits = limits
        grid = GRID * sequences
        knot = context // grid
        shared_knot = (shared + SHARED_GRID * sequences // 2) // (SHARED_GRID * sequences)
        seconds, joules = self._sample(sequences, knot, shared_knot)
        next_seconds, next_joules = self._sample(sequences, knot + 1, shared_knot)
        past = context - knot * grid
        stretch = Stretch(start, -(-(grid - past) // sequences), limits)
        part = past / grid
        stretch.more = (next_seconds - seconds) / GRID
        stretch.seconds = seconds + (next_seconds - seconds) * part
        stretch.joules_more = [(b - a) / GRID for a, b in zip(joules, next_joules, strict=True)]
        stretch.joules = [a + (b - a) * part for a, b in zip(joules, next_joules, strict=True)]
        return stretch

    def _sample(self, sequences: int, knot: int, shared_knot: int) -> tuple[float, list[float]]:
        sample = self._samples.get((sequences, knot, shared_knot))
        if sample is None:
            context = knot * GRID * sequences
            shared = min(shared_knot * SHARED_GRID * sequences, context)
            work = StepWork(decode_sequences=sequences, decode_context=context, decode_shared=shared)
            sample = self._samples[sequences, knot, shared_knot] = shares(self._devices, work)
        return sample
