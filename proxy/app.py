"""Assembles the gateway: the one place where its parts meet."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse

from policies.interface import Policy
from policies.load import load_policy
from proxy import clock
from proxy.affinity import affinity
from proxy.api import admin
from proxy.api import energy as energy_api
from proxy.api import policy as policy_api
from proxy.bounds import head_bytes
from proxy.budget import Standing, tightest
from proxy.config import Config, ConfigError
from proxy.control.actuator import Actuator
from proxy.control.devices import Devices
from proxy.control.gauges import policy_gauges
from proxy.control.gpus import open_knobs
from proxy.control.knobs import SM_CLOCK
from proxy.control.learner import Learner
from proxy.control.lock import GpuLocks
from proxy.control.loop import Control
from proxy.control.report import report
from proxy.control.restore import restore_all
from proxy.control.sharing import Sharing
from proxy.control.signals import Senses
from proxy.control.watchdog import Watchdog
from proxy.energy import learnt
from proxy.energy.attribution import Attribution
from proxy.energy.cpu_part import is_on_cpu
from proxy.energy.ledger import Ledger
from proxy.energy.ledger_file import LedgerDraining
from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.meter import Meter
from proxy.energy.prior import Coefficients, prior
from proxy.energy.processes import Processes
from proxy.energy.receipts import Book, share_quality
from proxy.energy.record import Recorder
from proxy.energy.records import Quality, Waste
from proxy.energy.sources import Device, Reading, on_cpu, on_gpus, open_sources
from proxy.engines.interface import Engine, EngineSample, load_engine
from proxy.forward import Forward, Receive, Scope, Send
from proxy.health import PROBE_EVERY_S
from proxy.keys import Keys
from proxy.lanes import Lanes
from proxy.live import LiveGateway
from proxy.nodes.hold import Nodes
from proxy.refusal import Refusal, error_object
from proxy.reload import changes
from proxy.route import Router
from proxy.spending import Spending
from proxy.supervise import forever
from proxy.telemetry.bounds import LabelBounds
from proxy.telemetry.gauges import Gauges
from proxy.telemetry.metrics import Metrics, encode
from proxy.tls import check_tls

ALL = "*"  # as a workflow in the gate's limit: the engine's own, over all of them
ON_CPU = ("embedded",)  # kinds of engine that use no GPU, whatever this machine has
RECORDED_S = 0.1  # how often engines are asked for their counters while a trace is recorded
EVERYBODYS = ("/healthz", "/readyz")
TENANTS = ("/energy/workflows", "/energy/runs", "/energy/requests")  # each shows a tenant its own figures alone

log = logging.getLogger("joulegate")

_KEEP_LEARNT_S = 60.0
_HAND_OVER_S = 3600.0  # how long a gateway waits for the one before it to close its books


class Gateway:
    """A whole gateway, as an ASGI application: `start`, serve, `stop`. Raises ConfigError for what cannot be used.

    `said` holds, after `start`, one line for each thing a person should know: what is measured, with which quality.
    `read` reads the configuration anew, for `reload`; without it nothing can be reloaded.
    """

    def __init__(self, config: Config, version: str, read: Callable[[], Config] | None = None) -> None:
        self.config = config
        self.draining = False
        self._read = read
        self._ledger: Ledger | None = None
        self._reloading = asyncio.Lock()
        self.policy = _policy(config)
        self.engines = [load_engine(engine) for engine in config.engines]
        self.keys = Keys(config.keys, config.admin, config.listen.open)
        self.said: list[str] = []
        known = {name: workflow.steps for name, workflow in config.workflows.items()}
        models = [model for engine in config.engines for model in engine.models]
        bounds = LabelBounds(config.limits.workflows, config.limits.steps, known=known, known_models=models)
        self.metrics = Metrics(version, bounds)
        self.attribution = Attribution(config.energy.settle)
        self.book = Book(bounds.workflow, bounds.step)
        self.recorder: Recorder | None = None
        self.nodes = Nodes(config.limits)
        self.book.on_close.append(self.nodes.close)
        self._lanes = Lanes(self.attribution, self._price, RECORDED_S if config.energy.record else PROBE_EVERY_S)
        self.lanes = self._lanes.active
        self._opened = AsyncExitStack()
        self._gates_seen = {(engine.name, name) for engine in config.engines for name in config.workflows}
        self._version = version

    async def start(self) -> None:
        """Open everything that the gateway needs, the ledger first: without books nothing may be spent.

        What was opened before a fault, or a cancellation, is closed again.
        """
        try:
            await self._open()
        except BaseException:
            await self.stop()
            raise

    async def _open(self) -> None:
        config = self.config
        self._ledger = ledger = await self._open_ledger()
        for workflow, uj in ledger.orphaned_uj.items():
            self.metrics.wasted(self.metrics.bounds.workflow(workflow), Waste.ORPHANED, uj)
        here = any(engine.local for engine in self.engines)
        needs_cpu = any(engine.kind in ON_CPU for engine in self.engines)
        sources, self.said = await asyncio.to_thread(open_sources, config.known_hosts(), here, needs_cpu)
        self.meter = Meter(
            *(sources, self.attribution, self.book, ledger, self.metrics, config.energy.interval),
            *(config.ledger.buffer_requests, config.ledger.retention()),
            seen=self._record if config.energy.record else None,
            processes=Processes(self._engines_on_our_cpu),
        )
        self.attribution.remember(await asyncio.to_thread(learnt.read, learnt.beside(config.ledger.path)))
        self._opened.push_async_callback(self._keep_learnt)
        for device in self.meter.devices.values():
            if device.withheld:
                self.attribution.withhold(device.name, device.withheld)
        self._opened.push_async_callback(self.meter.close)
        self._opened.push_async_callback(self._lanes.close)
        await self._start_engines(self.engines)
        for engine in self.engines:
            self._lanes.put(engine, config)
        self.said += self._unmetered(self.engines)
        if self.keys.nobody_is_admin:
            self.said.append("no admin key: /metrics, /docs and the machine's totals are closed to everybody")
        self.router = Router(
            self.lanes,
            {engine.name: engine.models for engine in config.engines},
            affinity(config.routing.affinity, config.routing.entries),
            config.routing.slack,
        )
        reader = LedgerReader(config.ledger.path)
        self.spending = Spending(self.book, self.attribution, self.meter.spent, reader.run_uj, self.metrics)
        self.said += self._check_budgets(config, self.keys, self.engines)
        self.spending.configure(config.run_budgets(), self.keys.budgets)
        self.forward = Forward(
            *(config, self.router, self.keys, self.book, self.attribution, self.metrics, self.spending, self._parts),
            nodes=self.nodes,
        )
        if config.energy.record is not None:
            self.recorder = self.forward.recorder = _recorder(config.energy.record, config.energy.record_mb)
            self._opened.push_async_callback(self.recorder.close)
            self.said.append(f"recording a trace in {config.energy.record}")
        self.api = self._api(reader)
        await self.meter.read()
        await self.meter.commit()  # so that even a life of less than a second leaves where the counters stood
        self.control = await self._control()
        await self.control.step()
        loops = {
            "reading the counters": self.meter.read_forever,
            "closing the books": self.meter.commit_forever,
            "the policy's loop": self.control.run_forever,
            "watching the budgets": self.spending.watch_forever,
            "keeping what was learnt": self._keep_learnt_forever,
        }
        if self.recorder is not None:
            loops["recording the trace"] = self.recorder.write_forever
        tasks = [asyncio.create_task(forever(what, run)) for what, run in loops.items()]
        self._opened.push_async_callback(_end, tasks)
        self._lanes.watch()

    async def stop(self) -> None:
        """Close the books and put everything back as it was found: the last opened first, the ledger last."""
        await self._opened.aclose()

    def drain(self) -> None:
        """Say that this gateway is on its way out: `/readyz` turns, and who waits for the ledger knows it may."""
        self.draining = True
        self.nodes.drain()
        if self._ledger is not None:
            self._ledger.draining()

    async def _open_ledger(self) -> Ledger:
        """The ledger; where a gateway that takes no more requests still writes it, once that has closed its books."""
        path, ends, waiting = self.config.ledger.path, clock.now() + _HAND_OVER_S, False
        while True:
            try:
                return await asyncio.to_thread(Ledger, path)
            except LedgerDraining:
                if clock.now() > ends:
                    raise
                if not waiting:
                    log.info("%s: waiting for the gateway that drains to close its books", path)
                waiting = True
                await asyncio.sleep(0.2)

    async def _start_engines(self, engines: Sequence[Engine]) -> None:
        """Start all of them; where one cannot, those that were are stopped again."""
        begun: list[Engine] = []
        try:
            for engine in engines:
                begun.append(engine)
                await engine.start()
                engine.devices = engine.devices or self._default_devices(engine)
            for engine in engines:
                if engine.works_for:
                    known = {other.name: other.devices for other in [*self.engines, *engines]}
                    engine.devices = known[engine.works_for]
        except BaseException:
            for engine in begun:
                await engine.stop()
            raise

    # Another configuration ------------------------------------------------------------------------------------------

    async def reload(self) -> str:
        """Read the configuration again and take it, without a request noticing; returns what changed.

        Raises ConfigError, a line for each fault, and leaves everything as it was.
        """
        async with self._reloading:
            if self._read is None:
                raise ConfigError("this gateway was started without a configuration file")
            new = await asyncio.to_thread(self._read)
            change = changes(self.config, new)
            keys = Keys(new.keys, new.admin, new.listen.open)
            policy = self.policy if new.policy == self.config.policy else _policy(new)
            engines = [load_engine(engine) for engine in new.engines]
            check_tls(new)
            touched = {engine.name for engine in (*change.added, *change.changed)}
            fresh = [engine for engine in engines if engine.name in touched]
            await self._start_engines(fresh)
            stay = [lane.engine for lane in self.lanes if lane.name not in touched and lane.name not in change.removed]
            try:
                said = self._check_budgets(new, keys, [*stay, *fresh])
            except ConfigError:
                for engine in fresh:
                    await engine.stop()
                raise
            # From here on nothing waits and nothing fails: every request sees the old configuration or the new one.
            for lane in list(self.lanes):
                if lane.name in touched or lane.name in change.removed:
                    self._lanes.retire(lane)
            for engine in fresh:
                self._lanes.put(engine, new)
            self._take(new, keys, policy)
            headers = {engine.name: engine.headers for engine in engines}
            for lane in self.lanes:
                lane.engine.headers = headers[lane.name]  # the file of an engine's key may have changed
            self._lanes.watch()
            for line in [*self._unmetered(fresh), *said]:
                log.warning("%s", line)
            return str(change)

    def _take(self, new: Config, keys: Keys, policy: Policy) -> None:
        """Everything but the engines."""
        if new.routing != self.config.routing:
            self.router.affinity = affinity(new.routing.affinity, new.routing.entries)
        self.config, self.policy = new, policy
        self.engines = [lane.engine for lane in self.lanes]
        keys.carry_on(self.keys)
        self.keys = self.forward.keys = self.live.keys = keys
        self.router.configured = {engine.name: engine.models for engine in new.engines}
        self.router.slack = new.routing.slack
        self.forward.configure(new)
        self.spending.configure(new.run_budgets(), keys.budgets)
        self.control.configure(policy, new)
        self._lanes.configure(new)
        self.metrics.bounds.configure(
            new.limits.workflows,
            new.limits.steps,
            {name: workflow.steps for name, workflow in new.workflows.items()},
            [model for engine in new.engines for model in engine.models],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if head_bytes(scope) > self.config.limits.header_bytes:
                most = self.config.limits.header_bytes
                raise Refusal(431, f"the headers are larger than {most} bytes", "headers_too_large")
            forwarded = self.forward.takes(scope["path"])
            if not forwarded and not _is_within(scope["path"], *EVERYBODYS, *TENANTS):
                self.keys.require_admin(dict(scope["headers"]))
        except Refusal as refusal:
            headers = refusal.text_headers()
            await Response(refusal.body(), refusal.status, headers, "application/json")(scope, receive, send)
            return
        if forwarded:
            await self.forward(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # a server sends no body then, whatever it is given
            scope = {**scope, "method": "GET"}
        try:
            await self.api(scope, receive, send)
        except asyncio.CancelledError:
            if not self.draining:  # else the server waits no longer, and would log a traceback
                raise

    def _may_administer(self, request: Request) -> None:
        """With keys the guard in `__call__` has asked for the admin's; without any, whoever is on this machine may."""
        if self.keys.are_none:
            admin.loopback_only(request)

    # Energy ---------------------------------------------------------------------------------------------------------

    def _default_devices(self, engine: Engine) -> tuple[str, ...]:
        """What moves with the work of an engine on this machine that was given no devices."""
        if not engine.local:
            return ()
        local = [name for name, host in self.config.known_hosts().items() if host.local]
        devices = [device for name, device in self.meter.devices.items() if name.partition("/")[0] in local]
        return on_cpu(devices) if engine.kind in ON_CPU else on_gpus(devices)

    def _unmetered(self, engines: Sequence[Engine]) -> list[str]:
        """A line for each engine that found its devices by itself, and for each whose joules are not known."""
        known, said = self.meter.devices, []
        unnamed = {engine.name for engine in self.config.engines if not engine.devices}
        for engine in engines:
            if engine.devices and engine.name in unnamed:
                said.append(f"engine {engine.name}: its joules are those of {', '.join(engine.devices)}")
                if len(gpus := [name for name in engine.devices if known[name].component == "gpu"]) > 1:
                    said[-1] += f"; if it has not all of these GPUs, name its own, as in devices: [{gpus[0]}]"
            for device in engine.devices:
                if device not in known:
                    said.append(f"engine {engine.name}: device {device} has no counter; known: {', '.join(known)}")
            if not engine.devices:
                said.append(f"engine {engine.name}: its energy is not known; name its devices under a host")
        return said

    def _check_budgets(self, config: Config, keys: Keys, engines: Sequence[Engine]) -> list[str]:
        """A line for what the configured budgets do not count as it is. Raises ConfigError where they count nothing."""
        if not keys.budgets and not config.run_budgets():
            return []
        known = self.meter.devices
        counted = {
            engine.name: [known[device].quality for device in engine.devices if device in known] for engine in engines
        }
        if not any(counted.values()):
            raise ConfigError(
                "a budget needs a counter, and the joules of no engine are known: name an engine's devices, as in "
                "devices: [host/gpu:0], or leave the budgets out"
            )
        said = [f"budgets do not count engine {name}: its energy is not known" for name, q in counted.items() if not q]
        qualities = {quality for found in counted.values() for quality in found}
        for quality in (Quality.ESTIMATED, Quality.EMULATED):
            if quality in qualities:
                said.append(f"budgets count {quality} joules: they are as right as these")
        return said

    def _parts(self, engine: str) -> dict[str, Quality]:
        """The components that an engine is metered by, and the quality of a request's share of each."""
        known = self.meter.devices
        names = next((lane.engine.devices for lane in self.lanes if lane.name == engine), ())
        return {known[name].component: share_quality(known[name].quality) for name in names if name in known}

    def _engines_on_our_cpu(self) -> list[Engine]:
        """Those whose joules are partly a processor's of this machine, which their process's time then shares."""
        local = tuple(f"{name}/" for name, host in self.config.known_hosts().items() if host.local)
        return [
            lane.engine
            for lane in list(self.lanes)
            if lane.engine.local and any(is_on_cpu(name) and name.startswith(local) for name in lane.engine.devices)
        ]

    def _device_model(self, engine: Engine) -> str:
        """The name of the engine's accelerator, for its prior; the host's processor where it has none."""
        devices: list[Device] = [d for d in self.meter.devices.values() if d.name in engine.devices]
        devices.sort(key=lambda device: ("gpu", "soc", "cpu", "dram").index(device.component))
        return devices[0].model if devices else ""

    def _price(self, engine: Engine, model: str) -> Coefficients:
        return prior(self._device_model(engine), model)

    async def _keep_learnt_forever(self) -> None:
        while True:
            await asyncio.sleep(_KEEP_LEARNT_S)
            await self._keep_learnt()

    async def _keep_learnt(self) -> None:
        path, content = learnt.beside(self.config.ledger.path), learnt.encode(self.attribution.learnt())
        await asyncio.to_thread(learnt.write, path, content)

    def _record(self, readings: Sequence[Reading]) -> None:
        """Put a round of readings into the trace, with what the engines on these devices said last."""
        if self.recorder is None or not self.recorder.recording:
            return
        samples: dict[str, list[tuple[str, EngineSample]]] = {}
        for lane in self.lanes:
            self.recorder.engine(lane.name, self._device_model(lane.engine), next(iter(lane.models), ""))
            for device in lane.engine.devices:
                samples.setdefault(device, []).append((lane.name, lane.sample or EngineSample(clock.now())))
        self.recorder.counters(readings, samples)

    # Control --------------------------------------------------------------------------------------------------------

    async def _control(self) -> Control:
        """The policy's loop; first, whatever an earlier gateway left behind is set back."""
        hosts, locks = self.config.known_hosts(), GpuLocks()
        knobs = await asyncio.to_thread(open_knobs, hosts)
        self.said += await asyncio.to_thread(restore_all, knobs, None, locks)
        watchdog = Watchdog(hosts)
        power = Actuator(knobs.power, locks=locks, watchdog=watchdog)
        clocks = Actuator(knobs.sm_clock, quantity=SM_CLOCK, locks=locks, watchdog=watchdog)
        devices = Devices(knobs, power, clocks, watchdog)
        self._opened.push_async_callback(asyncio.to_thread, devices.restore)
        senses = Senses(self.attribution, self.metrics.itl_seconds, Learner(clock.now()), Sharing())
        return Control(
            *(self.policy, self.config, self.lanes, self.forward, self.book, self.meter, self.metrics),
            *(senses, devices, self.attribution.setting),
        )

    # The API --------------------------------------------------------------------------------------------------------

    def _api(self, reader: LedgerReader) -> FastAPI:
        api = FastAPI(title="Joulegate", version=self._version, docs_url="/docs", redoc_url=None)
        pue = {name: host.pue for name, host in self.config.known_hosts().items()}
        self.live = LiveGateway(self.meter, self.attribution, self.book, self.keys, self.lanes, pue)
        api.include_router(energy_api.router(reader, self.live))
        api.include_router(policy_api.router(lambda: report(self.control, self.metrics.policy_setbacks.totals)))
        api.include_router(admin.router(self.reload, self._may_administer))

        @api.get("/healthz", summary="The process answers")
        async def healthz() -> dict[str, str]:
            return {"status": "ok"}

        @api.get("/readyz", summary="An engine is up; a ledger that cannot be written is told, and served without")
        async def readyz(request: Request) -> JSONResponse:
            state: dict[str, Any] = {
                "engines": {lane.name: lane.up for lane in self.lanes},
                "ledger": self.meter.writer.error or "ok",
                "energy": {name: device.quality for name, device in self.meter.devices.items()},
            }
            ready = any(lane.up for lane in self.lanes) and not self.draining
            shown = state if self.keys.is_admin(dict(request.headers.raw)) else {}
            return JSONResponse({"ready": ready, "draining": self.draining, **shown}, 200 if ready else 503)

        @api.get("/metrics", summary="For Prometheus")
        async def metrics(accept: Annotated[str, Header()] = "") -> Response:
            self._refresh_gauges()
            body, content_type = await asyncio.to_thread(encode, self.metrics.snapshot(), accept)
            return Response(body, media_type=content_type)

        @api.exception_handler(404)
        async def not_found(*_: object) -> Response:
            return Response(error_object(404, "no such path", "unknown_path"), 404, media_type="application/json")

        @api.exception_handler(405)
        async def not_taken(request: Request, error: Exception) -> Response:
            body = error_object(405, f"this path does not take {request.method}", "method_not_allowed")
            return Response(body, 405, getattr(error, "headers", None), "application/json")

        return api

    def _budget_gauges(self, now: float) -> dict[tuple[str, str], tuple[int, int]]:
        """Of a tenant's several keys the one with the least left."""
        found: dict[tuple[str, str], Standing] = {}
        for tenant, standing in self.spending.shown(now):
            key = (tenant, standing.period.value)
            found[key] = tightest([standing, found[key]]) if key in found else standing
        return {key: (standing.limit_uj, standing.spent_uj) for key, standing in found.items()}

    def _refresh_gauges(self) -> None:
        devices, now = self.meter.devices, clock.now()
        # A gate that was once seen stays visible at 0: a series that comes and goes tells nobody that nothing waits.
        self._gates_seen |= {(lane.name, name) for lane in self.lanes for name in lane.gate.workflows()}
        lanes = {lane.name: lane.gate for lane in self.lanes}
        gates = {(name, workflow): lanes[name] for name, workflow in self._gates_seen if name in lanes}
        whole = {(name, ALL): gate.limit for name, gate in lanes.items() if gate.limit is not None}
        self.metrics.gauges = Gauges(
            power_w={(n, devices[n].quality): w for n, w in self.meter.power_w.items() if n in devices},
            sample_age_s={name: max(0.0, now - reading.t) for name, reading in self.meter.last.items()},
            in_flight={key: gate.in_flight.get(key[1], 0) for key, gate in gates.items()},
            queued={key: gate.queued(key[1]) for key, gate in gates.items()},
            limit=whole | {key: gate.limits[key[1]] for key, gate in gates.items() if key[1] in gate.limits},
            nodes_held=self.nodes.held,
            engine_up={lane.name: lane.up for lane in self.lanes},
            breaker={lane.name: lane.breaker.state(now) for lane in self.lanes},
            budget_uj=self._budget_gauges(now),
            ledger_writable=self.meter.writer.error is None,
            ledger_backlog=len(self.meter.writer.waiting),
            ledger_waiting=self.meter.writer.requests,
            policy=policy_gauges(self.control, {key: gate.held(key[1]) for key, gate in gates.items()}),
            methods={
                lane.name: told
                for lane in self.lanes
                if (told := self.attribution.method(lane.works_for or lane.name, now))
            },
        )


def _recorder(path: Path, most_mb: float) -> Recorder:
    try:
        return Recorder(path, int(most_mb * 1e6))
    except OSError as error:
        raise ConfigError(f"energy.record: {path} cannot be written: {error.strerror or error}") from None


def _policy(config: Config) -> Policy:
    try:
        return load_policy(config.policy.name, config.policy.options())
    except ValueError as error:
        raise ConfigError(str(error)) from None


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


def _is_within(path: str, *places: str) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)
