"""Release rules on a real engine, through the gateway: released at once, fixed windows, hitch, and the company policy.

    python benchmarks/real_policies.py http://127.0.0.1:8000 MODEL OUT_DIR --parts main,front,pair [--repeats 0,1,2]

A running vLLM on GPU 0, the gateway before it; the gate alone acts and no setting of the GPU is touched. Search
requests (3000 shared prompt tokens, 40 of their own, 150 out) arrive as a Poisson process of which the number is given,
the same arrivals for each rule; a trial's energy is that of its whole time, idle included. The rules take turns within
each repeat. `main` is
the default, a 3 s window and `company` at 3 s; `front` other windows and patience; `pair` a patient workflow beside an
impatient one. Every trial is a line in `trials.jsonl`, so that several calls add up; `policy.jsonl` is what the policy
said. Rehearse it on an emulated host: `joulegate emulate --gpu h200 --model llama-2-7b`, and `--zeusd 127.0.0.1:4938`.
"""

import argparse
import asyncio
import json
import random
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

PORT = 8899
TRIAL_S = {0.7: 30.0, 2.0: 20.0, 6.0: 14.0, 1.5: 20.0}  # by rate
REST_S = 4.5  # of it without arrivals, so that all are served
RATES = (0.7, 2.0, 6.0)
PAIR_RATE = 1.5
HEAD = [random.Random(5).randrange(100, 30000) for _ in range(3000)]
OUTPUT = 150
SETTLED_S = 6.0  # after the last answer


@dataclass(frozen=True)
class Rule:
    """How the gateway releases what workflows with `patience` (seconds) send; `policy` is its configuration."""

    name: str
    patience: float
    policy: dict[str, Any]


def default(patience: float = 3.0) -> Rule:
    """The policy looks on in a dry run, so that nothing is held but all is learnt."""
    return Rule("default", patience, {"name": "company", "dry_run": True})


def company(patience: float) -> Rule:
    return Rule("company", patience, {"name": "company"})


def window(seconds: float) -> Rule:
    """All that wait, so long after the first of them came."""
    return Rule("window", seconds, {"name": "static", "release": {"search": {"hold_s": seconds}}})


def hitch(seconds: float) -> Rule:
    """At once when work is in flight, else as a window."""
    hold = {"hold_s": seconds, "join_s": float("inf")}
    return Rule("hitch", seconds, {"name": "static", "release": {"search": hold}})


@dataclass(frozen=True)
class Trial:
    """One rule under one load: requests a second by workflow."""

    part: str
    repeat: int
    rule: Rule
    rates: dict[str, float]

    @property
    def seconds(self) -> float:
        return TRIAL_S[self.rates["search"]]


def trials(parts: list[str], repeats: list[int]) -> Iterator[Trial]:
    """Rules in turn, in another order each time."""
    for repeat in repeats:
        for part in parts:
            for rate in RATES if part != "pair" else (PAIR_RATE,):
                rules = {
                    "main": [default(), window(3.0), company(3.0)],
                    "front": [window(1.0), hitch(3.0), company(0.5), company(1.0)],
                    "more": [window(2.0), hitch(1.0), company(2.0)],
                    "pair": [default(), company(3.0)],
                }[part]
                rates = {"search": rate} if part != "pair" else {"search": rate, "chat": rate}
                turned = rules[repeat % len(rules) :] + rules[: repeat % len(rules)]
                yield from (Trial(part, repeat, rule, rates) for rule in turned)


def arrivals(trial: Trial) -> list[tuple[float, str, list[int]]]:
    """When which workflow sends which tokens of its own: the same for every rule."""
    found: list[tuple[float, str, list[int]]] = []
    until = trial.seconds - REST_S
    for workflow, rate in trial.rates.items():
        rng = random.Random(f"{workflow} {rate} {trial.repeat}")
        for _ in range(round(rate * until)):
            found.append((rng.uniform(0, until), workflow, [rng.randrange(100, 30000) for _ in range(40)]))
    return sorted(found)


