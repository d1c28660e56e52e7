"""`make bench-proxy`: what the gateway adds to an engine, measured in turns with the engine itself and with peers.

A stub engine, the gateway with everything on and every peer that is installed run at once on the loopback; each is
measured in turn in every round (A B C A B C ...), so that a drift of the machine meets all alike. CPU is the measured
server's own, in nanoseconds, so neither the client nor the stub is in it.
"""

import asyncio
import dataclasses
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import psutil
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import machine, report
from benchmarks.bars import check, summarize
from benchmarks.measure import (
    FULL,
    QUICK,
    WAVES,
    NoAnswer,
    Plan,
    Soak,
    Turn,
    Waves,
    idle_cpu_us,
    soak,
    turn,
    warm,
    waves,
)
from benchmarks.processes import ROOT, Process, StartError
from benchmarks.targets import DIRECT, GATEWAY, PROXIES, STUB, Target, start

T = TypeVar("T")
PHASES = 4
OPEN_FILES = 16_384
RESULTS = ROOT / "docs/results/proxy"


class Bench:
    """One run of the benchmark. Every process that it starts is ended by `stop`, whatever happened."""

    def __init__(self, plan: Plan, proxies: Sequence[Target], console: Console) -> None:
        self.plan, self.proxies, self.console = plan, proxies, console
        self.turns: dict[str, list[Turn]] = {}
        self.versions: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.waves: Waves | None = None
        self.soak: Soak | None = None
        self._running: dict[str, Process] = {}
        self._stack = ExitStack()

    def run(self) -> dict[str, Any]:
        """Measure everything; returns the result as it is written. Raises StartError or NoAnswer for the stub or us."""
        began, load, times = datetime.now(UTC), machine.load(), psutil.cpu_times()
        with self._stack:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="joulegate-bench-")))
            self._runner = self._stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            self._start_all()
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
            with Progress(
                *columns, TimeRemainingColumn(), console=self.console, transient=True, speed_estimate_period=600
            ) as progress:
                self._measure(progress)
        summary = summarize(self.turns)
        return {
            "began": began.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
            "plan": self.plan,
            "machine": machine.describe(),
            "load": {"before": load, "after": machine.load()},
            "steal_share": machine.steal_share(times, psutil.cpu_times()),
            "versions": self.versions,
            "skipped": self.skipped,
            "figures": summary,
            "rounds": self.turns,
            "waves": self.waves,
            "soak": self.soak,
            "bars": check(summary, self.waves, self.soak),
        }

    def _start_all(self) -> None:
        for target in (STUB, *self.proxies):
            reason = target.absent()
            if reason is None:
                try:
                    self._running[target.name] = self._start(target, self._stack)
                except StartError as error:
                    if target.name in (DIRECT, GATEWAY):
                        raise
                    reason = str(error)
            if reason is None:
                self.versions[target.name] = target.version()
            else:
                self._skip(target.name, reason)

    def _start(self, target: Target, stack: ExitStack) -> Process:
        engine = self._running.get(DIRECT)
        process = start(target, engine.port if engine else 0, self._folder)
        stack.callback(process.stop)
        return process

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        self.console.print(f"{name} is skipped: {reason}", highlight=False, markup=False, soft_wrap=True)

    def _measure(self, progress: Progress) -> None:
        plan = self.plan
        steps = plan.rounds * len(self._running) * PHASES + WAVES + plan.soak_requests // plan.soak_first
        task = progress.add_task("warm up", total=steps)

        def tick() -> None:
            progress.advance(task)

        idle: dict[str, float] = {}
        for name, process in self._running.items():
            self._runner.run(warm(process, plan))
            idle[name] = self._runner.run(idle_cpu_us(process, plan))
        for number in range(plan.rounds):
            for name in list(self._running):
                progress.update(task, description=f"round {number + 1} of {plan.rounds}: {name}")
                self._take_turn(name, idle[name], tick)
        progress.update(task, description=f"{WAVES} waves of {plan.wave_streams} streams")
        self.waves = self._fresh(waves, tick)
        if plan.soak_requests:
            progress.update(task, description=f"{plan.soak_requests:,} requests")
            self.soak = self._fresh(soak, tick)

    def _take_turn(self, name: str, idle_us: float, tick: Callable[[], None]) -> None:
        process = self._running[name]
        try:
            self.turns.setdefault(name, []).append(self._runner.run(turn(process, idle_us, self.plan, tick)))
        except NoAnswer as error:
            if name in (DIRECT, GATEWAY):
                raise
            # A peer without a whole series of rounds has no place in the table.
            self.turns.pop(name)
            del self._running[name]
            self._skip(name, f"it failed under load: {error}")

    def _fresh(
        self, measure: Callable[[Process, Plan, Callable[[], None]], Coroutine[Any, Any, T]], tick: Callable[[], None]
    ) -> T:
        """A measurement of memory, on a gateway of its own."""
        with ExitStack() as stack:
            gateway = next(target for target in self.proxies if target.name == GATEWAY)
            return self._runner.run(measure(self._start(gateway, stack), self.plan, tick))


def main(
    quick: Annotated[bool, typer.Option("--quick", help="fewer and shorter rounds, for a first look")] = False,
    long: Annotated[bool, typer.Option("--soak", help="also 200,000 requests, to see that memory stays flat")] = False,
    peers: Annotated[bool, typer.Option(help="measure the peers that are installed")] = True,
    out: Annotated[Path, typer.Option(help="folder for the JSON and the plot")] = RESULTS,
) -> None:
    """Measure what the gateway adds, and check it against the bars that it has to meet."""
    console = Console()
    if sys.platform != "linux":
        console.print("This benchmark reads the CPU clocks of other processes, which Linux alone has.")
        raise typer.Exit(1)
    # A gateway has two sockets a stream, and servers inherit our limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, OPEN_FILES), hard), hard))
    # Told to end, we end as by Ctrl-C: in good order, and with all that we started.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    plan = QUICK if quick else FULL
    if long:
        plan = dataclasses.replace(plan, soak_requests=200_000)
    proxies = PROXIES if peers else PROXIES[:1]
    try:
        result = Bench(plan, proxies, console).run()
    except (StartError, NoAnswer) as error:
        console.print(f"bench-proxy: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    publish(result, out, console)


def publish(result: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the tables, and write JSON and plot into `folder` under the time of the measurement."""
    seen = result["machine"]
    caption = f"{result['plan'].name}, {seen['cores']} cores of {seen['cpu']}, {seen['python']}, {result['began']}"
    console.print(f"{caption}; load {result['load']['before'][0]:g} before, steal {result['steal_share']:.1%}")
    report.print_figures(console, result["figures"])
    report.print_bars(console, result["bars"])
    name = result["began"][:19].replace(":", "").replace("T", "-")
    report.write(folder / f"{name}.json", result)
    report.plot(folder / f"{name}.svg", result["figures"], caption)
    console.print(f"written: {folder / name}.json and .svg", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
