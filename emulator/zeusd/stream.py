"""Power as a stream of server-sent events: one for a device whenever its power has changed."""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from emulator.zeusd.driver import Driver, NvmlError

GPU_EVERY_S, CPU_EVERY_S = 1 / 20, 1 / 10  # the daemon's defaults
Samples = Callable[[float], list[dict[str, Any]]]


def gpu_samples(driver: Driver, gpus: Sequence[int]) -> Samples:
    """The powers that changed since the last call; a GPU that cannot be read is left out."""
    last_mw: dict[int, int] = {}

    def sample(at: float) -> list[dict[str, Any]]:
        changed = []
        for gpu in gpus:
            try:
                power_mw = driver.power_mw(gpu, at)
            except NvmlError:
                continue
            if power_mw is not None and last_mw.get(gpu) != power_mw:
                last_mw[gpu] = power_mw
                changed.append({"gpu_id": gpu, "power_mw": power_mw})
        return changed

    return sample


def cpu_samples(driver: Driver, cpus: Sequence[int]) -> Samples:
    """The powers that changed since the last call, out of the energy counters; the first call has none yet."""
    last: dict[int, tuple[float, int, int]] = {}
    shown: dict[int, dict[str, Any]] = {}

    def sample(at: float) -> list[dict[str, Any]]:
        changed = []
        for cpu in cpus:
            now = (at, *driver.rapl_uj(cpu))
            if (before := last.get(cpu)) is not None:
                power = {"cpu_id": cpu} | power_between(before, now)
                if shown.get(cpu) != power:
                    shown[cpu] = power
                    changed.append(power)
            last[cpu] = now
        return changed

    return sample


def power_between(before: tuple[float, int, int], now: tuple[float, int, int]) -> dict[str, int]:
    """Milliwatts of a CPU package and its memory between two readings: seconds, and microjoules of the two."""
    elapsed_s = max(now[0] - before[0], 1e-6)
    cpu_mw, dram_mw = (max(0, int((b - a) / 1000 / elapsed_s)) for a, b in zip(before[1:], now[1:], strict=True))
    return {"cpu_mw": cpu_mw, "dram_mw": dram_mw}


class PowerStream:
    """The response. Every stream polls for itself, so that it begins with a reading; the daemon's share a poller."""

    def __init__(self, samples: Samples, every_s: float, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._samples, self._every_s, self._clock, self._wall = samples, every_s, clock, wall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.create_task(_gone(receive))  # a stream of steady power would never notice it by sending
        try:
            while not gone.done():
                body = _events(self._samples(self._clock()), round(self._wall() * 1000))
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.wait({gone}, timeout=self._every_s)
        finally:
            gone.cancel()


def _events(samples: Iterable[dict[str, Any]], timestamp_ms: int) -> bytes:
    lines = [json.dumps({"timestamp_ms": timestamp_ms} | sample, separators=(",", ":")) for sample in samples]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
