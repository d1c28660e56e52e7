"""Closed-loop clients of an emulated engine, in virtual time: what a load script does on a real one.

A task is a generator. It yields what it waits for (`Call`, `Sleep`, a `Gate`, or a list of tasks to gather) and is
resumed when that has come, a call with its `Answer`, or with None where the client lost its patience.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import floor, inf
from typing import Any

from emulator.core.machine import Machine, Observed
from emulator.core.presets import GpuPreset, ModelPreset
from emulator.core.prompt import Text
from emulator.core.request import Finished, Refused, Request
from emulator.core.settings import EngineSettings
from emulator.engine import engine_of

COUNTER_S = 0.1  # NVML's energy counter moves so often
QUEUE_S = 1e-4  # between two requests that reach the engine together
ANSWER_S = 5e-4  # from a step's end to the client


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `name` is its id, unique, or one is made; after `patience_s` the client leaves."""

    prompt: Sequence[Text]
    max_tokens: int
    name: str = ""
    patience_s: float = inf


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    sent_at: float
    first_token_at: float
    at: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class _Leave:
    """The client of a call leaves, if it is still there."""

    name: str


Task = Generator[Any, Any, None]


class Gate:
    """At most `places` tasks inside, in the order they come, as asyncio.Semaphore: yield the gate, then `leave`."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.queue: deque[_Running] = deque()


@dataclass(slots=True)
class _Running:
    task: Task
    parent: "_Running | None" = None
    children: int = 0


class Replay:
    """An engine, its cards, and the tasks that load it. Times are seconds from the start; energy is all cards'.

    `observer` is told of every step; without one the machine does many at a time.
    """

    def __init__(
        self,
        gpu: GpuPreset,
        model: ModelPreset,
        *,
        cards: int = 1,
        max_model_len: int = 4096,
        observer: Callable[[Observed], None] | None = None,
    ) -> None:
        wanted = EngineSettings(kv_blocks=1, max_model_len=1, request_s=QUEUE_S, output_s=ANSWER_S)
        settings, self.gpus = engine_of(gpu, model, cards=cards, max_model_len=max_model_len, settings=wanted)
        self.machine = Machine(settings, self.gpus, observer=observer)
        self.now = 0.0
        self._factors = gpu.factors
        self._timers: list[tuple[float, int, _Running, Any]] = []  # a heap
        self._calls: dict[str, tuple[_Running, float]] = {}
        self._count = 0

    @property
    def energy_j(self) -> float:
        return sum(gpu.energy_j for gpu in self.gpus)

    def run(self, *tasks: Task) -> None:
        """Go through these tasks, begun together, to the end of the last."""
        for task in tasks:
            self._wake(self.now, _Running(task))
        while self._timers or self._calls:
            if self._timers and isinstance(leave := self._timers[0][3], _Leave) and leave.name not in self._calls:
                heappop(self._timers)
                continue
            until = self._timers[0][0] if self._timers else inf
            ended = [event for event in self.machine.run(until) if isinstance(event, Finished | Refused)]
            for event in ended:
                if isinstance(event, Refused):
                    raise ValueError(f"the engine refuses a call: {event.reason}")
                if call := self._calls.pop(event.request_id, None):
                    running, sent_at = call
                    self._wake(event.at, running, _answer(event, sent_at))
            if not ended:
                self.now, _, running, value = heappop(self._timers)
                if isinstance(value, _Leave):
                    del self._calls[value.name]
                    self.machine.cancel(value.name, self.now)
                    value = None
                self._resume(running, value)

    def rest(self, until: float) -> None:
        """Let time pass."""
        self.machine.advance(until)
        self.now = until

    def counter_moves(self) -> float:
        """Wait until NVML's counter moves, as `energy()` of the scripts does; the joules on it."""
        self.rest((floor(self.now / COUNTER_S + 1e-9) + 1) * COUNTER_S)
        return self.energy_j

    def leave(self, gate: Gate) -> None:
        if gate.queue:
            self._wake(self.now, gate.queue.popleft())
        else:
            gate.places += 1

    def _wake(self, at: float, running: _Running, value: Any = None) -> None:
        self._count += 1
        heappush(self._timers, (at, self._count, running, value))

    def _resume(self, running: _Running, value: Any) -> None:
        try:
            wanted = running.task.send(value)
        except StopIteration:
            parent = running.parent
            if parent:
                parent.children -= 1
                if not parent.children:
                    self._wake(self.now, parent)
            return
        match wanted:
            case Call():
                self._send(running, wanted)
            case Sleep():
                self._wake(self.now + wanted.seconds, running)
            case Gate() if wanted.places:
                wanted.places -= 1
                self._wake(self.now, running)
            case Gate():
                wanted.queue.append(running)
            case _:
                running.children = len(wanted)
                for task in wanted:
                    self._wake(self.now, _Running(task, running))

    def _send(self, running: _Running, call: Call) -> None:
        self._count += 1
        request = Request(call.name or str(self._count), call.prompt, call.max_tokens)
        tokens = sum(text.tokens for text in call.prompt)
        self._calls[request.id] = running, self.now
        self.machine.submit(request, self.now + self._factors.request_s + self._factors.prompt_token_s * tokens)
        if call.patience_s < inf:
            self._wake(self.now + call.patience_s, running, _Leave(request.id))


def _answer(event: Finished, sent_at: float) -> Answer:
    usage, first_at = event.usage, event.first_token_at
    assert first_at is not None
    return Answer(sent_at, first_at, event.at, usage.prompt, usage.cached, usage.output)
