"""What metering costs: CPU of reading, attribution and ledger for so many requests in flight, in percent of one core.

The gateway's own classes, driven second by second in virtual time: counters are read ten times a second, the engine's
metrics twice, books are closed and committed once. Streams make 20 tokens a second each and are replaced when they end.
What is left out is what they cost the data plane (`benchmarks.proxy`) and the driver behind a counter.
"""

import asyncio
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeVar

import orjson
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.bars import Bar
from benchmarks.report import print_bars
from joulegate.serve import calm_collector
from proxy import clock
from proxy.config import EngineConfig
from proxy.energy.attribution import Attribution
from proxy.energy.ledger import Ledger
from proxy.energy.meter import Meter
from proxy.energy.prior import prior
from proxy.energy.receipts import Attempt, Book, Receipt
from proxy.energy.records import Outcome, Quality
from proxy.energy.sources import Device, Reading
from proxy.energy.work import Progress
from proxy.engines.vllm import Vllm
from proxy.identify import identify
from proxy.telemetry.metrics import Metrics

T = TypeVar("T")

READ_HZ, METRICS_HZ = 10, 2
TOKENS_S, TOKENS = 20, 256  # of a stream: a second, and in all on average
PROMPT = 700
STRETCH_S = 10
BARS = {1000: 3.0, 100: 1.0}  # requests in flight -> percent of a core
GPU, CPU = "h1/gpu:0", "h1/cpu:0"
RESULT = Path("docs/results/overhead/overhead.json")
# As a vLLM says it, with the histograms between the counters that are read.
_PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="llama-2-7b"}} {running}.0
vllm:num_requests_waiting{{engine="0",model_name="llama-2-7b"}} 0.0
vllm:kv_cache_usage_perc{{engine="0",model_name="llama-2-7b"}} 0.41
vllm:prefix_cache_hits_total{{engine="0",model_name="llama-2-7b"}} {cached}.0
{histograms}vllm:prompt_tokens_total{{engine="0",model_name="llama-2-7b"}} {prompt}.0
vllm:generation_tokens_total{{engine="0",model_name="llama-2-7b"}} {output}.0
vllm:iteration_tokens_total_count{{engine="0",model_name="llama-2-7b"}} {steps}.0
"""
_HISTOGRAMS = "".join(
    f'vllm:{name}_bucket{{engine="0",le="{le}.0",model_name="llama-2-7b"}} {le * 7}.0\n'
    for name in (
        *("iteration_tokens_total", "time_to_first_token_seconds", "inter_token_latency_seconds"),
        *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"),
        *("request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens"),
    )
    for le in range(1, 40)
)


@dataclass(slots=True)
class Costs:
    """CPU seconds by part; each is timed in the thread that does it."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def timed(self, part: str, call: Callable[..., T]) -> Callable[..., T]:
        """The same call, its CPU time counted."""

        def counted(*args: Any, **named: Any) -> T:
            begun = time.thread_time()
            try:
                return call(*args, **named)
            finally:
                self.seconds[part] += time.thread_time() - begun

        return counted


class _Source:
    """Two counters, of a GPU and of a processor, that read what the stage says."""

    devices = (Device(GPU, "gpu", "NVIDIA H200", Quality.MEASURED), Device(CPU, "cpu", "CPU", Quality.MEASURED))
    notes = ()

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage

    def read(self) -> list[Reading]:
        # One after the other, so that no two devices have the same windows.
        return [
            Reading(name, self._stage.now + n / 4000, uj) for n, (name, uj) in enumerate(self._stage.raw_uj.items())
        ]

    def close(self) -> None:
        """Nothing is held open."""


