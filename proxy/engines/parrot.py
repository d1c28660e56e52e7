"""Parrot's ServeCore: each request a semantic call in its run's session, an egress to the engine that computes."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from proxy.config import ConfigError, EgressConfig, EngineConfig
from proxy.energy.work import Progress
from proxy.engines.openai import OpenAI
from proxy.parrot import egress
from proxy.parrot.calls import Calls
from proxy.parrot.core import ServeCore
from proxy.parrot.egress import Guest
from proxy.parrot.sessions import Sessions
from proxy.parrot.upstream import Names, ParrotUpstream
from proxy.parrot.watch import Watch
from proxy.route import Lane
from proxy.supervise import forever
from proxy.upstream import Upstream

log = logging.getLogger("joulegate.parrot")

_LAST_CALLS_S = 3.0  # in which Parrot may bring what it was given, before the door closes on it


class Parrot(OpenAI):
    """A ServeCore. Its work, counters and joules are those of the engine behind its egress; without one, its own."""

    kind: str = "parrot"
    health_paths: tuple[str, ...] = ("/health",)
    schedules_nodes: bool = True

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError for an egress without a good key, where neither egress nor models are given, and for an
        `api_key`."""
        super().__init__(config)
        if self.headers:  # they would go, with a client's own, to the engine behind
            raise ConfigError(
                f"engine {config.name}: ServeCore takes no key; an api_key is given to the engine that its egress calls"
            )
        self._egress: EgressConfig | None = config.egress
        self._key = ""
        if config.egress is not None:
            self._key = config.egress.secret()
            self.local, self.works_for = False, config.egress.engine
        elif not config.models:
            raise ConfigError(
                f"engine {config.name}: without an egress nobody says which models Parrot serves; name them, as in "
                "models: [lmsys/vicuna-7b-v1.3]"
            )
        self._lanes: Sequence[Lane] = ()
        self._begin: Callable[[Progress], None] = lambda _: None
        self._calls = Calls(lambda progress: self._begin(progress))
        self._guest = Guest(self._key, self._calls, self._behind)
        self._sessions: Sessions | None = None
        self._watch: Watch | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the egress. Raises ConfigError where its address cannot be had."""
        if self._egress is not None:
            await egress.enter(self._egress.host, self._egress.port, self._guest)
            where = f"http://{self._egress.host}:{self._egress.port}/v1"
            log.info("engine %s: its calls end at engine %s; Parrot's base_url is %s", self.name, self.works_for, where)

    def take_over(self, upstream: Upstream, lanes: Sequence[Lane], start: Callable[[Progress], None]) -> ParrotUpstream:
        self._lanes, self._begin = lanes, start
        core, through = ServeCore(upstream), self._egress is not None
        self._sessions = sessions = Sessions(core)
        self._watch = watch = Watch(core, self._calls, self._behind if through else None)
        self._sweeping = asyncio.create_task(forever(f"ending sessions of {self.name}", sessions.sweep_forever))
        names = Names(self.name, self.models, self._behind)
        return ParrotUpstream(core, sessions, self._calls, watch, names, through)

    async def stop(self) -> None:
        """End the sessions; the egress stays open for a moment, for a Parrot that meets a closed one ends too."""
        if self._sweeping is not None and self._sessions is not None and self._watch is not None:
            self._sweeping.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_CALLS_S):
                    await self._calls.none_owed.wait()
            await self._watch.close()
            await self._sessions.close()
            self._sessions.core.upstream.close()
            self._sweeping = None
        if self._egress is not None:
            await egress.leave(self._egress.host, self._egress.port, self._guest)

    def _behind(self) -> Lane | None:
        return next((lane for lane in self._lanes if lane.name == self.works_for), None)
