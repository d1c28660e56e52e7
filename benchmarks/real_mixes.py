"""Four classes of work on a real GPU, each alone and mixed, recorded by the gateway (`energy.record`) for attribution.

    python benchmarks/real_mixes.py http://127.0.0.1:8000 MODEL OUT_DIR

A running vLLM, the gateway before it in `observe`. Prompts are token ids of exact lengths. Writes `trace.jsonl.gz`, in
which every line is marked with its scenario, and `mixes.json`: what NVML's counter moved in each, as read here. No
setting of the GPU is touched. `python -m benchmarks.rehearsal OUT_DIR` does the same on an emulated GPU.
"""

import asyncio
import gzip
import json
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pynvml
import yaml

PORT = 8899
HEAD = [random.Random(5).randrange(100, 30000) for _ in range(3000)]
ROLES = {name: [random.Random(seed).randrange(100, 30000) for _ in range(250)] for seed, name in enumerate("aerf")}
GAP_S = 2.0  # of rest between two scenarios
# Users of each class. First each alone, one at a time and in company, then mixes.
SCENARIOS: dict[str, tuple[float, dict[str, int]]] = {
    "search-1": (10, {"search": 1}),
    "summarize-1": (10, {"summarize": 1}),
    "coding-1": (10, {"coding": 1}),
    "long-1": (8, {"long": 1}),
    "search-8": (14, {"search": 8}),
    "summarize-6": (14, {"summarize": 6}),
    "coding-3": (14, {"coding": 3}),
    "long-3": (10, {"long": 3}),
    "search+summarize": (16, {"search": 6, "summarize": 4}),
    "search+coding": (16, {"search": 6, "coding": 2}),
    "search+long": (16, {"search": 8, "long": 2}),
    "summarize+coding": (16, {"summarize": 4, "coding": 2}),
    "coding+long": (16, {"coding": 3, "long": 1}),
    "all": (20, {"search": 4, "summarize": 3, "coding": 2, "long": 1}),
}


class Load:
    """Closed-loop users who send through the gateway until `until` (seconds of `time.monotonic`)."""

    def __init__(self, session: aiohttp.ClientSession, model: str) -> None:
        self.session, self.model, self.until = session, model, 0.0
        self.rng = random.Random(3)

    def ids(self, count: int) -> list[int]:
        return [self.rng.randrange(100, 30000) for _ in range(count)]

    async def ask(self, cls: str, run: str, prompt: list[int], tokens: int) -> None:
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        headers = {"x-workflow-id": run, "x-workflow-name": cls}
        url = f"http://127.0.0.1:{PORT}/v1/completions"
        async with self.session.post(url, json=body, headers=headers) as reply:
            data = await reply.read()
            if reply.status != 200 or b"[DONE]" not in data:
                raise RuntimeError(f"{reply.status}: {data[-300:]!r}")

    async def search(self, run: str) -> None:
        for _ in range(2):
            await self.ask("search", run, HEAD + self.ids(40), 150)

    async def summarize(self, run: str) -> None:
        summary: list[int] = []
        for _ in range(3):
            await self.ask("summarize", run, self.ids(1000) + summary, 50)
            summary = self.ids(50)

    async def coding(self, run: str) -> None:
        spec = self.ids(200)
        await self.ask("coding", run, ROLES["a"] + self.ids(60), 200)
        for role, more, tokens in (("e", 0, 300), ("r", 300, 100), ("f", 400, 150)):
            prompts = [ROLES[role] + spec + self.ids(more) for _ in range(3)]
            await asyncio.gather(*(self.ask("coding", run, prompt, tokens) for prompt in prompts))

    async def long(self, run: str) -> None:
        await self.ask("long", run, self.ids(3500), 16)

    async def user(self, work: Callable[[str], Awaitable[None]]) -> None:
        while time.monotonic() < self.until:
            await work(uuid.uuid4().hex)

    async def scenario(self, seconds: float, users: dict[str, int]) -> None:
        self.until = time.monotonic() + seconds
        await asyncio.gather(*(self.user(getattr(self, cls)) for cls, count in users.items() for _ in range(count)))


