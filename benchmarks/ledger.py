"""`make bench-ledger`: what a ledger with a million runs in it costs to ask, to write and to thin out.

Builds such a file through the ledger itself (two requests a run on average, three months of them, a week of windows),
and then asks the API over it, as a client would but for the socket. `--file` keeps it and uses it again.
"""

import asyncio
import json
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import typer
from fastapi import FastAPI
from rich.console import Console
from rich.progress import track

from benchmarks import machine, report
from benchmarks.bars import Bar
from benchmarks.processes import ROOT
from proxy.api.energy import DeviceBooks, router
from proxy.energy.ledger import Ledger
from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.records import (
    AttemptRecord,
    Batch,
    DeviceRecord,
    EnergyRecord,
    Quality,
    RequestRecord,
    RunRecord,
    WindowRecord,
)
from proxy.energy.retention import DAY_S, Retention
from proxy.energy.views import Views

RESULTS = ROOT / "docs/results/ledger"
NEWEST = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
DAYS, WINDOW_DAYS, RUNS_A_BATCH = 90, 7, 2000
WORKFLOWS = ("search", "summarize", "coding", "chat", "extract")
STEPS = ("plan", "query", "rank", "answer")
DEVICE = "h1/gpu:0"
MOST_RUN_MS, MOST_WORKFLOWS_MS, MOST_HELD_MS = 50.0, 200.0, 50.0


class Idle:
    """The live side of a gateway that does nothing, and lets everybody ask."""

    def books(self) -> dict[str, DeviceBooks]:
        return {}

    def provisional_uj(self, tenant: str, run: str) -> tuple[int, dict[str, int]]:
        return 0, {}

    def unsettled(self, tenant: str, run: str) -> set[str]:
        return set()

    def close_run(self, tenant: str, run: str) -> bool:
        return False

    def views(self) -> Views:
        return Views({}, {}, {}, {})

    def why_unknown(self, engine: str) -> str | None:
        return None

    async def committed(self) -> None:
        return None

    def tenant_of(self, request: Any) -> str | None:
        return None

    def engines(self) -> list[dict[str, Any]]:
        return []


def run_id(n: int) -> str:
    """As clients make them up: in no order."""
    return f"run-{n * 2654435761 % 2**32:08x}"


def batch(first: int, count: int, runs: int) -> Batch:
    """`count` runs of a history of `runs`, with everything that belongs to them."""
    whole = Batch()
    for n in range(first, first + count):
        opened = NEWEST - DAYS * DAY_S * (1 - n / runs)
        uid = f"{int(opened * 1000):012x}{n:016x}"
        tenant, workflow = ("acme", "lab")[n % 3 == 0], WORKFLOWS[n % len(WORKFLOWS)]
        requests = 1 + n % 3
        whole.runs.append(RunRecord(uid, tenant, run_id(n), workflow, opened, opened + 3.0 * requests, "final"))
        for k in range(requests):
            received = opened + 3.0 * k
            one = f"req_{int(received * 1000):012x}{n:012x}{k:08x}"
            outcome, times = ("cancelled" if n % 50 == 0 else "ok"), (received + 2.5, 200)
            whole.requests.append(
                RequestRecord(
                    *(one, uid, STEPS[k], None, "[]", '{"run":"x-workflow-id","workflow":"x-workflow-name"}'),
                    *("/v1/chat/completions", received, "llama-2-7b", 1, *times, outcome, 500, 100, 80, "engine"),
                )
            )
            engine = f"e{n % 2}"
            whole.attempts.append(AttemptRecord(one, 1, engine, received, received, received + 0.3, *times, outcome))
            whole.energy.append(EnergyRecord(one, 1, DEVICE, "attributed", "gpu", 8_000_000, 24_000_000, 30, 35))
    return whole


def build(path: Path, runs: int, console: Console) -> dict[str, float]:
    """A ledger with so many runs; returns what that took."""
    ledger = Ledger(path)
    wall, cpu, requests = time.perf_counter(), 0.0, 0
    for first in track(range(0, runs, RUNS_A_BATCH), f"{runs:,} runs", console=console):
        made = batch(first, min(RUNS_A_BATCH, runs - first), runs)
        requests += len(made.requests)
        began = time.thread_time()
        ledger.write(made)
        cpu += time.thread_time() - began
    seconds = range(int(NEWEST - WINDOW_DAYS * DAY_S), int(NEWEST))
    for first in track(range(0, len(seconds), 10_000), "windows", console=console):
        part = [WindowRecord(DEVICE, t, Quality.MEASURED, 300, 90, 0, 0) for t in seconds[first : first + 10_000]]
        device = DeviceRecord(DEVICE, "gpu", "NVIDIA H200", Quality.MEASURED, 390 * len(part), 0, NEWEST)
        ledger.write(Batch(windows=part, devices=[device]))
    ledger.close()
    return {
        "requests": requests,
        "wall_s": time.perf_counter() - wall,
        "cpu_us_request": cpu / requests * 1e6,
        "file_mib": path.stat().st_size / 2**20,
    }


