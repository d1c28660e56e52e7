"""A gateway's gate, signals and policy before an emulated engine, in virtual time: how policies are judged.

The gate, the policies and the signals are the gateway's own, the engine is `emulator.core`; only the clock is not real.
The same seed gives the same result to the last bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Any

from benchmarks.policies.work import Task
from emulator.core.gpu import Gpu
from emulator.core.machine import Machine
from emulator.core.presets import GpuPreset, ModelPreset
from emulator.core.request import Finished, Refused, Request
from emulator.core.settings import EngineSettings
from emulator.engine import engine_of
from emulator.replay import ANSWER_S, QUEUE_S
from policies.interface import Decision, Policy, Signals
from proxy.gate import Gate, Ticket

PERIOD_S = 1.0  # between two decisions
ENGINE, DEVICE = "e1", "h1/gpu:0"


@dataclass(slots=True, eq=False)
class Run:
    """A workflow run under way."""

    task: Task
    began: float
    missing: list[int]  # by place: answers that a call still waits for
    left: int  # calls that are not answered
    ended: float = 0.0
    attained_s: float = 0.0


@dataclass(slots=True, eq=False)
class Sent:
    """One call of a run, from its arrival at the gate to its answer. Times in seconds, tokens as the engine counted."""

    run: Run
    place: int
    ticket: Ticket
    arrived: float
    released: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """With what the gate held."""
        return self.first - self.arrived

    @property
    def itl_s(self) -> float | None:
        """The mean between two tokens."""
        return (self.ended - self.first) / (self.output_tokens - 1) if self.output_tokens > 1 else None


class Observer:
    """What a policy is told comes from here; the calls are in the order of time."""

    def arrived(self, sent: Sent, now: float) -> None: ...

    def done(self, sent: Sent, now: float) -> None: ...

    def signals(self, now: float, simulation: "Simulation") -> Signals:
        raise NotImplementedError

    def slack_s(self, run: Run, now: float) -> float | None:
        return None


@dataclass
class Outcome:
    """What came of a load. `joules` until `ended`, when the last request was done; `marks_j` is the counter by time."""

    sent: list[Sent]
    runs: list[Run]
    joules: float
    ended: float
    idle_w: float
    marks_j: dict[float, float] = field(default_factory=dict)
    busy_s: float = 0.0
    decisions: list[tuple[float, Decision]] = field(default_factory=list)

    def joules_by(self, until: float) -> float:
        """With the idle time from the last answer to then."""
        return self.joules + self.idle_w * (until - self.ended)


class Simulation:
    """One engine on one card behind one gate. Times are seconds from the start, joules the card's."""

    def __init__(
        self, gpu: GpuPreset, model: ModelPreset, policy: Policy, observer: Observer, period_s: float = PERIOD_S
    ) -> None:
        """`period_s` lies between two decisions; one that never changes may be asked for once (inf)."""
        wanted = EngineSettings(kv_blocks=1, max_model_len=1, request_s=QUEUE_S, output_s=ANSWER_S)
        settings, self.gpus = engine_of(gpu, model, max_model_len=model.shape.max_model_len, settings=wanted)
        self.machine = Machine(settings, self.gpus)
        self.gate = Gate(1 << 20)
        self.policy, self.observer, self._period_s = policy, observer, period_s
        self.now = 0.0
        self._state: Any = None
        self._factors = gpu.factors
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []  # a heap
        self._count = 0
        self._waiting: dict[Ticket, Sent] = {}
        self._flying: dict[str, Sent] = {}
        self._max_tokens: Mapping[str, int] = {}
        self._open = 0  # runs
        self._outcome = Outcome([], [], 0.0, 0.0, self.gpus[0].idle_power_w)

    @property
    def card(self) -> Gpu:
        return self.gpus[0]

    def run(self, arrivals: Iterable[tuple[float, Task]], marks: Sequence[float] = ()) -> Outcome:
        """Go through these runs, which begin at these times, to the last answer. `marks` are times of interest."""
        for at, task in arrivals:
            self._open += 1
            self._at(at, self._begin, task)
        for at in marks:
            self._at(at, self._mark, at)
        self._at(0.0, self._decide, None)
        while self._open or self._flying:
            due = self.gate.next_at()
            until = min(self._events[0][0] if self._events else inf, inf if due is None else due)
            ended = self.machine.run(until)
            told = False
            for event in ended:
                if isinstance(event, Refused):
                    raise ValueError(f"the engine refuses a call: {event.reason}")
                if isinstance(event, Finished):
                    told = True
                    self._at(event.at, self._done, event)
            if told:
                continue
            if due is not None and due <= until and not (self._events and self._events[0][0] <= due):
                self.now = due
                self._send(self.gate.tick(due))
            else:
                self.now, _, act, argument = heappop(self._events)
                act(argument)
        self.machine.advance(self.now)
        outcome = self._outcome
        outcome.joules, outcome.ended = self.card.energy_j, self.now
        return outcome

    def _at(self, at: float, act: Callable[[Any], None], argument: Any) -> None:
        self._count += 1
        heappush(self._events, (at, self._count, act, argument))

    def _mark(self, at: float) -> None:
        self._outcome.marks_j[at] = self.card.energy_j

    def _begin(self, task: Task) -> None:
        run = Run(task, self.now, [len(job.after) for job in task.jobs], len(task.jobs))
        self._outcome.runs.append(run)
        for place, missing in enumerate(run.missing):
            if not missing:
                self._arrive(run, place)

    def _arrive(self, run: Run, place: int) -> None:
        job = run.task.jobs[place]
        slack_s = self.observer.slack_s(run, self.now)
        ticket = Ticket(run.task.workflow, job.step, job.head, slack_s, run.attained_s)
        sent = Sent(run, place, ticket, self.now)
        self._waiting[ticket] = sent
        self._outcome.sent.append(sent)
        self.observer.arrived(sent, self.now)
        self._send(self.gate.arrive(ticket, self.now))

    def _send(self, released: Iterable[Ticket]) -> None:
        for ticket in released:
            self._count += 1
            sent = self._waiting.pop(ticket)
            sent.released = self.now
            job = sent.run.task.jobs[sent.place]
            name = str(self._count)
            self._flying[name] = sent
            tokens = sum(text.tokens for text in job.prompt)
            at = self.now + self._factors.request_s + self._factors.prompt_token_s * tokens
            self.machine.submit(Request(name, job.prompt, self._ceiling(ticket.workflow, job.max_tokens)), at)

    def _done(self, event: Finished) -> None:
        sent = self._flying.pop(event.request_id)
        assert event.first_token_at is not None
        sent.first, sent.ended, usage = event.first_token_at, self.now, event.usage
        sent.prompt_tokens, sent.cached_tokens, sent.output_tokens = usage.prompt, usage.cached, usage.output
        run = sent.run
        run.left -= 1
        run.attained_s += self.now - sent.released
        if not run.left:
            run.ended = self.now
            self._open -= 1
        self.observer.done(sent, self.now)
        self._send(self.gate.leave(sent.ticket, self.now))
        for place, job in enumerate(run.task.jobs):
            if sent.place in job.after:
                run.missing[place] -= 1
                if not run.missing[place]:
                    self._arrive(run, place)

    def _decide(self, _: None) -> None:
        signals = self.observer.signals(self.now, self)
        decision, self._state = self.policy.decide(signals, self._state)
        self._outcome.decisions.append((self.now, decision))
        self._max_tokens = decision.max_tokens
        if (limit_w := decision.power_limit_w.get(DEVICE, self.card.default_limit_w)) != self.card.power_limit_w:
            self.card.power_limit_w = limit_w
        clock = decision.sm_clock_mhz.get(DEVICE)
        wanted = None if clock is None else (self.card.supported_sm_mhz[-1], round(clock))
        if wanted != self.card.sm_clock_range_mhz:
            self.card.sm_clock_range_mhz = wanted
        limit = decision.engine_in_flight.get(ENGINE)
        self._send(self.gate.set_rules(limit, decision.in_flight, decision.release, self.now))
        if self._open and self._period_s < inf:
            self._at(self.now + self._period_s, self._decide, None)

    def _ceiling(self, workflow: str, asked: int) -> int:
        return min(asked, self._max_tokens.get(workflow, asked))
