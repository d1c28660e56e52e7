"""What is measured of one server: CPU, pace and latency in turns, memory in waves and over a long run."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from benchmarks.load import Chat, Load, gaps_s, keep_asking, quantile
from benchmarks.processes import Process
from benchmarks.targets import KEY, MODEL

SAMPLE_S = 0.2
WAVES = 3
NO_LIMIT_S = 3600.0

Turn = dict[str, float]  # figure -> value; units are in the names


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Counts are for one turn of one target; `limit_s` ends a phase that a slow one drags out."""

    name: str
    rounds: int
    lone_requests: int  # by one client
    requests: int  # by `clients`
    streams: int  # by `clients`, as fast as they come
    paced_tokens: int  # of each of `paced_streams`
    wave_streams: int
    wave_tokens: int
    wave_itl_ms: float
    soak_requests: int = 0
    soak_first: int = 20_000
    limit_s: float = 10.0
    clients: int = 32
    tokens: int = 64
    paced_streams: int = 64
    paced_itl_ms: float = 20.0
    drain_s: float = 3.0  # for a server to finish what it put off


QUICK = Plan("quick", 2, 200, 2_000, 320, 50, 1_000, 6, 500, limit_s=2.0, drain_s=2.0)
FULL = Plan("full", 5, 400, 4_000, 640, 150, 1_000, 10, 1_000)


class NoAnswer(RuntimeError):
    """A server answered nothing of what it was asked; the message says what came instead."""


async def warm(process: Process, plan: Plan) -> None:
    """Let connections, caches and allocators find their size. Failures are for the measurements to find."""
    for streamed in (False, True):
        chat = Chat(MODEL, KEY, streamed, plan.tokens)
        await keep_asking(process.port, chat, plan.clients, max(plan.requests // 10, plan.clients), plan.limit_s / 4)
    await asyncio.sleep(plan.drain_s)


async def idle_cpu_us(process: Process, plan: Plan) -> float:
    """Microseconds of CPU that a server takes for nothing in the time of a drain."""
    before = process.cpu_ns()
    await asyncio.sleep(plan.drain_s)
    return (process.cpu_ns() - before) / 1e3


async def turn(process: Process, idle_us: float, plan: Plan, tick: Callable[[], None]) -> Turn:
    """One turn of one server; `tick` is called after each of the four phases. Raises NoAnswer."""

    async def load(chat: Chat, clients: int, requests: int, limit_s: float) -> tuple[Load, float]:
        """Some load, and the CPU that it cost the server in µs, what was put off until after the answers included."""
        before = process.cpu_ns()
        brought = await keep_asking(process.port, chat, clients, requests, limit_s)
        await asyncio.sleep(plan.drain_s)
        cpu_us = (process.cpu_ns() - before) / 1e3 - idle_us
        if not brought.replies:
            raise NoAnswer(brought.failures[0] if brought.failures else "nothing was asked")
        tick()
        return brought, cpu_us

    whole, stream = Chat(MODEL, KEY, False, plan.tokens), Chat(MODEL, KEY, True, plan.tokens)
    slow = Chat(MODEL, KEY, True, plan.paced_tokens, plan.paced_itl_ms)
    lone, _ = await load(whole, 1, plan.lone_requests, plan.limit_s)
    many, many_cpu_us = await load(whole, plan.clients, plan.requests, plan.limit_s)
    fast, fast_cpu_us = await load(stream, plan.clients, plan.streams, plan.limit_s)
    paced, paced_cpu_us = await load(slow, plan.paced_streams, plan.paced_streams, NO_LIMIT_S)
    lone_ms, many_ms = ([reply.latency_s * 1e3 for reply in found.replies] for found in (lone, many))
    gaps_ms = [gap * 1e3 for gap in gaps_s(paced.replies, plan.paced_tokens)]
    return {
        "cpu_us_request": many_cpu_us / len(many.replies),
        "cpu_us_chunk": fast_cpu_us / fast.frames,
        "cpu_us_paced_chunk": paced_cpu_us / paced.frames,
        "requests_s": len(many.replies) / many.wall_s,
        "chunks_s": fast.frames / fast.wall_s,
        "latency_p50_ms": quantile(lone_ms, 0.5),
        "latency_p99_ms": quantile(lone_ms, 0.99),
        "busy_latency_p50_ms": quantile(many_ms, 0.5),
        "busy_latency_p99_ms": quantile(many_ms, 0.99),
        "itl_p50_ms": quantile(gaps_ms, 0.5),
        "itl_p99_ms": quantile(gaps_ms, 0.99),
        "rss_mib": process.rss_bytes() / 2**20,
        "failures": float(sum(len(found.failures) for found in (lone, many, fast, paced))),
    }


@dataclass(frozen=True, slots=True)
class Waves:
    """Many slow streams at once, three times over. `peak_mib` is the highest RSS of each wave."""

    streams: int
    before_mib: float
    peak_mib: list[float]
    failures: list[str]

    @property
    def kb_a_stream(self) -> float:
        """RSS that each stream added, in kB (1000 bytes), in the wave that took most."""
        return (max(self.peak_mib) - self.before_mib) * 2**20 / 1e3 / self.streams

    @property
    def third_to_first(self) -> float:
        return self.peak_mib[-1] / self.peak_mib[0]


async def waves(process: Process, plan: Plan, tick: Callable[[], None]) -> Waves:
    """Measure memory in waves; for a server that has just been started, lest what it kept from before hide anything."""
    await warm(process, plan)
    before_mib = process.rss_bytes() / 2**20
    peaks: list[float] = []
    failures: list[str] = []
    for _ in range(WAVES):
        chat = Chat(MODEL, KEY, True, plan.wave_tokens, plan.wave_itl_ms)
        wave = asyncio.create_task(keep_asking(process.port, chat, plan.wave_streams, plan.wave_streams, NO_LIMIT_S))
        peak = 0
        while not wave.done():
            peak = max(peak, process.rss_bytes())
            await asyncio.wait({wave}, timeout=SAMPLE_S)
        peaks.append(peak / 2**20)
        failures += wave.result().failures
        tick()
        await asyncio.sleep(plan.drain_s)
    return Waves(plan.wave_streams, before_mib, peaks, failures)


@dataclass(frozen=True, slots=True)
class Soak:
    """A long run of requests. `rss_mib` is read after every `every` requests."""

    requests: int
    every: int
    rss_mib: list[float]
    failures: list[str]
    wall_s: float

    @property
    def growth(self) -> float:
        """RSS at the end over RSS after the first stretch."""
        return self.rss_mib[-1] / self.rss_mib[0]


async def soak(process: Process, plan: Plan, tick: Callable[[], None]) -> Soak:
    """Ask `soak_requests` times, and see what that leaves in memory."""
    rss_mib: list[float] = []

    def after(answered: int) -> None:
        if answered % plan.soak_first == 0:
            rss_mib.append(process.rss_bytes() / 2**20)
            tick()

    chat = Chat(MODEL, KEY, False, plan.tokens)
    began = perf_counter()
    load = await keep_asking(process.port, chat, plan.clients, plan.soak_requests, NO_LIMIT_S, after)
    return Soak(len(load.replies), plan.soak_first, rss_mib, load.failures, perf_counter() - began)
