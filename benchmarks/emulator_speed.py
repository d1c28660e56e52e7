"""How fast the step machine is in virtual time, on the search workload: 3000 shared tokens and 40 own, 200 out."""

import random
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from emulator.core.device import Device
from emulator.core.machine import Machine
from emulator.core.prompt import Text
from emulator.core.request import Event, Finished, Request
from emulator.core.settings import EngineSettings
from emulator.core.step import StepCost, StepWork

HEAD, OWN, OUT = Text("head", 3000), 40, 200
SETTINGS = EngineSettings(kv_blocks=13_000, max_model_len=4096)  # what an H200 has for Llama-2-7B


class Line:
    """A card whose steps take about what they take on an H200 with Llama-2-7B, as plain sums: fast, not calibrated."""

    idle_power_w = 122.0
    limits = None

    def __init__(self) -> None:
        self.energy_j = 0.0

    def step(self, work: StepWork) -> StepCost:
        seconds = 0.0044 + 2.2e-5 * work.prefill_tokens + 3e-5 * work.decode_sequences + 1.2e-7 * work.decode_context
        return StepCost(seconds, 500.0 * seconds, 1980.0, False)

    def spend(self, joules: float, seconds: float) -> None:
        self.energy_j += joules

    def rest(self, seconds: float) -> None:
        self.energy_j += self.idle_power_w * seconds


@dataclass(frozen=True)
class Speed:
    """One load. `cpu_s` is this process's CPU time, of one core; `peak_mib` the most memory it has had so far."""

    load: str
    requests: int
    cpu_s: float
    virtual_s: float
    steps: int
    joules_request: float
    peak_mib: float

    @property
    def requests_s(self) -> float:
        return self.requests / self.cpu_s

    @property
    def million_s(self) -> float:
        return 1e6 / self.requests_s


def measure(load: str, requests: int, device: Callable[[], Device] = Line) -> Speed:
    """`load` is "poisson:RATE" (arrivals a second) or "closed:USERS". Raises ValueError for another one."""
    kind, _, value = load.partition(":")
    if kind not in ("poisson", "closed") or not value:
        raise ValueError(f"a load is poisson:RATE or closed:USERS, not {load!r}")
    card = _Counting(device())
    machine = Machine(SETTINGS, [card])
    began = time.process_time()
    events = _poisson(machine, requests, float(value)) if kind == "poisson" else _closed(machine, requests, int(value))
    finished, last = 0, 0.0
    for event in events:
        if isinstance(event, Finished):
            finished, last = finished + 1, event.at
    if finished != requests:
        raise RuntimeError(f"{requests} requests were sent and {finished} finished")
    cpu_s = time.process_time() - began
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Speed(load, requests, cpu_s, last, machine.scheduler.clock, card.joules / requests, peak_mib)


class _Counting:
    """Any card, and the joules that it was told of."""

    def __init__(self, card: Device) -> None:
        self._card = card
        self.joules = 0.0
        self.idle_power_w = card.idle_power_w
        self.step = card.step

    @property
    def limits(self) -> object:
        return self._card.limits

    def spend(self, joules: float, seconds: float) -> None:
        self.joules += joules
        self._card.spend(joules, seconds)

    def rest(self, seconds: float) -> None:
        self.joules += self.idle_power_w * seconds
        self._card.rest(seconds)


def _request(number: int) -> Request:
    return Request(f"r{number}", (HEAD, Text(number, OWN)), OUT)


def _poisson(machine: Machine, requests: int, rate: float) -> Iterator[Event]:
    rng, at = random.Random(1), 0.0
    for number in range(requests):
        at += rng.expovariate(rate)
        while events := machine.run(at):
            yield from events
        machine.submit(_request(number), at)
    while events := machine.run(inf):
        yield from events


def _closed(machine: Machine, requests: int, users: int) -> Iterator[Event]:
    for number in range(min(users, requests)):
        machine.submit(_request(number), 0.0)
    sent = min(users, requests)
    while events := machine.run(inf):
        for event in events:
            if isinstance(event, Finished) and sent < requests:
                machine.submit(_request(sent), event.at)
                sent += 1
        yield from events
