"""The engines in service and those on their way out, with what belongs to each: connections, gate, breaker, probes."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from proxy import health
from proxy.breaker import Breaker
from proxy.config import Config
from proxy.energy.attribution import Attribution
from proxy.energy.prior import Coefficients
from proxy.engines.interface import Engine
from proxy.gate import Gate
from proxy.health import PROBE_EVERY_S
from proxy.route import Lane, Translating
from proxy.supervise import forever
from proxy.tls import engine_context
from proxy.upstream import Upstream

log = logging.getLogger("joulegate.lanes")

_LOOK_EVERY_S = 0.2
_GRACE_S = 2.0  # for what passes no gate, as `/tokenize` does


class Lanes:
    """`active` is the list of engines that may be given requests; it is changed in place, for all who look at it."""

    def __init__(
        self, attribution: Attribution, price: Callable[[Engine, str], Coefficients], counters_s: float = PROBE_EVERY_S
    ) -> None:
        """`price` is what an engine's work costs with a model, whose name is empty while it is not known; its counters
        are asked every `counters_s`."""
        self.active: list[Lane] = []
        self._attribution, self._price, self._counters_s = attribution, price, counters_s
        self._watches: dict[Lane, asyncio.Task[None]] = {}
        self._leaving: dict[Lane, asyncio.Task[None]] = {}

    def put(self, engine: Engine, config: Config) -> None:
        """Take an engine into service that is started and knows its devices; its probes begin with `watch`."""
        gate = Gate(config.limits.queue, config.limits.in_flight)
        tls = next((given.tls for given in config.engines if given.name == engine.name), None)
        context = engine_context(tls, engine.name) if tls is not None else None
        upstream = Upstream(engine.url, config.limits.connect_seconds, tls=context)
        lane = Lane(engine, upstream, gate, breaker=Breaker(), works_for=engine.works_for)
        if isinstance(engine, Translating):
            lane.upstream = translated = engine.take_over(upstream, self.active, self._attribution.start)
            lane.bind = translated.bind
        # What works for another has no work of its own to share a device by.
        devices = () if engine.works_for else engine.devices
        self._attribution.add_engine(engine.name, devices, self._price(engine, ""))
        for former in self._leaving:
            if former.name == lane.name:  # the counters under this name are now another's
                self._watches[former].cancel()
        self.active.append(lane)
        self.configure(config)

    def watch(self) -> None:
        """Begin to probe the engines that are not probed yet."""
        for lane in self.active:
            if lane not in self._watches:
                look = partial(health.watch, lane, self._attribution, self._reprice, self._counters_s)
                self._watches[lane] = asyncio.create_task(forever(f"watching engine {lane.name}", look))

    def configure(self, config: Config) -> None:
        """Hold every engine to these limits."""
        for lane in self.active:
            lane.gate.capacity = config.limits.queue
            lane.upstream.connect_s = config.limits.connect_seconds
            lane.breaker.failures, lane.breaker.probes = config.breaker.failures, config.breaker.probes
            lane.breaker.open_s, lane.breaker.longest_s = config.breaker.open_seconds, config.breaker.longest_seconds

    def retire(self, lane: Lane) -> None:
        """Give an engine no further request; those that it has, queued ones too, end as if nothing had happened."""
        self.active.remove(lane)
        self._leaving[lane] = asyncio.create_task(self._drain(lane))

    async def close(self) -> None:
        """End everything, at once."""
        for tasks in (self._leaving, self._watches):
            for task in list(tasks.values()):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        for lane in [*self.active, *self._leaving]:
            await self._end(lane)

    async def _drain(self, lane: Lane) -> None:
        log.info("engine %s is taken out of service; %d requests end first", lane.name, lane.load)
        await _until(lambda: not lane.load)
        await asyncio.sleep(_GRACE_S)
        # Its counters are read until its last window has settled, unless another one has its name by now.
        await _until(lambda: self._has_successor(lane) or self._attribution.remove_engine(lane.name))
        self._watches.pop(lane).cancel()
        await self._end(lane)
        del self._leaving[lane]
        log.info("engine %s has left", lane.name)

    def _has_successor(self, lane: Lane) -> bool:
        return any(other.name == lane.name for other in [*self.active, *self._leaving] if other is not lane)

    async def _end(self, lane: Lane) -> None:
        lane.upstream.close()
        try:
            await lane.engine.stop()
        except Exception:
            # One engine that does not end well must not keep the others, and the books, open.
            log.exception("engine %s could not be stopped", lane.name)

    def _reprice(self, lane: Lane) -> None:
        self._attribution.price(lane.name, self._price(lane.engine, next(iter(lane.models), "")))


async def _until(done: Callable[[], bool]) -> None:
    while True:
        if done():
            return
        await asyncio.sleep(_LOOK_EVERY_S)
