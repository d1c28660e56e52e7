"""An emulated engine on cards that cost what a straight line says: no preset, no calibration."""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from emulator.core.machine import Machine
from emulator.core.settings import EngineSettings
from emulator.core.step import StepCost, StepWork
from emulator.host import Host, cards
from emulator.server.app import App, Served
from emulator.server.faults import Faults
from emulator.server.metrics import EngineMetrics
from emulator.server.shell import EngineShell
from emulator.server.slow import SlowDevice

MODEL = "llama-2-7b"


@dataclass
class LinearCard:
    """2 ms a step, 2 µs a prompt token; 100 W at work, 40 W at rest."""

    energy_j: float = 0.0
    seconds: float = 0.0
    idle_power_w: float = 40.0
    limits: Hashable = None

    def step(self, work: StepWork) -> StepCost:
        seconds = 0.002 + 2e-6 * work.prefill_tokens
        return StepCost(seconds, 100 * seconds, 1980, False)

    def spend(self, joules: float, seconds: float) -> None:
        self.energy_j += joules
        self.seconds += seconds

    def rest(self, seconds: float) -> None:
        self.spend(self.idle_power_w * seconds, seconds)


class Emulated:
    """An engine, its parts for a test to look at, and a client of its application."""

    def __init__(self, **options: Any) -> None:
        names = {"prompt_tokens_details", "seed"}
        served = {name: options.pop(name) for name in names & options.keys()}
        shell = {name: options.pop(name) for name in {"max_num_queued_reqs", "request_s"} & options.keys()}
        settings = EngineSettings(**{"kv_blocks": 4096, "max_model_len": 4096, **options})
        self.card = LinearCard()
        self.host: Host[LinearCard, Any] = Host(cards([self.card], "NVIDIA H200"))
        device = SlowDevice(self.card)
        self.machine = Machine(settings, [device])
        self.metrics = EngineMetrics(MODEL, settings.max_model_len, self.machine.scheduler, {"block_size": "16"})
        self.engine = EngineShell(self.machine, [device], self.metrics, **shell)
        self.host.engines.append(self.engine)
        self.deaths: list[None] = []
        self.faults = Faults(self.engine, self.host, lambda: self.deaths.append(None))
        self.app = App(Served([MODEL], MODEL, settings.max_model_len, 16, **served), self.engine, self.faults)
        transport = httpx.ASGITransport(self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://emulated", timeout=30)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def complete(self, prompt: Any = "once upon a time", max_tokens: int = 8, **more: Any) -> dict[str, Any]:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True} | more
        reply = await self.post("/v1/completions", **body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def chat(self, text: str = "hello there", **more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return await self.post("/v1/chat/completions", **{"model": MODEL, "messages": messages, **more})

    async def until(self, holds: Callable[[], Any]) -> None:
        """Until something holds, and at most ten seconds."""
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110 - it looks at counters, which set no event
                await asyncio.sleep(0.001)


@pytest.fixture
async def make_emulated() -> AsyncIterator[Callable[..., Emulated]]:
    """`make_emulated(max_num_seqs=4)`: an engine set up as `EngineSettings` says."""
    made: list[Emulated] = []

    def make(**options: Any) -> Emulated:
        made.append(Emulated(**options))
        return made[-1]

    yield make
    for each in made:
        each.engine.stop()
        await each.client.aclose()


@pytest.fixture
async def emulated(make_emulated: Callable[..., Emulated]) -> Emulated:
    return make_emulated()


@pytest.fixture
def frames_of() -> Callable[[str], list[Any]]:
    """The JSON of a stream's frames; it must end with [DONE]."""

    def read(text: str) -> list[Any]:
        import orjson

        lines = text.split("\n\n")
        assert lines[-1] == "" and lines[-2] == "data: [DONE]", text[-200:]
        assert all(line.startswith("data: ") for line in lines[:-1])
        return [orjson.loads(line[6:]) for line in lines[:-2]]

    return read