@dataclass(frozen=True)
class Site:
    """The GPU under the engine: its name, the host and device by which the gateway knows it, and its counter."""

    gpu: str
    host: dict[str, Any]
    device: str
    counter_j: Callable[[], float]


def here() -> Site:
    """The first GPU of this machine."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def counter_j() -> float:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000

    return Site(pynvml.nvmlDeviceGetName(handle), {"local": True}, "local/gpu:0", counter_j)


async def measure(engine: str, model: str, site: Site, out: Path, part: float = 1.0) -> None:
    """Go through all scenarios, each for a `part` of its time."""
    out.mkdir(parents=True, exist_ok=True)
    trace = out / "gateway.jsonl"
    config = {
        "listen": {"host": "127.0.0.1", "port": PORT},
        "hosts": {site.device.partition("/")[0]: site.host},
        "engines": [{"name": "vllm", "kind": "vllm", "url": engine, "devices": [site.device], "models": [model]}],
        "ledger": {"path": str(out / "ledger.sqlite")},
        "energy": {"record": str(trace)},
    }
    (out / "joulegate.yaml").write_text(yaml.safe_dump(config))
    serve = ["-m", "joulegate", "serve", "-c", str(out / "joulegate.yaml")]
    gateway = await asyncio.create_subprocess_exec(sys.executable, *serve)
    spans: dict[str, dict[str, Any]] = {}
    balance: Any = None
    try:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            await _ready(session)
            load = Load(session, model)
            await load.scenario(
                2, {"search": 4, "summarize": 2, "coding": 1, "long": 1}
            )  # the shared head is cached now
            for name, (seconds, users) in SCENARIOS.items():
                await asyncio.sleep(GAP_S)
                began, before = time.time(), site.counter_j()
                await load.scenario(seconds * part, users)
                ended = time.time()
                await asyncio.sleep(0.3)
                spans[name] = {"t0": began, "t1": ended, "users": users, "nvml_j": round(site.counter_j() - before, 3)}
                print(name, spans[name], flush=True)
            await asyncio.sleep(8)
            async with session.get(f"http://127.0.0.1:{PORT}/energy/balance") as reply:
                balance = await reply.json()
            async with session.get(f"http://127.0.0.1:{PORT}/energy/engines") as reply:
                engines = await reply.json()
    finally:
        gateway.terminate()
        await asyncio.wait_for(gateway.wait(), 60)
    seen = {"model": model, "gpu": site.gpu, "spans": spans}
    (out / "mixes.json").write_text(json.dumps(seen | {"balance": balance, "engines": engines}, indent=1))
    mark(trace, spans, out / "trace.jsonl.gz")


def mark(trace: Path, spans: dict[str, dict[str, Any]], marked: Path) -> None:
    """Give each line the scenario in whose time, and half of the rest around it, it falls; others are left out.

    A line without a time says something of all of them.
    """
    with trace.open() as lines, gzip.open(marked, "wt") as out:
        for text in lines:
            line = json.loads(text)
            t = line.get("t", line.get("t0"))
            for name, span in spans.items():
                if t is None or span["t0"] - GAP_S / 2 <= t < span["t1"] + GAP_S / 2:
                    out.write(json.dumps({"scenario": name, **line}) + "\n")


async def _ready(session: aiohttp.ClientSession) -> None:
    for _ in range(300):
        try:
            async with session.get(f"http://127.0.0.1:{PORT}/readyz") as reply:
                if reply.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.2)
    raise RuntimeError("the gateway is not ready")


if __name__ == "__main__":
    asyncio.run(measure(sys.argv[1], sys.argv[2], here(), Path(sys.argv[3])))