class Stage:
    """A meter with all that it feeds, and the streams that are in flight."""

    def __init__(self, folder: Path, in_flight: int, costs: Costs, pause_s: float = 0.0) -> None:
        self.now, self.costs, self.raw_uj, self._pause_s = 1_000_000.0, costs, {GPU: 0, CPU: 0}, pause_s
        self.rng = random.Random(1)
        clock.now = lambda: self.now
        source = _Source(self)
        self.attribution, self.metrics = Attribution(), Metrics("benchmark")
        self.book = Book(self.metrics.bounds.workflow, self.metrics.bounds.step)
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.attribution.add_engine("e1", (GPU, CPU), prior("NVIDIA H200", "llama-2-7b"))
        self.engine = Vllm(EngineConfig(name="e1", kind="vllm", url="http://127.0.0.1:1"))
        self.steps, self.prompt, self.output = 0, 0, 0
        for owner, name, part in (
            (source, "read", "reading counters"),
            (self.attribution, "mark", "marking progress"),
            (self.attribution, "reading", "windows"),
            (self.book, "book", "booking shares"),
            (self.book, "batch", "the second's batch"),
            (self.ledger, "write", "ledger"),
            (self.metrics, "apply", "counting in metrics"),
        ):
            setattr(owner, name, costs.timed(part, getattr(owner, name)))
        settle = self.attribution.settle
        self.attribution.settle = lambda now: _timed_steps(costs, "settling", settle(now))
        self.meter = Meter([source], self.attribution, self.book, self.ledger, self.metrics, 1 / READ_HZ)
        self.streams = [self._stream() for _ in range(in_flight)]

    def _stream(self) -> tuple[Receipt, Progress, int]:
        """A request of some run goes to the engine; how many tokens it will have."""
        number = len(self.book._receipts) + self.output
        headers = {
            b"x-workflow-id": b"run-%d" % (number % 997),
            b"x-workflow-name": b"search",
            b"x-workflow-step": b"q",
        }
        request_id = f"req_{int(self.now * 1000):012x}{self.rng.getrandbits(80):020x}"
        receipt = self.book.open(identify(headers, None, request_id), "default", request_id, "/v1/x", 60.0, self.now)
        progress = Progress(request_id, 1, "e1", self.now, PROMPT)
        receipt.attempts.append(Attempt(1, "e1", self.now, progress))
        self.attribution.start(progress)
        self.prompt += PROMPT
        return receipt, progress, self.rng.randint(TOKENS // 2, TOKENS * 3 // 2)

    def relay(self, ticks: int) -> None:
        """What the data plane writes in a tenth of a second: two tokens a stream, and the ends of some."""
        self.now += 1 / READ_HZ
        self.raw_uj[GPU] += 55_000_000 + 100_000 * (ticks % 7)
        self.raw_uj[CPU] += 12_000_000
        self.steps += TOKENS_S // READ_HZ
        for index, (receipt, progress, tokens) in enumerate(self.streams):
            progress.first = progress.first or self.now
            progress.frames += TOKENS_S // READ_HZ
            self.output += TOKENS_S // READ_HZ
            if progress.frames >= tokens:
                one = receipt.attempts[0]
                one.ended = progress.ended = self.now
                progress.prompt_tokens, progress.output_tokens = PROMPT, progress.frames
                progress.cached_tokens = receipt.cached_tokens = PROMPT // 2
                receipt.prompt_tokens, receipt.output_tokens = PROMPT, progress.frames
                one.outcome = Outcome.OK
                self.book.close(receipt, 200, Outcome.OK, self.now)
                self.streams[index] = self._stream()

    def ask_engine(self) -> None:
        running = len(self.streams)
        counts = {"running": running, "cached": self.prompt // 2, "prompt": self.prompt, "output": self.output}
        page = _PAGE.format(histograms=_HISTOGRAMS, steps=self.steps, **counts).encode()
        self.costs.timed("the engine's metrics", self._take)(page)

    def _take(self, page: bytes) -> None:
        sample = self.engine.parse(self.now, page)
        assert sample is not None
        self.attribution.engine("e1", sample.t, sample.steps, sample.output_tokens, sample.cached_tokens)

    async def second(self) -> float:
        """One second of work; returns what metering took of the process's CPU."""
        spent = 0.0
        for tick in range(READ_HZ):
            self.relay(tick)
            await asyncio.sleep(self._pause_s)
            begun = time.process_time()
            await self.meter.read()
            spent += time.process_time() - begun
            if tick % (READ_HZ // METRICS_HZ) == 0:
                before = self.costs.seconds["the engine's metrics"]
                self.ask_engine()
                spent += self.costs.seconds["the engine's metrics"] - before
        begun = time.process_time()
        await self.meter.commit()
        return spent + time.process_time() - begun


def _timed_steps(costs: Costs, part: str, steps: Any) -> Any:
    while True:
        begun = time.thread_time()
        try:
            one = next(steps)
        except StopIteration:
            return
        finally:
            costs.seconds[part] += time.thread_time() - begun
        yield one


async def _measure(in_flight: int, seconds: int, pause_s: float) -> dict[str, float]:
    costs, stretches = Costs(), list[dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), in_flight, costs, pause_s)
        for _ in range(15):  # until the first have ended, and windows settle as fast as they come
            await stage.second()
        calm_collector()
        for _ in range(max(1, seconds // STRETCH_S)):
            costs.seconds.clear()
            spent = 0.0
            for _ in range(STRETCH_S):
                spent += await stage.second()
            parts = {**costs.seconds, "all else": spent - sum(costs.seconds.values()), "all": spent}
            stretches.append({part: cpu_s / STRETCH_S * 100 for part, cpu_s in parts.items()})
        for device, uj in stage.meter.counter_uj().items():
            assert uj == sum(stage.meter.committed[device]) + stage.meter.open_uj()[device], "the books balance"
        await stage.meter.close()
    return {part: median(stretch.get(part, 0.0) for stretch in stretches) for part in stretches[0]}


def measure(in_flight: int, seconds: int, pause_s: float = 0.0) -> dict[str, float]:
    """Percent of one core by part, `all` together, with so many requests in flight all the time.

    Medians of stretches of ten seconds: on a machine that others use too, caches are lost now and then.
    """
    real = clock.now
    try:
        return asyncio.run(_measure(in_flight, seconds, pause_s))
    finally:
        clock.now = real


def main(
    seconds: Annotated[int, typer.Option(min=10, help="of virtual time, after 15 to warm up")] = 60,
    in_flight: Annotated[list[int] | None, typer.Option(help="requests; may be given several times")] = None,
    pause: Annotated[float, typer.Option(help="seconds of rest before each reading: caches go cold")] = 1 / READ_HZ,
    result: Annotated[Path, typer.Option(help="where the figures go, as JSON")] = RESULT,
) -> None:
    """What metering costs, by part, in percent of one core."""
    console, counts = Console(), in_flight or list(BARS)
    load, found = machine.load(), {count: measure(count, seconds, pause) for count in counts}
    table = Table(title="CPU in percent of one core", title_justify="left")
    table.add_column("requests in flight")
    for count in counts:
        table.add_column(f"{count:,}", justify="right")
    for part in max(found.values(), key=len):
        table.add_row(part, *(f"{found[count].get(part, 0.0):.2f}" for count in counts))
    console.print(table)
    bars = [
        Bar(
            f"CPU with {count:,} in flight (% of a core)",
            f"< {BARS[count]:g}",
            found[count]["all"],
            found[count]["all"] < BARS[count],
        )
        for count in counts
        if count in BARS
    ]
    print_bars(console, bars)
    result.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "machine": machine.describe(),
        "load": load,
        "seconds": seconds,
        "pause_s": pause,
        "percent_of_a_core": found,
    }
    result.write_bytes(
        orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    )
    if not all(bar.met for bar in bars):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
