"""Which engines may serve a request, and in which order."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from proxy.engines.interface import Engine, EngineSample
from proxy.gate import Gate, Ticket


class UnknownModel(LookupError):
    """No engine serves the model; `known` are those that are served."""

    def __init__(self, model: str, known: Sequence[str]) -> None:
        super().__init__(model)
        self.model, self.known = model, known


@dataclass(slots=True, eq=False)
class Lane:
    """One engine as the gateway sees it: its adapter, its connections, its gate, and how it is."""

    engine: Engine
    session: aiohttp.ClientSession
    gate: Gate
    models: dict[str, dict[str, Any]] = field(default_factory=dict)  # as its /v1/models lists them
    up: bool = False
    sample: EngineSample | None = None
    waiting: dict[Ticket, asyncio.Future[None]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.engine.name

    async def admit(self, ticket: Ticket, timeout_s: float) -> None:
        """Wait for the gate. Raises QueueFull or TimeoutError; whoever was let in, or gave up, must `leave`."""
        if self.gate.arrive(ticket):
            return
        future = asyncio.get_running_loop().create_future()
        self.waiting[ticket] = future
        try:
            await asyncio.wait_for(future, timeout_s)
        finally:
            self.waiting.pop(ticket, None)

    def leave(self, ticket: Ticket) -> None:
        self.wake(self.gate.leave(ticket))

    def wake(self, released: Sequence[Ticket]) -> None:
        for ticket in released:
            future = self.waiting.get(ticket)
            if future is not None and not future.done():
                future.set_result(None)


class Router:
    """Orders the lanes for a model: those that are up first, then the fewest in flight."""

    def __init__(self, lanes: Sequence[Lane], configured: dict[str, tuple[str, ...]]) -> None:
        self.lanes = list(lanes)
        self._configured = configured  # engine -> the models that the operator named

    def candidates(self, model: str | None) -> list[Lane]:
        """The lanes that may serve `model` (None: any), best first. Raises UnknownModel.

        An engine that has told nobody its models yet, and was given none, may serve any.
        """
        fit = self.lanes if model is None else [lane for lane in self.lanes if self._serves(lane, model)]
        if not fit:
            raise UnknownModel(model or "", self.models())
        return sorted(fit, key=lambda lane: (not lane.up, lane.gate.total + lane.gate.waiting))

    def models(self) -> list[str]:
        return sorted({name for lane in self.lanes for name in self._configured[lane.name] or lane.models})

    def listing(self) -> list[dict[str, Any]]:
        """The models of all engines, merged, as OpenAI lists them."""
        merged: dict[str, dict[str, Any]] = {}
        for lane in self.lanes:
            named = self._configured[lane.name]
            for name, entry in lane.models.items():
                if not named or name in named:
                    merged.setdefault(name, entry)
            for name in named:
                merged.setdefault(name, {"id": name, "object": "model", "created": 0, "owned_by": lane.engine.kind})
        return [merged[name] for name in sorted(merged)]

    def _serves(self, lane: Lane, model: str) -> bool:
        known = self._configured[lane.name] or lane.models
        return not known or model in known