def forget_cache(path: Path) -> None:
    """Let the system forget the file's pages, where it can be told to."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def ask(path: Path, paths: list[str], before: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Milliseconds from question to answer through the API: median, 99th percentile, longest."""
    app = FastAPI()
    app.include_router(router(LedgerReader(path), Idle()))
    took: list[float] = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        for url in paths:
            before()
            began = time.perf_counter()
            reply = await client.get(url)
            took.append((time.perf_counter() - began) * 1e3)
            reply.raise_for_status()
    took.sort()
    return {"p50_ms": median(took), "p99_ms": took[int(len(took) * 0.99)], "longest_ms": took[-1], "count": len(took)}


def questions(path: Path, runs: int) -> dict[str, dict[str, float]]:
    some = random.Random(1)
    ids = [f"/energy/runs/{run_id(some.randrange(runs))}" for _ in range(300)]
    with closing(sqlite3.connect(path)) as db:
        requests = [id_ for (id_,) in db.execute("SELECT id FROM requests ORDER BY id DESC LIMIT 300")]
    asked = {
        "/energy/runs/{id}": ids,
        "/energy/workflows": ["/energy/workflows"] * 100,
        "/energy/runs?limit=100": ["/energy/runs?limit=100"] * 50,
        "/energy/runs?workflow&tenant": ["/energy/runs?workflow=coding&tenant=lab"] * 50,
        "/energy/requests/{id}": [f"/energy/requests/{id_}" for id_ in requests],
        "/energy/engines": ["/energy/engines"] * 50,
    }
    cold = {"/energy/runs/{id}, cold": ids[:30], "/energy/workflows, cold": ["/energy/workflows"] * 10}
    figures = {name: asyncio.run(ask(path, urls)) for name, urls in asked.items()}
    return figures | {name: asyncio.run(ask(path, urls, lambda: forget_cache(path))) for name, urls in cold.items()}


def write_on(path: Path, runs: int) -> dict[str, float]:
    """What the next thousand requests cost, and the opening of so large a file."""
    began = time.perf_counter()
    ledger = Ledger(path)
    opened_s = time.perf_counter() - began
    took: list[float] = []
    for k in range(10):
        made = batch(runs + k * 500, 500, runs)
        began = time.thread_time()
        ledger.write(made)
        took.append((time.thread_time() - began) / len(made.requests) * 1e6)
    ledger.close()
    return {"open_ms": opened_s * 1e3, "cpu_us_request": median(took)}


def thin_out(path: Path, slices: int, console: Console) -> dict[str, float]:
    """Slices of the oldest detail rolled into days, as the gateway does it; how long each held the writer."""
    ledger, retention = Ledger(path), Retention(DAYS / 2, WINDOW_DAYS / 2)
    took: list[float] = []
    for _ in track(range(slices), "forgetting", console=console):
        most = retention.slice_rows
        began = time.perf_counter()
        more = ledger.forget(*retention.before(NEWEST), most)
        took.append(time.perf_counter() - began)
        if not more:
            break
        retention.took(took[-1])
    ledger.close()
    with closing(sqlite3.connect(path)) as db:
        requests = db.execute("SELECT sum(requests) FROM day_requests").fetchone()[0]
    return {
        "slices": len(took),
        "requests": requests,
        "p50_ms": median(took) * 1e3,
        "p99_ms": sorted(took)[int(len(took) * 0.99)] * 1e3,
        "longest_ms": max(took) * 1e3,
        "requests_a_second": requests / sum(took),
    }


def bars(figures: dict[str, Any]) -> list[Bar]:
    asked = figures["questions"]
    return [
        _bar("/energy/runs/{id}, p99 (ms)", MOST_RUN_MS, asked["/energy/runs/{id}"]),
        _bar("/energy/workflows, p99 (ms)", MOST_WORKFLOWS_MS, asked["/energy/workflows"]),
        _bar("a slice of forgetting holds the writer, p99 (ms)", MOST_HELD_MS, figures["forgetting"]),
    ]


def _bar(what: str, limit: float, seen: dict[str, float]) -> Bar:
    note = f"median {seen['p50_ms']:.1f}, longest {seen['longest_ms']:.1f}"
    return Bar(what, f"< {limit:g}", seen["p99_ms"], seen["p99_ms"] < limit, note)


@contextmanager
def _file(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "ledger.sqlite"


def main(
    runs: Annotated[int, typer.Option(min=10_000, help="runs in the ledger")] = 1_000_000,
    file: Annotated[Path | None, typer.Option(help="build it here, or measure the one that is here")] = None,
    out: Annotated[Path, typer.Option(help="folder for the JSON")] = RESULTS,
) -> None:
    """Measure a ledger with many runs in it, and check it against the bars that it has to meet."""
    console = Console()
    figures: dict[str, Any] = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "runs": runs}
    with _file(file) as path:
        if not path.exists():
            figures["built"] = build(path, runs, console)
        figures["questions"] = questions(path, runs)
        figures["writing"] = write_on(path, runs)
        figures["forgetting"] = thin_out(path, 400, console)
    figures |= {"bars": bars(figures), "machine": machine.describe(), "load": machine.load()}
    console.print_json(
        json.dumps({key: figures[key] for key in ("built", "questions", "writing", "forgetting") if key in figures})
    )
    report.print_bars(console, figures["bars"])
    name = figures["began"][:19].replace(":", "").replace("T", "-")
    report.write(out / f"{name}.json", figures)
    console.print(f"written: {out / name}.json", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
