"""What the load generator can do on one core, against an engine that costs next to nothing.

500 streamed requests of 20 tokens a second, at random, by the driver alone and by Locust with one worker: how late they
are sent. The engine (`benchmarks.stub_engine`) has another core, and a token every 10 ms, each in a packet of its own.
Then as many requests as closed users get of an engine that answers at once, by one Locust worker with a core of its
own, and by two that share both cores with the engine.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import machine
from benchmarks.bars import Bar
from benchmarks.processes import ROOT, Process, free_port
from benchmarks.report import print_bars, write
from loadgen.arrivals import Poisson
from loadgen.catalog import workload
from loadgen.client import Target
from loadgen.http import run
from loadgen.record import Result, read
from loadgen.schedule import Load, Stream
from loadgen.wire import Server, WireError

RATE, TOKENS, PACE_MS = 500, 20, 10
USERS = 64  # closed: more than the workers have time for
MOST_LATE_MS = 20.0
RESULT = Path("docs/results/loadgen/loadgen.json")
QUERY = {"queries": [1, 1]}
LOCUST = ("--headless", "--workload", "search", "--set", "queries=1-1", "--no-joules", "--only-summary")


@dataclass(frozen=True, slots=True)
class Seen:
    """One load, in its middle where it is closed. CPU in shares of a core, times in milliseconds."""

    requests: int
    requests_s: float
    failed: int
    output_tokens: int
    start_delay_p50_ms: float
    start_delay_p99_ms: float
    start_delay_max_ms: float
    lag_p99_ms: float
    cpu_share: float
    valid: bool


def seen(result: Result, margin_s: float = 0.0) -> Seen:
    load = result.load
    last_s = max(request.ended_s for request in result.requests)
    middle = [one for one in result.requests if margin_s <= one.ended_s <= last_s - margin_s]
    delays = (load.start_delay_p50_s, load.start_delay_p99_s, load.start_delay_max_s, load.lag_p99_s)
    p50_ms, p99_ms, max_ms, lag_ms = (round((delay_s or 0.0) * 1e3, 2) for delay_s in delays)
    return Seen(
        requests=len(result.requests),
        requests_s=round(len(middle) / (last_s - 2 * margin_s), 1),
        failed=sum(one.outcome == "failed" for one in result.requests),
        output_tokens=sum(one.output_tokens or 0 for one in result.requests),
        start_delay_p50_ms=p50_ms,
        start_delay_p99_ms=p99_ms,
        start_delay_max_ms=max_ms,
        lag_p99_ms=lag_ms,
        cpu_share=round(load.cpu_share or 0.0, 3),
        valid=load.valid,
    )


def alone(url: str, seconds: int) -> Seen:
    """The driver in this process."""
    stream = Stream((workload("search", "small", QUERY, output_tokens=TOKENS),), Poisson(RATE))
    return seen(run(Load((stream,), seed=1, seconds=seconds), Target(url=url)))


def locust(url: str, folder: Path, name: str, *options: str, margin_s: float = 0.0) -> Seen:
    record, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadgen" / "locustfile.py"), *LOCUST]
    command += ["--host", url, "--output-tokens", str(TOKENS), "--record", str(record), *options]
    with log.open("w") as out:
        code = subprocess.run(command, stdout=out, stderr=out, cwd=ROOT, check=False).returncode
    if not record.exists():
        raise SystemExit(f"locust ended with {code}: {log.read_text()[-2000:]}")
    return seen(read(record), margin_s)


@contextmanager
def engine_on(cores: set[int], pace_ms: float, folder: Path) -> Iterator[str]:
    """An engine that may use these cores; its URL."""
    own, port = os.sched_getaffinity(0), free_port()
    env = {**os.environ, "STUB_ITL_MS": str(pace_ms), "STUB_TOKENS": str(TOKENS)}
    command = [sys.executable, "-m", "benchmarks.stub_engine", str(port)]
    os.sched_setaffinity(0, cores)  # what is started inherits it
    engine = Process("stub", command, port, folder / f"stub-{port}.log", env)
    os.sched_setaffinity(0, own)
    try:
        wait_for(engine)
        yield f"http://127.0.0.1:{port}"
    finally:
        engine.stop()


def wait_for(engine: Process) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            Server(f"http://127.0.0.1:{engine.port}").get("/v1/models", {})
            return
        except WireError:
            time.sleep(0.1)
    raise SystemExit(f"the engine did not start: {engine.last_words()}")


def main(
    seconds: Annotated[int, typer.Option(min=5, help="of each load")] = 20,
    result: Annotated[Path, typer.Option(help="where the figures go, as JSON")] = RESULT,
) -> None:
    """How many requests a second the load generator sends in time."""
    console, cores = Console(), sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("generator and engine need a core each: this benchmark needs two")
    load, port = machine.load(), str(free_port())
    one, other, both = set(cores[:1]), set(cores[1:]), set(cores)
    rate = ("--arrivals", f"poisson:{RATE}", "--max-runs", str(RATE * seconds))
    users = ("-u", str(USERS), "-r", str(USERS), "-t", f"{seconds}s")
    workers = ("--processes", "2", "--master-port", port, "--master-bind-port", port)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.sched_setaffinity(0, one)
        with engine_on(other, PACE_MS, folder) as url:
            figures = {"driver": alone(url, seconds), "locust": locust(url, folder, "open", *rate)}
        with engine_on(other, 0.0, folder) as url:
            figures["one worker"] = locust(url, folder, "one", *users, margin_s=seconds / 4)
        os.sched_setaffinity(0, both)
        with engine_on(both, 0.0, folder) as url:
            figures["two workers"] = locust(url, folder, "two", *users, *workers, margin_s=seconds / 4)
    bars = bars_of(figures)
    for kind, one in figures.items():
        console.print(f"{kind}: {one}", highlight=False)
    print_bars(console, bars)
    told = {name: asdict(one) for name, one in figures.items()}
    write(result, {"machine": machine.describe(), "load_before": load, "seconds": seconds, "figures": told})
    if not all(bar.met for bar in bars):
        raise typer.Exit(1)


def bars_of(figures: dict[str, Seen]) -> list[Bar]:
    one, two = figures["one worker"].requests_s, figures["two workers"].requests_s
    late = [
        Bar(
            f"{name}: start delay at {RATE} requests/s, p99 (ms)",
            f"< {MOST_LATE_MS:g}",
            figures[name].start_delay_p99_ms,
            figures[name].start_delay_p99_ms < MOST_LATE_MS and not figures[name].failed,
            f"{figures[name].requests_s:g} requests/s, {figures[name].cpu_share:.0%} of a core",
        )
        for name in ("driver", "locust")
    ]
    return [*late, Bar("two Locust workers, times one", "> 1", two / one, two > one, f"{two:g} / {one:g} requests/s")]


if __name__ == "__main__":
    typer.run(main)
