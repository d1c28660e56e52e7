"""The engine in virtual time: steps one after the other, what they cost, and what comes of them.

No I/O and no clock: time is passed in, in seconds, and never goes back. Work that repeats is done at once, so a second
of virtual time costs as much as happens in it and not as many steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from emulator.core.decode import DecodeCosts, Stretch, shares
from emulator.core.device import Device
from emulator.core.frontend import Frontend
from emulator.core.request import Ended, Event, Finished, Preempted, Refusal, Refused, Request, Started, Tokens
from emulator.core.scheduler import Scheduler, Step, chunk_work
from emulator.core.sequence import Sequence as Running
from emulator.core.sequence import State
from emulator.core.settings import EngineSettings
from emulator.core.step import StepWork


@dataclass(frozen=True, slots=True)
class Observed:
    """One step as it was: its cost on all cards together, and the part that each request had in its work."""

    start: float
    seconds: float
    joules: float
    parts: dict[str, StepWork]


@dataclass(slots=True)
class _UnderWay:
    step: Step
    start: float
    end: float
    joules: list[float]
    paid_to: float


class Machine:
    """One engine on its cards. `scheduler` has the counters and the live limit on active sequences.

    Between two calls, limits of the cards and of the scheduler may be set; they hold from the next step on. `observer`
    is called with every step; without one, steps that are alike are never looked at singly.
    """

    def __init__(
        self,
        settings: EngineSettings,
        devices: Sequence[Device],
        *,
        at: float = 0.0,
        observer: Callable[[Observed], None] | None = None,
    ) -> None:
        self.settings = settings
        self.scheduler = Scheduler(settings)
        self.observer = observer
        self._devices = devices
        self._costs = DecodeCosts(devices)
        self._frontend = Frontend(settings.request_s, settings.prompt_token_s)
        self._now = at  # the end of the last step or pause
        self._reached = at
        self._live: dict[str, Running] = {}
        self._cancels: list[tuple[float, str]] = []  # a heap
        self._count = 0
        self._under_way: _UnderWay | None = None
        self._stretch: Stretch | None = None
        self._events: list[Event] = []
        self._ends = 0  # requests that ended since the last call

    def submit(self, request: Request, at: float) -> None:
        """Let a request arrive. Raises ValueError for a time that has passed, or the id of a request that is here."""
        if at < self._reached:
            raise ValueError(f"request {request.id} cannot arrive at {at} s: the machine is at {self._reached} s")
        if request.id in self._live:
            raise ValueError(f"request {request.id} is here already: ids are used once")
        self._count += 1
        rank = (request.priority, at, self._count) if self.settings.policy == "priority" else (at, self._count)
        sequence = Running(request, at, rank, self.settings.block_size)
        sequence.limit = min(request.max_tokens, self.settings.max_model_len - sequence.prompt_tokens)
        self._live[request.id] = sequence
        self._frontend.arrive(sequence)

    def cancel(self, request_id: str, at: float) -> None:
        """Cancel a request, wherever it is; nothing happens if it has ended by then. Raises ValueError as `submit`."""
        if at < self._reached:
            raise ValueError(f"request {request_id} cannot be cancelled at {at} s: the machine is at {self._reached} s")
        heappush(self._cancels, (at, request_id))

    def next_at(self) -> float | None:
        """When there will be something to tell, if nothing else is submitted; None if never.

        The step that is due begins with this call: what arrives at the very moment must be submitted before.
        """
        if not self._under_way:
            self._begin(self._reached)
        if self._events:
            return self._reached
        at = self._under_way.end if self._under_way else self._next_arrival()
        return None if at == inf else at

    def advance(self, until: float) -> list[Event]:
        """Go on to `until` and tell what happened. A step that is not over by then is under way.

        Called at each `next_at` it tells of every token; called more rarely, of as many at once as came in between.
        """
        while self._turn(until):
            pass
        for sequence in self.scheduler.running:
            self._report(sequence, self._now + self.settings.output_s)
        return self._told()

    def run(self, until: float) -> list[Event]:
        """As `advance`, but no further than to the end of a request, and with tokens told only of those that end."""
        while not self._ends and self._turn(until):
            pass
        return self._told()

    def _told(self) -> list[Event]:
        events, self._events, self._ends = self._events, [], 0
        return events

    def _turn(self, until: float) -> bool:
        """One step, or many that are alike, or a pause; False if `until` is reached."""
        under_way = self._under_way
        if under_way:
            if under_way.end > until:
                self._pay(under_way, until)
                self._reached = until
                return False
            self._pay(under_way, under_way.end)
            self._under_way = None
            self._over(under_way)
            return True
        if self._now >= until:
            return False
        if not self._begin(until):
            pause = min(until, self._next_arrival())
            if pause == inf:
                return False
            for device in self._devices:
                device.rest(pause - self._now)
            self._now = self._reached = pause
        return True

    def _begin(self, until: float) -> bool:
        """Begin the step that is due, and if it is one of many alike, go through those that end by `until`; False if
        there is nothing to do."""
        self._receive()
        step = self.scheduler.schedule()
        if step is None:
            return False
        for sequence in step.preempted:
            self._report(sequence, self._now + self.settings.output_s)
            self._events.append(Preempted(sequence.request.id, self._now))
        for sequence in step.admitted:
            sequence.started_at = self._now
            self._events.append(Started(sequence.request.id, self._now, sequence.cached or 0))
        if step.chunks:
            self._stretch = None
            seconds, joules = shares(self._devices, step.work())
            self._under_way = _UnderWay(step, self._now, self._now + seconds, joules, self._now)
        else:
            self._decode(step, until)
        return True

    def _decode(self, step: Step, until: float) -> None:
        """As many alike steps as end by `until` and begin before anything else comes; or the first of them, begun."""
        stretch = self._stretch
        if step.preempted or not stretch or stretch.done == stretch.steps or stretch.limits != self._costs.limits():
            stretch = self._costs.stretch(self._now, step.decodes, step.decode_context, step.shared)
        most = 1 if self.observer or step.preempted else self.scheduler.steady()
        arrival, done, start = self._next_arrival(), 0, self._now
        joules = [0.0] * len(self._devices)
        while True:
            first = stretch.done
            last = first + min(stretch.steps - first, most - done)
            if stretch.end(last - 1) >= arrival:
                last = stretch.over_by(arrival, last)
                last += stretch.end(last) < arrival
            stretch.done = stretch.over_by(until, last)
            if stretch.done > first:
                done += stretch.done - first
                self._now = stretch.end(stretch.done)
                joules = [sum(pair) for pair in zip(joules, stretch.spent(first, stretch.done), strict=True)]
            if stretch.done < last or done == most or self._now >= min(arrival, until):
                break
            context = step.decode_context + done * step.decodes
            stretch = self._costs.stretch(self._now, step.decodes, context, step.shared)
        self._stretch = stretch
        if not done:
            end = stretch.end(stretch.done + 1)
            self._under_way = _UnderWay(step, start, end, stretch.spent(stretch.done, stretch.done + 1), start)
            return
        if self.observer:
            self._observe(self.observer, step, start, self._now - start, sum(joules))
        for device, spent in zip(self._devices, joules, strict=True):
            device.spend(spent, self._now - start)
        self._reached = self._now
        self._decoded(done)

    def _decoded(self, steps: int) -> None:
        """Decode steps are over: the stretch goes on unless that ended a sequence."""
        finished = self.scheduler.decode(steps)
        if finished:
            self._stretch = None
            self._finish(finished)

    def _over(self, under_way: _UnderWay) -> None:
        """A step that was under way is over."""
        step, seconds = under_way.step, under_way.end - under_way.start
        if self.observer:
            self._observe(self.observer, step, under_way.start, seconds, sum(under_way.joules))
        self._now = self._reached = under_way.end
        if not step.chunks:
            assert self._stretch
            self._stretch.done += 1
            self._decoded(1)
            return
        first, finished = self.scheduler.complete(step)
        for sequence in first:
            sequence.first_token_at = self._now + self.settings.output_s
        self._finish(finished)

    def _finish(self, finished: list[Running]) -> None:
        for sequence in finished:
            self.scheduler.remove(sequence)
            self._ended(sequence, "length")

    def _ended(self, sequence: Running, reason: Ended) -> None:
        at = self._now + self.settings.output_s
        self._report(sequence, at)
        del self._live[sequence.request.id]
        self._ends += 1
        usage = sequence.usage(self.scheduler.clock)
        times = (sequence.arrived_at, sequence.started_at, sequence.first_token_at)
        self._events.append(Finished(sequence.request.id, at, reason, usage, *times))

    def _report(self, sequence: Running, at: float) -> None:
        outputs = sequence.outputs(self.scheduler.clock)
        if outputs > sequence.reported:
            self._events.append(Tokens(sequence.request.id, outputs - sequence.reported, at))
            sequence.reported = outputs

    def _next_arrival(self) -> float:
        """When the next request or cancellation comes."""
        return min(self._frontend.next_at(), self._cancels[0][0] if self._cancels else inf)

    def _receive(self) -> None:
        """Take in what has come by now."""
        while self._cancels and self._cancels[0][0] <= self._now:
            sequence = self._live.get(heappop(self._cancels)[1])
            if sequence:
                if sequence.state is State.DECODING:
                    self._stretch = None
                self.scheduler.remove(sequence)
                self._ended(sequence, "abort")
        while self._frontend.next_at() <= self._now:
            sequence = self._frontend.pass_on()
            most = self.settings.max_num_queued_reqs
            if sequence.limit < 1:
                self._refuse(sequence, "too_long")
            elif most is not None and len(self.scheduler.running) + self.scheduler.waiting >= most:
                self._refuse(sequence, "queue_full")
            else:
                self.scheduler.add(sequence)

    def _refuse(self, sequence: Running, reason: Refusal) -> None:
        sequence.state = State.ENDED
        del self._live[sequence.request.id]
        self._ends += 1
        self._events.append(Refused(sequence.request.id, self._now, reason))

    def _pay(self, under_way: _UnderWay, to: float) -> None:
        """Put a step's energy on the cards as far as the step has come."""
        seconds = to - under_way.paid_to
        if seconds > 0:
            part = seconds / (under_way.end - under_way.start)
            for device, joules in zip(self._devices, under_way.joules, strict=True):
                device.spend(joules * part, seconds)
            under_way.paid_to = to

    def _observe(
        self, observer: Callable[[Observed], None], step: Step, start: float, seconds: float, joules: float
    ) -> None:
        parts = {sequence.request.id: chunk_work(first, tokens) for sequence, first, tokens in step.chunks}
        for sequence in self.scheduler.running:
            if sequence.state is State.DECODING:
                context = sequence.in_cache(self.scheduler.clock) + 1
                parts[sequence.request.id] = StepWork(decode_sequences=1, decode_context=context)
        observer(Observed(start, seconds, joules, parts))
