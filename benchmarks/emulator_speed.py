"""How fast the step machine is in virtual time, on the search workload: 3000 shared tokens and 40 own, 200 out."""

import random
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from emulator.core.machine import Machine
from emulator.core.presets import load_gpu, load_model
from emulator.core.prompt import Text
from emulator.core.request import Event, Finished, Request
from emulator.engine import engine_of

HEAD, OWN, OUT = Text("head", 3000), 40, 200
BAR_S = 300.0  # of CPU for a million requests


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


def measure(load: str, requests: int) -> Speed:
    """Llama-2-7B on one H200; `load` is "poisson:RATE" (arrivals a second) or "closed:USERS", else ValueError."""
    kind, _, value = load.partition(":")
    if kind not in ("poisson", "closed") or not value:
        raise ValueError(f"a load is poisson:RATE or closed:USERS, not {load!r}")
    settings, (card,) = engine_of(load_gpu("h200"), load_model("llama-2-7b"))
    machine = Machine(settings, [card])
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
    return Speed(load, requests, cpu_s, last, machine.scheduler.clock, card.energy_j / requests, peak_mib)


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
