"""Assembles the gateway: the one place where its parts meet."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Annotated, Any

import aiohttp
from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse

from policies.interface import Policy
from policies.load import load_policy
from proxy import clock, health
from proxy.api import energy as energy_api
from proxy.bounds import head_bytes
from proxy.config import Config, ConfigError, EngineTls
from proxy.control.actuator import PowerActuator
from proxy.control.knobs import PowerKnob, open_knobs
from proxy.control.loop import Control
from proxy.control.restore import restore_leftover
from proxy.energy.attribution import Attribution
from proxy.energy.ledger import Ledger
from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.meter import Meter
from proxy.energy.prior import prior
from proxy.energy.receipts import Book
from proxy.energy.sources import Device, open_sources
from proxy.engines.interface import Engine, load_engine
from proxy.forward import Forward, Receive, Scope, Send
from proxy.gate import Gate
from proxy.keys import Keys
from proxy.live import LiveGateway
from proxy.refusal import Refusal, error_object
from proxy.route import Lane, Router
from proxy.telemetry.bounds import LabelBounds
from proxy.telemetry.metrics import Gauges, Metrics
from proxy.tls import engine_context

EVERYBODYS = ("/healthz", "/readyz")
TENANTS = ("/energy/workflows", "/energy/runs", "/energy/requests")  # each shows a tenant its own figures alone

log = logging.getLogger("joulegate")


class Gateway:
    """A whole gateway, as an ASGI application: `start`, serve, `stop`. Raises ConfigError for what cannot be used.

    `said` holds, after `start`, one line for each thing a person should know: what is measured, with which quality.
    """

    def __init__(self, config: Config, version: str) -> None:
        self.config = config
        self.policy = _policy(config)
        self.engines = [load_engine(engine) for engine in config.engines]
        self.keys = Keys(config.keys, config.admin)
        self.said: list[str] = []
        known = {name: workflow.steps for name, workflow in config.workflows.items()}
        models = [model for engine in config.engines for model in engine.models]
        bounds = LabelBounds(config.limits.workflows, config.limits.steps, known=known, known_models=models)
        self.metrics = Metrics(version, bounds)
        self.attribution = Attribution(config.energy.settle)
        self.book = Book(bounds.workflow, bounds.step)
        self.lanes: list[Lane] = []
        self._opened = AsyncExitStack()
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
        ledger = await asyncio.to_thread(Ledger, config.ledger.path)
        here = any(engine.local for engine in self.engines)
        sources, self.said = await asyncio.to_thread(open_sources, config.known_hosts(), here)
        self.meter = Meter(sources, self.attribution, self.book, ledger, self.metrics, config.energy.interval)
        self._opened.push_async_callback(self.meter.close)
        for engine in self.engines:
            self._opened.push_async_callback(engine.stop)
            await engine.start()
        for engine, given in zip(self.engines, config.engines, strict=True):
            engine.devices = engine.devices or self._default_devices(engine)
            session = await self._opened.enter_async_context(_session(given.tls, engine.name))
            self.lanes.append(Lane(engine, session, Gate(config.limits.queue, config.limits.in_flight)))
            self.attribution.add_engine(engine.name, engine.devices, prior(self._device_model(engine), ""))
        self._say_unmetered()
        if self.keys.nobody_is_admin:
            self.said.append("no admin key: /metrics, /docs and the machine's totals are closed to everybody")
        router = Router(self.lanes, {engine.name: engine.models for engine in config.engines})
        self.forward = Forward(config, router, self.keys, self.book, self.attribution, self.metrics)
        self.api = self._api(LedgerReader(config.ledger.path))
        await self.meter.read()
        control = await self._control()
        await control.step()
        loops = [self.meter.read_forever(), self.meter.commit_forever(), control.run_forever()]
        loops += [health.watch(lane, self.attribution, self._reprice) for lane in self.lanes]
        tasks = [asyncio.create_task(loop) for loop in loops]
        self._opened.push_async_callback(_end, tasks)

    async def stop(self) -> None:
        """Close the books and put everything back as it was found: the last opened first, the ledger last."""
        await self._opened.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if head_bytes(scope) > self.config.limits.header_bytes:
                most = self.config.limits.header_bytes
                raise Refusal(431, f"the headers are larger than {most} bytes", "headers_too_large")
            forwarded = self.forward.takes(scope["path"])
            if not forwarded and not _is_within(scope["path"], *EVERYBODYS, *TENANTS):
                self.keys.require_admin(dict(scope["headers"]))
        except Refusal as refusal:
            await Response(refusal.body(), refusal.status, media_type="application/json")(scope, receive, send)
            return
        await (self.forward if forwarded else self.api)(scope, receive, send)

    # Energy ---------------------------------------------------------------------------------------------------------

    def _default_devices(self, engine: Engine) -> tuple[str, ...]:
        """An engine on this machine, given no devices, has all that this machine counts."""
        if not engine.local:
            return ()
        local = [name for name, host in self.config.known_hosts().items() if host.local]
        return tuple(name for name in self.meter.devices if name.partition("/")[0] in local)

    def _say_unmetered(self) -> None:
        known = self.meter.devices
        for engine in self.engines:
            for device in engine.devices:
                if device not in known:
                    self.said.append(f"engine {engine.name}: device {device} has no counter; known: {', '.join(known)}")
            if not engine.devices:
                self.said.append(f"engine {engine.name}: its energy is not known; name its devices under a host")

    def _device_model(self, engine: Engine) -> str:
        """The name of the engine's accelerator, for its prior; the host's processor where it has none."""
        devices: list[Device] = [d for d in self.meter.devices.values() if d.name in engine.devices]
        devices.sort(key=lambda device: ("gpu", "soc", "cpu", "dram").index(device.component))
        return devices[0].model if devices else ""

    def _reprice(self, lane: Lane) -> None:
        model = next(iter(lane.models), "")
        self.attribution.price(lane.name, prior(self._device_model(lane.engine), model))

    # Control --------------------------------------------------------------------------------------------------------

    async def _control(self) -> Control:
        """The policy's loop; first, whatever an earlier gateway left behind is set back."""
        knobs: Mapping[str, PowerKnob] = await asyncio.to_thread(open_knobs, self.config.known_hosts())
        self.said += await asyncio.to_thread(restore_leftover, knobs)
        actuator = PowerActuator(knobs)
        self._opened.push_async_callback(asyncio.to_thread, actuator.restore)
        return Control(self.policy, self.lanes, self.forward, self.meter, actuator, self.config.limits.in_flight)

    # The API --------------------------------------------------------------------------------------------------------

    def _api(self, reader: LedgerReader) -> FastAPI:
        api = FastAPI(title="Joulegate", version=self._version, docs_url="/docs", redoc_url=None)
        live = LiveGateway(self.meter, self.attribution, self.book, self.keys, self.lanes)
        api.include_router(energy_api.router(reader, live))

        @api.get("/healthz", summary="The process answers")
        async def healthz() -> dict[str, str]:
            return {"status": "ok"}

        @api.get("/readyz", summary="An engine is up and the ledger can be written")
        async def readyz(request: Request) -> JSONResponse:
            state: dict[str, Any] = {
                "engines": {lane.name: lane.up for lane in self.lanes},
                "ledger": self.meter.ledger_error or "ok",
                "energy": {name: device.quality for name, device in self.meter.devices.items()},
            }
            ready = any(lane.up for lane in self.lanes) and self.meter.ledger_error is None
            shown = state if self.keys.is_admin(dict(request.headers.raw)) else {}
            return JSONResponse({"ready": ready, **shown}, 200 if ready else 503)

        @api.get("/metrics", summary="For Prometheus")
        async def metrics(accept: Annotated[str, Header()] = "") -> Response:
            self._refresh_gauges()
            body, content_type = self.metrics.render(accept)
            return Response(body, media_type=content_type)

        @api.exception_handler(404)
        async def not_found(*_: object) -> Response:
            return Response(error_object(404, "no such path", "unknown_path"), 404, media_type="application/json")

        @api.exception_handler(405)
        async def not_taken(request: Request, _: object) -> Response:
            body = error_object(405, f"this path does not take {request.method}", "method_not_allowed")
            return Response(body, 405, media_type="application/json")

        return api

    def _refresh_gauges(self) -> None:
        devices, now = self.meter.devices, clock.now()
        gates = {(lane.name, workflow): lane.gate for lane in self.lanes for workflow in lane.gate.workflows()}
        self.metrics.gauges = Gauges(
            power_w={(n, devices[n].quality): w for n, w in self.meter.power_w.items() if n in devices},
            sample_age_s={name: max(0.0, now - reading.t) for name, reading in self.meter.last.items()},
            in_flight={key: gate.in_flight.get(key[1], 0) for key, gate in gates.items()},
            queued={key: gate.queued(key[1]) for key, gate in gates.items()},
            limit={key: gate.limits[key[1]] for key, gate in gates.items() if key[1] in gate.limits},
            engine_up={lane.name: lane.up for lane in self.lanes},
            ledger_backlog=self.meter.backlog,
        )


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


def _session(tls: EngineTls | None, engine: str) -> aiohttp.ClientSession:
    """Connections to one engine: as many as there are requests, kept for the next ones.

    They are let go before engines do it: uvicorn and llama.cpp close a connection that was idle for 5 s.
    """
    context = engine_context(tls, engine) if tls else True
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3, ttl_dns_cache=60, ssl=context)
    return aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
