"""The daemon's HTTP calls (zeusd 0.5.0, `zeusd/src/routes` of ml-energy/zeus), as an ASGI application.

Arguments are in the query, also of a POST. One call is for several devices; if it fails for one, that is its answer.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from emulator.host import Host
from emulator.zeusd.access import Access, error
from emulator.zeusd.driver import Driver, NvmlError
from emulator.zeusd.query import BadIndex, BadQuery, indices, parsed, to_read, to_stream
from emulator.zeusd.stream import CPU_EVERY_S, GPU_EVERY_S, PowerStream, cpu_samples, gpu_samples, power_between
from emulator.zeusd.token import ApiGroup, Claims

logger = logging.getLogger(__name__)

Answer = Response | PowerStream
Handler = Callable[[Request], Awaitable[Answer]]
T = TypeVar("T")
_GPU_IDS, _CPU_IDS = {"gpu_ids": str}, {"cpu_ids": str}


class Zeusd:
    """The daemon of one host. `clock` must never go back; `wall` gives Unix seconds."""

    def __init__(
        self,
        host: Host[Any, Any],
        *,
        groups: Sequence[ApiGroup] = tuple(ApiGroup),
        key: bytes | None = None,
        counter_period_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._driver = driver = Driver(host, counter_period_s)
        self._access = Access(groups, key)
        self._period_s, self._clock, self._wall = counter_period_s, clock, wall
        mhz = {"min_clock_mhz": int, "max_clock_mhz": int}
        writes: dict[str, tuple[Mapping[str, type], Callable[..., None]]] = {
            "set_persistence_mode": ({"enabled": bool}, driver.set_persistent),
            "set_power_limit": ({"power_limit_mw": int}, driver.set_limit_mw),
            "set_gpu_locked_clocks": (mhz, driver.lock_sm_mhz),
            "reset_gpu_locked_clocks": ({}, driver.unlock_sm),
            "set_mem_locked_clocks": (mhz, driver.lock_memory_mhz),
            "reset_mem_locked_clocks": ({}, driver.unlock_memory),
            "reset_locked_clocks": ({}, driver.unlock),
        }
        reads: dict[str, Callable[[int], Mapping[str, Any]]] = {
            "get_cumulative_energy": self._energy,
            "get_power_limit": lambda gpu: {"power_limit_mw": driver.limit_mw(gpu)},
            "get_power_limit_constraints": self._constraints,
            "get_persistence_mode": lambda gpu: {"enabled": driver.persistent(gpu)},
        }
        self._handlers: dict[tuple[str, str], Handler] = {
            ("GET", "/discover"): self._discover,
            ("GET", "/time"): self._time,
            ("GET", "/auth/whoami"): self._whoami,
            ("GET", "/gpu/get_power"): self._gpu_power,
            ("GET", "/gpu/stream_power"): self._stream_gpus,
            ("GET", "/cpu/get_cumulative_energy"): self._cpu_energy,
            ("GET", "/cpu/get_power"): self._cpu_power,
            ("GET", "/cpu/stream_power"): self._stream_cpus,
        }
        for name, (fields, act) in writes.items():
            self._handlers["POST", f"/gpu/{name}"] = partial(self._write, name, fields, act)
        for name, ask in reads.items():
            self._handlers["GET", f"/gpu/{name}"] = partial(self._read, ask)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"zeusd speaks HTTP alone, not {scope['type']}: serve it with lifespan and ws off")
        await (await self._answer(Request(scope)))(scope, receive, send)

    async def _answer(self, request: Request) -> Answer:
        known = self._access.check(request, self._wall())
        if isinstance(known, JSONResponse):
            return known
        request.state.claims = known
        handler = self._handlers.get((request.method, request.url.path))
        if handler is None:
            return Response(status_code=404)
        try:
            return await handler(request)
        except BadQuery as bad:
            return PlainTextResponse(str(bad), 400)
        except BadIndex as bad:
            return error(400, str(bad))

    # Every daemon ---------------------------------------------------------------------------------------------------

    async def _discover(self, request: Request) -> Answer:
        groups, driver = self._access.groups, self._driver
        gpus = driver.gpu_names if {ApiGroup.GPU_CONTROL, ApiGroup.GPU_READ} & set(groups) else []
        found = {
            "gpus": [
                {"id": n, "name": name, "pci_address": f"0000:{n + 1:02x}:00.0", "cumulative_energy_available": True}
                for n, name in enumerate(gpus)
            ],
            "cpus": [{"id": n, "dram_available": True} for n in driver.cpus if ApiGroup.CPU_READ in groups],
            "enabled_api_groups": list(groups),
            "auth_required": self._access.key is not None,
        }
        return JSONResponse(found)

    async def _time(self, request: Request) -> Answer:
        return JSONResponse({"timestamp_ms": self._now_ms()})

    async def _whoami(self, request: Request) -> Answer:
        claims: Claims = request.state.claims  # without tokens this path is refused before
        expires = {} if claims.exp is None else {"exp": claims.exp}
        return JSONResponse({"sub": claims.sub, "scopes": claims.scopes, **expires})

    # GPUs -----------------------------------------------------------------------------------------------------------

    async def _write(self, name: str, fields: Mapping[str, type], act: Callable[..., None], request: Request) -> Answer:
        given = parsed(request.url.query, {"gpu_ids": str, **fields, "block": bool})
        gpus = indices(given["gpu_ids"], "GPU")
        for gpu in gpus:
            if gpu not in self._driver.gpus:
                return PlainTextResponse(f"GPU index {gpu} does not exist.", 400)
        values = [given[field] for field in fields]
        _, errors = _tried({gpu: partial(act, gpu, *values) for gpu in gpus})
        for gpu, problem in errors.items():
            logger.warning("GPU %d: %s: %s", gpu, name, problem)
        return _failed(errors) if errors and given["block"] else Response()

    async def _read(self, ask: Callable[[int], Mapping[str, Any]], request: Request) -> Answer:
        gpus = to_read(parsed(request.url.query, _GPU_IDS, "gpu_ids"), "GPU", self._driver.gpus)
        readings, errors = _tried({gpu: partial(ask, gpu) for gpu in gpus})
        return _failed(errors) if errors else JSONResponse(readings)

    async def _gpu_power(self, request: Request) -> Answer:
        gpus = to_read(parsed(request.url.query, _GPU_IDS, "gpu_ids"), "GPU", self._driver.gpus)
        power_mw, errors = self._gpu_powers(gpus)
        if None in power_mw.values():  # nobody has looked for a second: the sensor needs two looks
            await asyncio.sleep(self._period_s)
            power_mw, errors = self._gpu_powers(gpus)
        return _failed(errors) if errors else JSONResponse({"timestamp_ms": self._now_ms(), "power_mw": power_mw})

    def _gpu_powers(self, gpus: Sequence[int]) -> tuple[dict[int, int | None], dict[int, NvmlError]]:
        at = self._clock()
        return _tried({gpu: partial(self._driver.power_mw, gpu, at) for gpu in gpus})

    async def _stream_gpus(self, request: Request) -> Answer:
        gpus = to_stream(parsed(request.url.query, _GPU_IDS, "gpu_ids"), "GPU", self._driver.gpus)
        return PowerStream(gpu_samples(self._driver, gpus), GPU_EVERY_S, self._clock, self._wall)

    def _energy(self, gpu: int) -> dict[str, int]:
        return {"energy_mj": self._driver.energy_mj(gpu, self._clock())}

    def _constraints(self, gpu: int) -> dict[str, int]:
        low_mw, high_mw = self._driver.limit_range_mw(gpu)
        return {"min_power_limit_mw": low_mw, "max_power_limit_mw": high_mw}

    # CPUs -----------------------------------------------------------------------------------------------------------

    async def _cpu_energy(self, request: Request) -> Answer:
        given = parsed(request.url.query, {**_CPU_IDS, "cpu": bool, "dram": bool}, "cpu_ids")
        energies_uj = {cpu: self._driver.rapl_uj(cpu) for cpu in to_read(given, "CPU", self._driver.cpus)}
        return JSONResponse(
            {
                cpu: {
                    "cpu_energy_uj": package_uj if given["cpu"] else None,
                    "dram_energy_uj": dram_uj if given["dram"] else None,
                }
                for cpu, (package_uj, dram_uj) in energies_uj.items()
            }
        )

    async def _cpu_power(self, request: Request) -> Answer:
        cpus = to_read(parsed(request.url.query, _CPU_IDS, "cpu_ids"), "CPU", self._driver.cpus)
        before = {cpu: (self._clock(), *self._driver.rapl_uj(cpu)) for cpu in cpus}
        await asyncio.sleep(CPU_EVERY_S)
        power_mw = {cpu: power_between(before[cpu], (self._clock(), *self._driver.rapl_uj(cpu))) for cpu in cpus}
        return JSONResponse({"timestamp_ms": self._now_ms(), "power_mw": power_mw})

    async def _stream_cpus(self, request: Request) -> Answer:
        cpus = to_stream(parsed(request.url.query, _CPU_IDS, "cpu_ids"), "CPU", self._driver.cpus)
        return PowerStream(cpu_samples(self._driver, cpus), CPU_EVERY_S, self._clock, self._wall)

    def _now_ms(self) -> int:
        return round(self._wall() * 1000)


def _tried(calls: Mapping[int, Callable[[], T]]) -> tuple[dict[int, T], dict[int, NvmlError]]:
    """What the calls gave, and what went wrong with the others."""
    results: dict[int, T] = {}
    errors: dict[int, NvmlError] = {}
    for index, call in calls.items():
        try:
            results[index] = call()
        except NvmlError as problem:
            errors[index] = problem
    return results, errors


def _failed(errors: Mapping[int, NvmlError]) -> JSONResponse:
    """One answer for what went wrong with some devices, of the highest status among them."""
    messages = {index: str(problem) for index, problem in errors.items()}
    return JSONResponse({"errors": messages}, max(problem.status for problem in errors.values()))
