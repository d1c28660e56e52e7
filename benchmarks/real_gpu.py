"""The books on a real GPU: a running vLLM, the gateway before it in `observe`, and the four workloads at paper size.

    python benchmarks/real_gpu.py http://127.0.0.1:8000 MODEL OUT_DIR

Each workload alone, then all of them at once, then search with 1, 4 and 16 users. Prompts are token ids of the lengths
that the workloads' texts would have (four characters a token), so that a model without a tokenizer will do. Writes
`books.json`: the gateway's balance beside NVML's counter as read here, and joules by workflow. No setting of the GPU is
touched.
"""

import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import aiohttp
import pynvml
import yaml

from loadgen.coding import Coding
from loadgen.composite import Composite
from loadgen.search import Search
from loadgen.summarize import Summarize
from loadgen.workload import Dispatch, Execution, Run, Workload, tags

WORKLOADS: dict[str, Workload] = {
    workload.name: workload for workload in (Search.paper(), Summarize.paper(), Coding.paper(), Composite.paper())
}
USERS = 8
ALONE_S, MIXED_S = 8.0, 16.0  # new runs start for so long; those under way are finished
# The comparison's search answers are shorter than the paper's 800 tokens, to be done in two minutes.
COMPARED, COMPARED_RUNS, COMPARED_USERS = Search(output_tokens=200), 8, (1, 4, 8)
CONTEXT = 4000  # of the model's 4096, so that prompt and answer fit


def token_ids(text: str) -> list[int]:
    """Token ids that repeat where the text repeats: a word and its place in a block of four give one id."""
    pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
    return [100 + crc32(piece.encode()) % 29000 for piece in pieces]


class Client:
    """Sends runs through the gateway, closed-loop."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self.session, self.url, self.model = session, url, model
        self.runs = 0

    async def run(self, run: Run, name: str) -> None:
        run_id, execution = f"{name}-{uuid.uuid4().hex}", Execution(run)
        tasks: set[asyncio.Task[None]] = set()
        while not execution.done:
            for dispatch in execution.take_ready():
                tasks.add(asyncio.create_task(self.call(dispatch, tags(run_id, name, dispatch), execution)))
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        self.runs += 1

    async def call(self, dispatch: Dispatch, headers: dict[str, str], execution: Execution) -> None:
        call = dispatch.call
        prompt = token_ids("".join(message["content"] for message in call.messages(execution.outputs)))
        prompt = prompt[: CONTEXT - call.max_tokens]
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": call.max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        async with self.session.post(f"{self.url}/v1/completions", json=body, headers=headers) as reply:
            data = await reply.read()
            if reply.status != 200 or b"[DONE]" not in data:
                raise RuntimeError(f"{reply.status}: {data[-300:]!r}")
        # What the answer says does not matter, how long it is does.
        execution.answer(call.node, f"{Random(call.node).random()} " * (call.max_tokens // 5))

    async def users(self, count: int, name: str, workloads: list[Workload], seconds: float = 0, runs: int = 0) -> float:
        """`count` users, for so many seconds or runs in all; returns the seconds it took."""
        began, planned = time.time(), 0

        async def user(number: int) -> None:
            nonlocal planned
            while planned < runs if runs else time.time() - began < seconds:
                planned += 1
                workload = workloads[(planned + number) % len(workloads)]
                await self.run(workload.plan(Random(f"{name} {planned}")), name or workload.name)

        await asyncio.gather(*(user(number) for number in range(count)))
        return time.time() - began


def nvml_counter_j() -> float:
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


async def get(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as reply:
        return await reply.json()


async def measure(engine: str, model: str, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    config = {
        "listen": {"host": "127.0.0.1", "port": 8899},
        "engines": [{"name": "vllm", "kind": "vllm", "url": engine, "devices": ["local/gpu:0"], "models": [model]}],
        "ledger": {"path": str(out / "ledger.sqlite")},
    }
    (out / "joulegate.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "joulegate", "serve", "-c", str(out / "joulegate.yaml")]
    url = "http://127.0.0.1:8899"
    with (out / "gateway.log").open("wb") as log:
        gateway = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=subprocess.STDOUT)
    steps: list[dict[str, Any]] = []
    try:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            for _ in range(300):
                try:
                    if (await get(session, f"{url}/readyz"))["ready"]:
                        break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.2)
            client = Client(session, url, model)
            before = await get(session, f"{url}/energy/balance")
            began_j, began = nvml_counter_j(), time.time()

            async def step(name: str, users: int, workloads: list[Workload], seconds: float = 0, runs: int = 0) -> None:
                j0 = nvml_counter_j()
                took = await client.users(users, name, workloads, seconds, runs)
                steps.append(
                    {"step": name or "mixed", "users": users, "seconds": took, "nvml_j": nvml_counter_j() - j0}
                )
                print(steps[-1], flush=True)
                await asyncio.sleep(2)

            for name, workload in WORKLOADS.items():
                await step(f"{name}-alone", USERS, [workload], seconds=ALONE_S)
            await step("", USERS * 2, list(WORKLOADS.values()), seconds=MIXED_S)
            for users in COMPARED_USERS:
                await step(f"search-x{users}", users, [COMPARED], runs=COMPARED_RUNS)
            await asyncio.sleep(8)
            after = await get(session, f"{url}/energy/balance")
            ended_j, ended = nvml_counter_j(), time.time()
            workflows = (await get(session, f"{url}/energy/workflows"))["workflows"]
            engines = await get(session, f"{url}/energy/engines")
            async with session.get(f"{url}/metrics") as reply:
                (out / "metrics.txt").write_bytes(await reply.read())
    finally:
        gateway.send_signal(signal.SIGTERM)
        await asyncio.wait_for(gateway.wait(), 60)
    moved = {d: after[d]["counter_j"] - before.get(d, {"counter_j": 0})["counter_j"] for d in after}
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return {
        "machine": {
            "gpu": pynvml.nvmlDeviceGetName(handle),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "limit_w": pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        "command": "python benchmarks/real_gpu.py " + " ".join(sys.argv[1:]),
        "seconds": ended - began,
        "nvml_j": ended_j - began_j,
        "gateway_j": moved,
        "balance": after,
        "steps": steps,
        "workflows": workflows,
        "engines": engines,
        "gateway_exit": gateway.returncode,
    }


if __name__ == "__main__":
    pynvml.nvmlInit()
    folder = Path(sys.argv[3])
    result = asyncio.run(measure(sys.argv[1], sys.argv[2], folder))
    (folder / "books.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("nvml_j", "gateway_j", "balance", "gateway_exit")}, indent=1))
