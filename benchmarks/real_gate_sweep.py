"""The paper's RQ2 on a real engine, with the gateway's gate as the knob: fixed work, and fewer or more of it in flight.

    python benchmarks/real_gate_sweep.py http://127.0.0.1:8000 MODEL OUT_DIR [--repeats 0,1,2] [--gates 16,8,4,2,1]

A running vLLM on GPU 0 and the gateway before it, which observes: no setting of the GPU is touched. Each cell is the
same work (16 search sessions of 2 requests, 16 chains of 3 summaries, 4 coding runs of 10 requests in four stages, or
8 + 8 of the first two) sent at once, with `limits.in_flight` at the gate's width. Cells come in an order drawn anew for
each repeat. Every cell is a line in `gate_sweep.jsonl`: NVML's joules from edge to edge, and when each run began and
ended; the gateway's own joules of each run are in its ledger, by the run's id (`CELL/NUMBER`).
Rehearse it on an emulated host: `joulegate emulate --gpu h200 --model llama-2-7b`, and `--zeusd 127.0.0.1:4938`.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from real_policies import PORT, configuration, gateway, nvml_counter, zeusd_counter

WORK = {
    "search": {"search": 16},
    "summarize": {"summarize": 16},
    "coding": {"coding": 4},
    "composite": {"search": 8, "summarize": 8},
}
TAKEN_S = 1.5  # the gateway moves its gates once a second
EDGE_S = 0.3  # a counter that has not moved for so long stands still


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(100, 30000) for _ in range(count)]


HEAD = tokens(random.Random(5), 3000)
ROLES = {role: tokens(random.Random(role), 250) for role in ("architect", "engineer", "reviewer", "reviser")}


@dataclass
class Cell:
    """The work of one cell. Prompts that are meant to be new are new in every cell."""

    session: aiohttp.ClientSession
    model: str
    name: str
    rng: random.Random
    output: int = 0
    prompt: int = 0
    cached: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)

    async def ask(self, run: str, workflow: str, step: str, prompt: list[int], output: int) -> None:
        body = {"model": self.model, "prompt": prompt, "max_tokens": output, "ignore_eos": True}
        headers = {"x-workflow-id": run, "x-workflow-name": workflow, "x-workflow-step": step}
        async with self.session.post(f"http://127.0.0.1:{PORT}/v1/completions", json=body, headers=headers) as reply:
            answer = await reply.json()
            if reply.status != 200:
                raise RuntimeError(f"{reply.status}: {answer}")
        usage = answer["usage"]
        self.output += usage["completion_tokens"]
        self.prompt += usage["prompt_tokens"]
        self.cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    async def search(self, run: str) -> None:
        for _ in range(2):
            await self.ask(run, "search", "query", HEAD + tokens(self.rng, 40), 150)

    async def summarize(self, run: str) -> None:
        summary: list[int] = []
        for _ in range(3):
            await self.ask(run, "summarize", "chunk", tokens(self.rng, 1000) + summary, 50)
            summary = tokens(self.rng, 50)

    async def coding(self, run: str) -> None:
        spec = tokens(self.rng, 200)
        await self.ask(run, "coding", "architect", ROLES["architect"] + tokens(self.rng, 60), 200)
        for role, new, output in (("engineer", 0, 300), ("reviewer", 300, 100), ("reviser", 400, 150)):
            prompts = [ROLES[role] + spec + tokens(self.rng, new) for _ in range(3)]
            await asyncio.gather(*(self.ask(run, "coding", role, prompt, output) for prompt in prompts))

    async def work(self, work: dict[str, int]) -> None:
        number = 0
        runs: list[Awaitable[None]] = []
        for workflow, count in work.items():
            for _ in range(count):
                runs.append(self._timed(f"{self.name}/{number}", workflow))
                number += 1
        await asyncio.gather(*runs)

    async def _timed(self, run: str, workflow: str) -> None:
        began = time.time()
        await {"search": self.search, "summarize": self.summarize, "coding": self.coding}[workflow](run)
        self.runs.append({"id": run, "workflow": workflow, "began": round(began, 4), "ended": round(time.time(), 4)})


async def edge(counter_j: Callable[[], float]) -> tuple[float, float]:
    """Time and joules where the counter moves next, so that its 0.1 s steps do not blur a short cell."""
    at, before = time.time(), counter_j()
    while time.time() - at < EDGE_S:
        if (joules := counter_j()) != before:
            return time.time(), joules
        await asyncio.sleep(0.002)
    return time.time(), before


async def measure(options: argparse.Namespace) -> None:
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    config = configuration(options) | {"limits": {"in_flight": max(options.gates)}}
    path = out / "joulegate.yaml"
    path.write_text(yaml.safe_dump(config))
    counter_j = zeusd_counter(options.zeusd) if options.zeusd else nvml_counter()
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, gateway(session, out):
        await Cell(session, options.model, "warm", random.Random(0)).work(WORK["search"])
        ends = time.monotonic() + 60 * options.minutes
        with (out / "gate_sweep.jsonl").open("a") as lines:
            for repeat, gate, workload in cells(options.repeats, options.gates):
                if time.monotonic() > ends:
                    print("out of time before", repeat, gate, workload, flush=True)
                    break
                path.write_text(yaml.safe_dump(config | {"limits": {"in_flight": gate}}))
                async with session.post(f"http://127.0.0.1:{PORT}/admin/reload") as reply:
                    if reply.status != 200:
                        raise RuntimeError(await reply.text())
                await asyncio.sleep(TAKEN_S)
                name = f"{repeat}-{gate}-{workload}"
                cell = Cell(session, options.model, name, random.Random(name))
                began, before_j = await edge(counter_j)
                await cell.work(WORK[workload])
                ended, after_j = await edge(counter_j)
                latency_s = [run["ended"] - run["began"] for run in cell.runs]
                row = {
                    "repeat": repeat,
                    "gate": gate,
                    "workload": workload,
                    "runs": len(cell.runs),
                    "seconds": round(ended - began, 3),
                    "joules": round(after_j - before_j, 3),
                    "output_tokens": cell.output,
                    "prompt_tokens": cell.prompt,
                    "cached_tokens": cell.cached,
                    "j_per_run": round((after_j - before_j) / len(cell.runs), 3),
                    "latency_mean_s": round(sum(latency_s) / len(latency_s), 4),
                    "by_run": cell.runs,
                }
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                print(name, row["seconds"], "s", row["j_per_run"], "J a run", flush=True)


def cells(repeats: list[int], gates: list[int]) -> Iterator[tuple[int, int, str]]:
    """Repeat, gate and workload, in an order drawn anew for each repeat."""
    for repeat in repeats:
        order = [(gate, workload) for gate in gates for workload in WORK]
        random.Random(repeat).shuffle(order)
        for gate, workload in order:
            yield repeat, gate, workload


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=numbers, default=[0, 1, 2])
    parser.add_argument("--gates", type=numbers, default=[16, 8, 4, 2, 1])
    parser.add_argument("--minutes", type=float, default=15.0, help="no cell begins later")
    parser.add_argument("--zeusd", default="", help="host:port of an emulated host's zeusd, to rehearse")
    asyncio.run(measure(parser.parse_args()))