class Bench:
    """The gateway, and those who send through it."""

    def __init__(self, session: aiohttp.ClientSession, model: str, config: dict[str, Any], out: Path) -> None:
        self.session, self.model, self.config, self.out = session, model, config, out
        self.url = f"http://127.0.0.1:{PORT}"
        self.counter_j: Callable[[], float] = lambda: 0.0

    def write(self, rule: Rule) -> None:
        workflows = {"search": {"patience": rule.patience}, "chat": {"patience": 0.0}}
        config = self.config | {"policy": rule.policy, "workflows": workflows}
        (self.out / "joulegate.yaml").write_text(yaml.safe_dump(config))

    async def take(self, rule: Rule) -> None:
        """Have the gateway release by this rule from now on."""
        self.write(rule)
        async with self.session.post(f"{self.url}/admin/reload") as reply:
            if reply.status != 200:
                raise RuntimeError(f"{rule}: {await reply.text()}")

    async def ask(self, workflow: str, own: list[int]) -> tuple[float, float]:
        """Times of the first and the last byte."""
        body = {"model": self.model, "prompt": HEAD + own, "max_tokens": OUTPUT, "ignore_eos": True, "stream": True}
        headers = {"x-workflow-id": uuid.uuid4().hex, "x-workflow-name": workflow, "x-workflow-final": "true"}
        async with self.session.post(f"{self.url}/v1/completions", json=body, headers=headers) as reply:
            first = await reply.content.readany()
            first_at = time.perf_counter()
            data = first + await reply.content.read()
            if reply.status != 200 or b"[DONE]" not in data:
                raise RuntimeError(f"{reply.status}: {data[-300:]!r}")
        return first_at, time.perf_counter()

    async def trial(self, trial: Trial) -> dict[str, Any]:
        await self.take(trial.rule)
        await asyncio.sleep(1.5)  # the gateway takes a rule within a second
        began, before_j = time.perf_counter(), self.counter_j()
        latency_s: dict[str, list[float]] = {workflow: [] for workflow in trial.rates}
        ttft_s: dict[str, list[float]] = {workflow: [] for workflow in trial.rates}

        async def one(at: float, workflow: str, own: list[int]) -> None:
            await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
            first_at, ended = await self.ask(workflow, own)
            ttft_s[workflow].append(first_at - began - at)
            latency_s[workflow].append(ended - began - at)

        await asyncio.gather(*(one(*arrival) for arrival in arrivals(trial)))
        drained_s = time.perf_counter() - began
        await asyncio.sleep(max(0.0, trial.seconds - drained_s))
        seconds, joules = time.perf_counter() - began, self.counter_j() - before_j
        requests = sum(map(len, latency_s.values()))
        return {
            "part": trial.part,
            "repeat": trial.repeat,
            "rule": trial.rule.name,
            "seconds_held": trial.rule.patience if trial.rule.name != "default" else 0.0,
            "rates": trial.rates,
            "requests": requests,
            "seconds": round(seconds, 3),
            "joules": round(joules, 3),
            "j_per_request": round(joules / requests, 3),
            "drained_s": round(drained_s, 3),
            "latency_s": {name: [round(s, 4) for s in values] for name, values in latency_s.items()},
            "ttft_s": {name: [round(s, 4) for s in values] for name, values in ttft_s.items()},
        }


async def measure(options: argparse.Namespace) -> None:
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    config = configuration(options)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        bench = Bench(session, options.model, config, out)
        bench.counter_j = zeusd_counter(options.zeusd) if options.zeusd else nvml_counter()
        bench.write(default())
        ends = time.monotonic() + 60 * options.minutes
        async with gateway(session, out):
            # The shared head is in the cache from here on, and the engine warm.
            await asyncio.gather(*(bench.ask("search", [200 + n] * 40) for n in range(4)))
            with (out / "trials.jsonl").open("a") as lines, (out / "policy.jsonl").open("a") as said:
                for trial in trials(options.parts, options.repeats):
                    if time.monotonic() + trial.seconds > ends:
                        print("out of time before", trial, flush=True)
                        break
                    row = await bench.trial(trial)
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                    mean = {name: sum(values) / len(values) for name, values in row["latency_s"].items() if values}
                    shown = [row[key] for key in ("part", "repeat", "rule", "seconds_held", "rates", "j_per_request")]
                    print(*shown, {name: round(s, 3) for name, s in mean.items()}, flush=True)
                    async with session.get(f"{bench.url}/energy/policy") as reply:
                        text = await reply.text() if reply.status == 200 else ""
                    if text:
                        said.write(json.dumps({"trial": shown, "policy": json.loads(text)}) + "\n")


def configuration(options: argparse.Namespace) -> dict[str, Any]:
    """A gateway before the engine that is to be measured, with the GPU's counter or an emulated one's."""
    return {
        "listen": {"host": "127.0.0.1", "port": PORT},
        "engines": [
            {"name": "vllm", "kind": "vllm", "url": options.engine, "devices": ["h1/gpu:0"], "models": [options.model]}
        ],
        "hosts": {"h1": {"zeusd": options.zeusd} if options.zeusd else {"local": True}},
        "ledger": {"path": str(options.out / "ledger.sqlite")},
    }


@asynccontextmanager
async def gateway(session: aiohttp.ClientSession, out: Path) -> AsyncIterator[None]:
    """The gateway that `out`/joulegate.yaml describes. When the work is done its balance goes into `out`."""
    serve = ["-m", "joulegate", "serve", "-c", str(out / "joulegate.yaml")]
    with (out / "gateway.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, *serve, stderr=log)
    try:
        await ready(session)
        yield
        await asyncio.sleep(SETTLED_S)
        async with session.get(f"http://127.0.0.1:{PORT}/energy/balance") as reply:
            (out / "balance.json").write_text(await reply.text())
    finally:
        if process.returncode is None:  # one that could not start has said why in its log
            process.terminate()
            await asyncio.wait_for(process.wait(), 60)


async def ready(session: aiohttp.ClientSession) -> None:
    for _ in range(300):
        try:
            async with session.get(f"http://127.0.0.1:{PORT}/readyz") as reply:
                if reply.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.2)
    raise RuntimeError("the gateway is not ready")


def nvml_counter() -> Callable[[], float]:
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


def zeusd_counter(address: str) -> Callable[[], float]:
    """Of an emulated host: its joules are emulated."""

    def read() -> float:
        with urllib.request.urlopen(f"http://{address}/gpu/get_cumulative_energy?gpu_ids=0") as reply:
            return json.load(reply)["0"]["energy_mj"] / 1000

    return read


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["main", "front", "pair"])
    parser.add_argument("--repeats", type=lambda text: [int(n) for n in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=8.0, help="no trial begins that would end later")
    parser.add_argument("--zeusd", default="", help="host:port of an emulated host's zeusd, to rehearse")
    asyncio.run(measure(parser.parse_args()))
