"""The step machine in real time: its clock, its timer, and the way from its events to whoever waits for tokens."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from emulator.core.host import HostPower
from emulator.core.machine import Machine
from emulator.core.request import Event, Preempted, Request, Started, Tokens
from emulator.server.filler import Answer
from emulator.server.metrics import Choices, EngineMetrics, Life
from emulator.server.refusal import dead, too_busy
from emulator.server.slow import SlowDevice

logger = logging.getLogger(__name__)


class Feed:
    """Wakes one waiting exchange when there is news for it."""

    __slots__ = ("_news", "_waiter")

    def __init__(self) -> None:
        self._news = False
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def news(self) -> None:
        """Until something is new since the last call."""
        if not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._news = False


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer in the making. `produced` tokens are there; `done` when there will be no more of them."""

    id: str
    prompt: list[int]
    answer: Answer
    feed: Feed
    limit: int  # of its answer's tokens
    choices: Choices
    priority: int = 0
    salt: str | None = None
    life: Life = field(init=False)
    produced: int = 0
    cached_tokens: int = 0
    done: bool = False


class EngineShell:
    """One emulated engine that runs as time does.

    `devices` are its cards, wrapped so that they can be slowed down; `clock` gives seconds and never goes back. A
    request reaches the engine `request_s` after it came, and `prompt_token_s` more for each token of its prompt: what
    vLLM's own HTTP server takes, which is slower than this one. `power` accounts for the CPUs and memory of the host.
    """

    def __init__(
        self,
        machine: Machine,
        devices: Iterable[SlowDevice],
        metrics: EngineMetrics,
        max_num_queued_reqs: int | None = None,
        request_s: float = 0.0,
        prompt_token_s: float = 0.0,
        power: HostPower | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.machine, self.metrics = machine, metrics
        self._devices = list(devices)
        self._most = max_num_queued_reqs
        self._request_s, self._prompt_token_s = request_s, prompt_token_s
        self._power, self._accounted = power, (0.0, 0, 0, 0)
        self._submitted = 0
        self._clock = clock
        self._origin = self._clock()  # when the machine's time was 0, stalls left out
        self._stall_end = self._slow_end = self._seen = self._origin
        self._ran = 0.0  # the machine's time
        self._sequences: dict[str, Sequence] = {}
        self._timer: asyncio.Handle | None = None
        self.failed: Exception | None = None

    # What exchanges ask of it -----------------------------------------------------------------------------------------

    def check_admission(self, sequences: int) -> None:
        """Raise Refusal where so many more would be too many, as `max_num_queued_reqs` counts: waiting and running."""
        if self._most is not None and self.unfinished + sequences > self._most:
            self.metrics.rejections += 1
            raise too_busy()

    def check_alive(self) -> None:
        """Raise Refusal once the engine has failed."""
        if self.failed is not None:
            raise dead()

    @property
    def unfinished(self) -> int:
        """Sequences that run, wait, or are on their way to the engine."""
        return len(self._sequences)

    def submit(self, sequence: Sequence) -> None:
        """Put a sequence into the engine's queue. Raises Refusal when it is full, or the engine has failed."""
        self.check_admission(1)
        self.catch_up()
        self.check_alive()
        tokens = len(sequence.prompt)
        at = self._now() + self._request_s + self._prompt_token_s * tokens
        sequence.life = Life(self._real(self._now()), self._real(at), tokens, sequence.limit)
        self._sequences[sequence.id] = sequence
        self._submitted += 1
        self.machine.submit(
            Request(
                id=sequence.id,
                prompt=sequence.prompt,
                max_tokens=sequence.answer.tokens,
                priority=sequence.priority,
                cache_salt=sequence.salt,
                output_ids=sequence.answer.token_ids(),
            ),
            at,
        )
        self._arm()

    def cancel(self, sequence: Sequence) -> None:
        """Nobody waits for it any more; one that is done, or never was submitted, is left alone."""
        if self._sequences.pop(sequence.id, None) is not None:
            self.catch_up()
            if self.failed is None:
                self.machine.cancel(sequence.id, self._now())
                self._arm()

    @property
    def max_num_seqs(self) -> int:
        return self.machine.settings.max_num_seqs

    @property
    def max_num_active_reqs(self) -> int:
        """How many requests may be in the batch from the next step on; those that are in it stay."""
        return self.machine.scheduler.max_active_seqs

    @max_num_active_reqs.setter
    def max_num_active_reqs(self, most: int | None) -> None:
        self.catch_up()
        self.machine.scheduler.max_active_seqs = self.max_num_seqs if most is None else most
        self._arm()

    # Time -------------------------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Run the machine to the present. Whoever reads a counter or sets a limit calls it first."""
        now = self._clock()
        passed_s = now - self._seen
        if self._seen < self._stall_end:
            idle_s = min(now, self._stall_end) - self._seen
            for device in self._devices:
                device.rest(idle_s)
            self._origin += idle_s
        if self._slow_end <= now:
            self._set_pace(1.0)
        self._seen = now
        if self.failed is None:
            try:
                self._run(now - self._origin)
            except Exception as error:  # the engine is lost; the server is there to say so to all who wait
                logger.exception("the emulated engine has failed")
                self.failed = error
                for sequence in self._sequences.values():
                    sequence.feed.wake()
        if self._power is not None:
            self._account(self._power, passed_s)

    def _account(self, power: HostPower, passed_s: float) -> None:
        scheduler = self.machine.scheduler
        busy_s = max((device.busy_s for device in self._devices), default=0.0)
        done = (busy_s, self._submitted, scheduler.prompt_tokens, scheduler.generation_tokens)
        busy_s, requests, prompts, outputs = (new - old for new, old in zip(done, self._accounted, strict=True))
        self._accounted = done
        power.account(
            passed_s,
            busy_s=min(max(busy_s, 0.0), passed_s),
            requests=int(requests),
            prompt_tokens=int(prompts),
            output_tokens=int(outputs),
        )

    def _run(self, until: float) -> None:
        """Step by step, so that every token has its own time, also where we are late."""
        if until <= self._ran:  # stalled; to ask for the next step would begin it
            return
        self._ran = until
        while (due := self.machine.next_at()) is not None and due <= until:
            self._take(self.machine.advance(due))
        self._take(self.machine.advance(until))

    def stop(self) -> None:
        """No more steps."""
        if self._timer is not None:
            self._timer.cancel()

    def _now(self) -> float:
        """The machine's time."""
        return self._seen - self._origin

    def _real(self, at: float) -> float:
        return at + self._origin

    def _arm(self) -> None:
        """Wake up when the machine has its next news, looked up when all that comes in this turn is submitted."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_soon(self._wait)

    def _wait(self) -> None:
        self._timer = None
        stalled_s = self.stalled_s()
        if self.failed is not None:
            return
        if stalled_s:
            wait_s = stalled_s
        elif (due := self.machine.next_at()) is not None:
            wait_s = max(0.0, self._real(due) - self._clock())
        else:
            return
        # uvloop counts whole milliseconds; rather late than early and again.
        self._timer = asyncio.get_running_loop().call_later(wait_s + 0.0005, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.catch_up()
        self._arm()

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            sequence = self._sequences.get(event.request_id)
            if sequence is None:
                continue
            life = sequence.life
            if isinstance(event, Tokens):
                sequence.produced += event.count
                at = self._real(event.at)
                between = event.count
                if life.first is None:
                    life.first = life.last = at
                    self.metrics.first_token(life, at)
                    between -= 1
                if between:
                    self.metrics.between_tokens_s.observe((at - life.last) / between, between)
                life.last = at
                life.output_tokens = sequence.produced
                sequence.feed.wake()
            elif isinstance(event, Started):
                if life.scheduled is None:
                    life.scheduled = self._real(event.at)
                    life.cached_tokens = sequence.cached_tokens = event.cached_tokens
            elif isinstance(event, Preempted):
                life.preemptions += 1
            else:
                sequence.done = True
                del self._sequences[sequence.id]
                self.metrics.finished(life, sequence.choices, sequence.answer.finish_reason, self._real(event.at))
                sequence.feed.wake()

    # Faults -----------------------------------------------------------------------------------------------------------

    def stall(self, seconds: float) -> None:
        """Compute nothing for so long; 0 ends a stall. The cards idle meanwhile."""
        self.catch_up()
        self._stall_end = self._seen + seconds
        self._arm()

    def slow(self, factor: float, seconds: float) -> None:
        """Take `factor` times as long for each step for so long."""
        self.catch_up()
        self._slow_end = self._seen + seconds
        self._set_pace(factor if seconds else 1.0)

    def stalled_s(self) -> float:
        return max(0.0, self._stall_end - self._clock())

    def slowed(self) -> tuple[float, float]:
        """The factor, and for how many seconds yet."""
        left_s = max(0.0, self._slow_end - self._clock())
        return (self._devices[0].factor if self._devices and left_s else 1.0), left_s

    def reset_metrics(self) -> None:
        self.catch_up()
        self.metrics.reset()

    def _set_pace(self, factor: float) -> None:
        for device in self._devices:
            device.factor = factor
