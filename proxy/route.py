"""Which engines may serve a request, and in which order."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from proxy import clock
from proxy.affinity import Affinity, NoAffinity, Trait
from proxy.breaker import Breaker, State
from proxy.deadline import Watch
from proxy.energy.work import Progress
from proxy.engines.interface import Engine, EngineSample
from proxy.gate import Gate, Ticket
from proxy.upstream import Connections, Serving, Upstream

log = logging.getLogger("joulegate.route")


class AllOut(Exception):
    """Every engine that could serve the request is taken out by its breaker; one may be asked in `retry_after_s`."""

    def __init__(self, engines: Sequence[str], retry_after_s: int) -> None:
        super().__init__(", ".join(engines))
        self.engines, self.retry_after_s = engines, retry_after_s


class UnknownModel(LookupError):
    """No engine serves the model; `known` are those that are served."""

    def __init__(self, model: str, known: Sequence[str]) -> None:
        super().__init__(model)
        self.model, self.known = model, known


@dataclass(slots=True, eq=False)
class Lane:
    """One engine as the gateway sees it: its adapter, its connections, its gate, and how it is.

    `bind`, of one that is not simply sent its requests, takes the receipt and the progress of an attempt (None for what
    has none), says where that is sent instead, and starts the progress when the engine does. `works_for` is another
    engine that does its work, and has its counters.
    """

    engine: Engine
    upstream: Connections
    gate: Gate
    models: dict[str, dict[str, Any]] = field(default_factory=dict)  # as its /v1/models lists them
    up: bool = False
    sample: EngineSample | None = None
    waiting: dict[Ticket, asyncio.Future[None]] = field(default_factory=dict)
    breaker: Breaker = field(default_factory=Breaker)
    deadlines: Watch = field(default_factory=Watch)
    looks_at: float | None = None  # when the gate is asked again of its own accord
    timer: asyncio.TimerHandle | None = None
    bind: Callable[[Any, Any], Serving] | None = None
    works_for: str | None = None

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def load(self) -> int:
        """Requests that are here, queued or in flight."""
        return self.gate.total + self.gate.waiting

    def judge(self, permit: int, well: bool | None, now: float) -> None:
        """A request leaves the breaker (see there); what that changes is logged."""
        before = self.breaker.era
        self.breaker.leave(permit, well, now)
        if self.breaker.era != before:
            self.say(now)

    def say(self, now: float) -> None:
        if self.breaker.state(now) is State.CLOSED:
            log.info("engine %s is back in service", self.name)
        else:
            log.warning("engine %s fails: taken out for %g s", self.name, self.breaker.wait_s)

    async def admit(self, ticket: Ticket, timeout_s: float) -> None:
        """Wait for the gate. Raises QueueFull or TimeoutError; whoever was let in, or gave up, must `leave`."""
        self.wake(self.gate.arrive(ticket, clock.now()))
        if ticket.released:
            return
        future = asyncio.get_running_loop().create_future()
        self.waiting[ticket] = future
        try:
            # Not wait_for: on Python 3.11 it loses the cancellation of a client that leaves as the gate lets it in.
            async with asyncio.timeout(timeout_s):
                await future
        finally:
            self.waiting.pop(ticket, None)

    def leave(self, ticket: Ticket) -> None:
        self.wake(self.gate.leave(ticket, clock.now()))

    def wake(self, released: Sequence[Ticket]) -> None:
        """Let those in whom the gate has just released, and look again when it has more to release."""
        for ticket in released:
            future = self.waiting.get(ticket)
            if future is not None and not future.done():
                future.set_result(None)
        at = self.gate.next_at()
        if at != self.looks_at:
            self._look_at(at)

    def _look_at(self, at: float | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        delay_s = None if at is None else max(0.0, at - clock.now())
        self.timer = None if delay_s is None else asyncio.get_running_loop().call_later(delay_s, self._tick)
        self.looks_at = at

    def _tick(self) -> None:
        self.timer = self.looks_at = None
        self.wake(self.gate.tick(clock.now()))


class Translated(Connections, Protocol):
    """What serves an engine that does not speak OpenAI's API; `bind` is the lane's."""

    def bind(self, receipt: Any, progress: Any) -> Serving: ...


@runtime_checkable
class Translating(Protocol):
    """An engine that takes its connections in hand itself, for it does not speak OpenAI's API."""

    def take_over(self, upstream: Upstream, lanes: Sequence[Lane], start: Callable[[Progress], None]) -> Translated:
        """What serves its requests in the place of `upstream`. `lanes` are the engines in service, at any time; `start`
        is to be called with an attempt's progress when work on it begins."""
        ...


class Router:
    """Orders the lanes for a request: up before down, then by affinity, then the fewest there.

    `lanes` is shared with whoever adds and removes engines. An engine that knows a request is passed over while it has
    `slack` more requests than the least busy one.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        configured: Mapping[str, tuple[str, ...]],
        affinity: Affinity | None = None,
        slack: int = 8,
    ) -> None:
        self.lanes = lanes
        self.configured = configured  # engine -> the models that the operator named
        self.affinity = NoAffinity() if affinity is None else affinity
        self.slack = slack

    def candidates(self, model: str | None, now: float = 0.0, trait: Trait = ()) -> list[Lane]:
        """The lanes that may serve `model` (None: any), best first. Raises UnknownModel or AllOut.

        An engine that has told nobody its models yet, and was given none, may serve any.
        """
        fit = self.lanes if model is None else [lane for lane in self.lanes if self._serves(lane, model)]
        if not fit:
            raise UnknownModel(model or "", self.models())
        let_in = [lane for lane in fit if lane.breaker.allows(now)]
        if not let_in:
            raise AllOut([lane.name for lane in fit], min(lane.breaker.retry_after_s(now) for lane in fit))
        if len(let_in) == 1:
            return let_in
        known = self.affinity.known(trait) if trait else {}
        if not known:
            return sorted(let_in, key=lambda lane: (not lane.up, lane.load))
        most = self.slack + min(lane.load for lane in [lane for lane in let_in if lane.up] or let_in)

        def order(lane: Lane) -> tuple[bool, int, int]:
            return not lane.up, -known.get(lane.name, 0) if lane.load < most else 0, lane.load

        return sorted(let_in, key=order)

    def models(self) -> list[str]:
        return sorted({name for lane in self.lanes for name in self.configured.get(lane.name, ()) or lane.models})

    def listing(self) -> list[dict[str, Any]]:
        """The models of all engines, merged, as OpenAI lists them."""
        merged: dict[str, dict[str, Any]] = {}
        for lane in self.lanes:
            named = self.configured.get(lane.name, ())
            for name, entry in lane.models.items():
                if not named or name in named:
                    merged.setdefault(name, entry)
            for name in named:
                merged.setdefault(name, {"id": name, "object": "model", "created": 0, "owned_by": lane.engine.kind})
        return [merged[name] for name in sorted(merged)]

    def _serves(self, lane: Lane, model: str) -> bool:
        known = self.configured.get(lane.name, ()) or lane.models
        return not known or model in known
