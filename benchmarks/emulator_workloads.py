"""The load scripts that were run on a real H200 (`docs/results/h200/emulator/README.md`), again, in virtual time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count

from emulator.core.presets import GpuPreset, ModelPreset
from emulator.core.prompt import Text
from emulator.replay import Answer, Call, Gate, Replay, Sleep, Task

HEAD = Text("head", 3000)
GATES = (16, 8, 4, 2, 1)
WORKLOADS = ("search", "summarize", "coding", "composite")


@dataclass(frozen=True)
class Cell:
    """One workload behind one gate."""

    workload: str
    gate: int
    runs: int
    seconds: float
    joules: float


class Users:
    """16 users' runs of dependent calls, with at most `places` calls in the engine."""

    def __init__(self, replay: Replay, places: int, names: count[int]) -> None:
        self._replay = replay
        self._gate = Gate(places)
        self._names = names

    def tasks(self, workload: str) -> list[Task]:
        kinds = {
            "search": [self._search] * 16,
            "summarize": [self._summarize] * 16,
            "coding": [self._coding] * 4,
            "composite": [self._search] * 8 + [self._summarize] * 8,
        }
        return [run() for run in kinds[workload]]

    def _own(self, tokens: int) -> Text:
        return Text(("own", next(self._names)), tokens)

    def _call(self, max_tokens: int, *prompt: Text) -> Task:
        yield self._gate
        yield Call(prompt, max_tokens)
        self._replay.leave(self._gate)

    def _search(self) -> Task:
        for _ in range(2):
            yield from self._call(150, HEAD, self._own(40))

    def _summarize(self) -> Task:
        summary: list[Text] = []
        for _ in range(3):
            yield from self._call(50, self._own(1000), *summary)
            summary = [self._own(50)]

    def _coding(self) -> Task:
        spec = self._own(200)

        def role(name: str) -> Text:
            return Text(("role", name), 250)

        yield from self._call(200, role("arch"), self._own(60))
        yield [self._call(300, role("eng"), spec) for _ in range(3)]
        yield [self._call(100, role("rev"), spec, self._own(300)) for _ in range(3)]
        yield [self._call(150, role("fix"), spec, self._own(400)) for _ in range(3)]


def gate_sweep(gpu: GpuPreset, model: ModelPreset) -> list[Cell]:
    """Every workload behind every gate, one after the other on one engine, as measured."""
    replay = Replay(gpu, model)
    names = count()
    replay.run(*Users(replay, 16, names).tasks("search")[:8])
    cells = []
    for gate in GATES:
        for workload in WORKLOADS:
            tasks = Users(replay, gate, names).tasks(workload)
            before_j = replay.counter_moves()
            start = replay.now
            replay.run(*tasks)
            joules = replay.counter_moves() - before_j
            cells.append(Cell(workload, gate, len(tasks), replay.now - start, joules))
    return cells


@dataclass(frozen=True)
class Trial:
    """Poisson arrivals of search requests for 24 s, released by a rule; energy is that of 31 s."""

    rate: float
    rule: str
    wait: float
    requests: int
    joules: float
    latency_s: float


def coalesce(gpu: GpuPreset, model: ModelPreset, rate: float, rule: str, wait: float) -> Trial:
    """Release rules: `now`; `window`: all that wait, `wait` seconds after the first; `hitch`: at once when work is in
    flight, else as `window`."""
    replay = Replay(gpu, model)
    replay.run(_requests(0, [HEAD]))
    start = replay.counter_moves() and replay.now
    before_j = replay.energy_j
    arrivals = _arrivals(rate)
    held: list[int] = []
    latencies: list[float] = []
    in_flight = 0

    def serve(number: int) -> Task:
        nonlocal in_flight
        in_flight += 1
        answer: Answer = yield Call((HEAD, Text(number, 40)), 150)
        in_flight -= 1
        latencies.append(answer.at - start - arrivals[number])

    def user(number: int) -> Task:
        yield Sleep(arrivals[number])
        held.append(number)
        if rule == "window" or (rule == "hitch" and not in_flight):
            if len(held) > 1:
                return
            yield Sleep(wait)
        released = list(held)
        held.clear()
        yield [serve(each) for each in released]

    replay.run(*(user(number) for number in range(len(arrivals))))
    replay.rest(start + 31.0)
    joules = replay.energy_j - before_j
    return Trial(rate, rule, wait, len(latencies), joules, sum(latencies) / len(latencies))


def _requests(number: int, head: list[Text]) -> Task:
    yield Call((*head, Text(("warm-up", number), 40)), 8)


def _arrivals(rate: float) -> list[float]:
    """As the script drew them, each with the 40 tokens that it drew in between."""
    rng = random.Random(1234)
    times, at = [], rng.expovariate(rate)
    while at < 24.0:
        times.append(at)
        for _ in range(40):
            rng.randrange(100, 30000)
        at += rng.expovariate(rate)
    return times


@dataclass(frozen=True)
class Search:
    """64 requests of the search workload by `users` closed-loop users under a power limit."""

    users: int
    output_tokens: int
    power_limit_w: float
    latency_s: float
    tokens_s: float
    joules_token: float
    joules_request: float


def search(gpu: GpuPreset, model: ModelPreset, users: int, output_tokens: int, power_limit_w: float) -> Search:
    replay = Replay(gpu, model)
    replay.gpus[0].power_limit_w = power_limit_w
    replay.run(_requests(0, [HEAD]))
    start, before_j = replay.now, replay.energy_j
    waiting = iter(range(64))
    latencies: list[float] = []

    def user() -> Task:
        for number in waiting:
            answer: Answer = yield Call((HEAD, Text(number, 40)), output_tokens)
            latencies.append(answer.at - answer.sent_at)

    replay.run(*(user() for _ in range(users)))
    joules, seconds, tokens = replay.energy_j - before_j, replay.now - start, 64 * output_tokens
    return Search(
        users, output_tokens, power_limit_w, sum(latencies) / 64, tokens / seconds, joules / tokens, joules / 64
    )
