"""The demo: a gateway, a small model and the four workloads, and at the end where the joules went.

Everything runs in processes that are started here and gone at the end, whatever happens: the gateway (which owns the
model's process) and Locust, one after the other.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Self

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from joulegate.report import caveats, joules_text, workflow_table
from joulegate.serve import bind, url_of
from proxy.config import ConfigError, Listen
from proxy.energy.ledger_reader import worst

USERS = 4
COMPARED = (1, 4)  # users, so requests in flight, of the comparison
COMPARED_RUNS = 8
WARM_UP = "warm-up"
WARMED = (
    f"Before the first row the same prompts were sent once by {COMPARED[-1]} users (workflow {WARM_UP!r}), and before "
    "the second row they were sent by the first: both meet a warm prefix cache, as cached_tokens shows."
)
SETTLE_S = 20.0
START_S = 600.0  # the first time, the model has to be fetched
STARTING = {
    "embedded": "Starting the gateway and a small model (the first time, 98 MB are fetched) ...",
    "emulated": "Starting the gateway and an emulated GPU host ...",
}
EMULATED_START_S = 60.0


class NoAnswer(ConfigError):
    """The gateway runs, and does not answer as it should."""


class Processes:
    """The processes of a demo, which end with it. Each has a session of its own, so nobody else would end them.

    Inside `with`, a signal to end becomes a SystemExit, once, and never between the start of a process and our knowing
    it: whatever cleans up is run, and not cut off.
    """

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[bytes]] = []
        self._before: dict[int, Any] = {}
        self._busy = False
        self._told: int | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                self._before[number] = signal.signal(number, self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        self._busy = True
        for process in reversed(self._all):
            end(process)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, command: Sequence[str], log: BinaryIO) -> subprocess.Popen[bytes]:
        self._busy = True
        try:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            self._all.append(process)
        finally:
            self._busy = False
        if self._told is not None:
            raise SystemExit(128 + self._told)
        return process

    def _tell(self, number: int, frame: FrameType | None) -> None:
        if self._told is None:
            self._told = number
            if not self._busy:
                raise SystemExit(128 + number)


@dataclass
class Gateway:
    """A running gateway and how to ask it."""

    process: subprocess.Popen[bytes]
    url: str

    def get(self, path: str) -> Any:
        """The JSON at `path`. Raises ConfigError when the gateway has ended, NoAnswer when it does not answer."""
        if self.process.poll() is not None:
            raise ConfigError(f"the gateway ended by itself (exit {self.process.returncode}); see gateway.log")
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as reply:
                return json.load(reply)
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = " ".join(str(error).split())
            raise NoAnswer(f"the gateway does not answer {path} ({why}); see gateway.log") from None

    def workflows(self) -> list[dict[str, Any]]:
        return self.get("/energy/workflows")["workflows"]


def run(seconds: int, port: int, folder: Path, console: Console, engine: str = "embedded") -> None:
    """The whole demo. `seconds` is the length of the load; results go to `folder`. Raises ConfigError.

    `engine` is "embedded", a small model that this machine runs, or "emulated", a GPU host that it does not have.
    """
    if engine not in STARTING:
        raise ConfigError(f"no engine for the demo is called {engine!r}: {' or '.join(STARTING)} would be right")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _run(seconds, port, folder, console, engine)
    except OSError as error:
        raise ConfigError(f"the demo cannot go on: {error}") from None


def _run(seconds: int, port: int, folder: Path, console: Console, engine: str) -> None:
    with Processes() as processes, _gateway(processes, folder, port, console, engine) as gateway:
        balance = gateway.get("/energy/balance")
        for line in caveats(balance.values()):
            console.print(line, style="yellow", highlight=False)
        console.print(f"Gateway on {gateway.url}/v1; the load: four workloads by {USERS} users for {seconds} s.\n")
        _load(processes, gateway, folder, console, seconds)
        comparison = _compare(processes, gateway, folder, console)
        _settle(gateway)
        summary = _summary(gateway, comparison)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _tell(summary, folder, console)


# The processes -------------------------------------------------------------------------------------------------------


@contextmanager
def _gateway(
    processes: Processes, folder: Path, port: int, console: Console, engine: str = "embedded"
) -> Iterator[Gateway]:
    sock = bind(Listen(port=port), or_another=True)
    url, (host, taken) = url_of(sock), sock.getsockname()[:2]
    sock.close()
    config = folder / "joulegate.yaml"
    ledger = folder / "ledger.sqlite"
    if ledger.exists():
        raise ConfigError(f"{folder} holds an earlier demo; give another folder with --out")
    settings = {"listen": {"host": host, "port": taken}, "ledger": {"path": str(ledger)}}
    if engine == "emulated":
        settings |= _emulated_host(processes, folder)
    else:
        settings |= {"engines": [{"name": "embedded", "kind": "embedded"}]}
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    with (folder / "gateway.log").open("wb") as log:
        command = [sys.executable, "-m", "joulegate", "serve", "-c", str(config)]
        process = processes.start(command, log)
        try:
            gateway = Gateway(process, url)
            with console.status(STARTING[engine]):
                _wait_ready(gateway, folder)
            yield gateway
        finally:
            end(process)


def _emulated_host(processes: Processes, folder: Path) -> dict[str, Any]:
    """Start an emulated GPU host; what it says at its end is what a gateway's configuration needs of it."""
    path = folder / "emulate.log"
    with path.open("wb") as log:
        process = processes.start(
            [sys.executable, "-m", "joulegate", "emulate", "--port", "0", "--zeusd-port", "0"], log
        )
    until = time.monotonic() + EMULATED_START_S
    while time.monotonic() < until:
        said = path.read_text(errors="replace")
        if said.endswith("}\n"):
            return yaml.safe_load(said[said.index("hosts: ") :])
        if process.poll() is not None:
            raise ConfigError(f"the emulated host did not start: {' '.join(said.split())}")
        time.sleep(0.05)
    raise ConfigError(f"the emulated host is not ready after {EMULATED_START_S:g} s; see {path}")


def _wait_ready(gateway: Gateway, folder: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if gateway.process.poll() is not None:
            last = (folder / "gateway.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise ConfigError(f"the gateway did not start: {last[0] if last else 'it said nothing'}")
        try:
            gateway.get("/readyz")
            return
        except NoAnswer:  # not listening yet, or 503: no engine is up
            time.sleep(0.2)
    raise ConfigError(f"the gateway is not ready after {START_S:g} s; see {folder / 'gateway.log'}")


@contextmanager
def _locust(
    processes: Processes, gateway: Gateway, folder: Path, name: str, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    spec = find_spec("loadgen")
    assert spec and spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "locustfile.py"
    command = [sys.executable, "-m", "locust", "-f", str(file), "--headless", "--host", gateway.url, "--only-summary"]
    command.append("--no-joules")  # they are asked for at the end, all at once
    command += ["--exit-code-on-error", "1", "--csv", str(folder / name), *options]
    with (folder / f"{name}.log").open("wb") as log:
        process = processes.start(command, log)
        try:
            yield process
        finally:
            end(process)
    if process.returncode:
        raise ConfigError(f"the load {name} had failures (exit {process.returncode}); see {folder / name}.log")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and end it with all that it started when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# The load ------------------------------------------------------------------------------------------------------------


def _load(processes: Processes, gateway: Gateway, folder: Path, console: Console, seconds: int) -> None:
    """All four workloads at once, with a live table."""
    bar = _bar()
    task = bar.add_task("four workloads", total=seconds)
    options = ("--users", str(USERS), "--spawn-rate", "4", "--run-time", f"{seconds}s", "--workload", "all")
    began = time.monotonic()
    locust = _locust(processes, gateway, folder, "load", *options)
    with locust as process, Live(console=console, refresh_per_second=4) as live:
        while process.poll() is None:
            bar.update(task, completed=min(seconds, time.monotonic() - began))
            live.update(Group(workflow_table(gateway.workflows()), bar))
            time.sleep(0.5)
        live.update(Group(workflow_table(gateway.workflows()), bar))


def _compare(processes: Processes, gateway: Gateway, folder: Path, console: Console) -> list[dict[str, Any]]:
    """The same search runs with one and with four in flight, neither of them the first to bring its prompts."""
    console.print("\nThe same search work again, first one request at a time, then four in flight:")
    names = {users: f"search-x{users}" for users in COMPARED}
    _search(processes, gateway, folder, console, COMPARED[-1], WARM_UP)
    for users, name in names.items():
        _search(processes, gateway, folder, console, users, name)
    _settle(gateway)
    rows = {row["workflow"]: row for row in gateway.workflows()}
    keys = ("runs", "requests", "prompt_tokens", "cached_tokens", "output_tokens")
    keys += ("joules", "joules_per_run", "mean_duration_s", "quality")
    return [{"in_flight": users, **{key: rows[name][key] for key in keys}} for users, name in names.items()]


def _search(processes: Processes, gateway: Gateway, folder: Path, console: Console, users: int, name: str) -> None:
    """The search work that is compared, always the same prompts, as runs of workflow `name`."""
    bar = _bar()
    task = bar.add_task(f"{name:10}", total=COMPARED_RUNS)
    options = ("--users", str(users), "--spawn-rate", "10", "--workload", "search", "--seed", "1")
    options += ("--max-runs", str(COMPARED_RUNS), "--run-name", name)
    locust = _locust(processes, gateway, folder, name, *options)
    with locust as process, Live(bar, console=console, refresh_per_second=4):
        while process.poll() is None:
            bar.update(task, completed=max(0, _runs(gateway, name) - users))
            time.sleep(0.5)
        bar.update(task, completed=COMPARED_RUNS)


def _runs(gateway: Gateway, workflow: str) -> int:
    return sum(row["runs"] for row in gateway.workflows() if row["workflow"] == workflow)


def _settle(gateway: Gateway) -> None:
    """Wait until every run has its last joule."""
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until:
        runs = gateway.get("/energy/runs?limit=1000")["runs"]
        if all(row["state"] == "final" for row in runs):
            return
        time.sleep(0.5)


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())


# What it says --------------------------------------------------------------------------------------------------------


def _summary(gateway: Gateway, comparison: list[dict[str, Any]]) -> dict[str, Any]:
    balance = gateway.get("/energy/balance")
    return {
        "quality": sorted({device["quality"] for device in balance.values()}),
        "balance": balance,
        "workflows": gateway.workflows(),
        "comparison": comparison,
        "comparison_warm_up": WARMED,
    }


def _tell(summary: dict[str, Any], folder: Path, console: Console) -> None:
    console.record = True
    console.print()
    for line in caveats(summary["balance"].values()):
        console.print(line, style="yellow", highlight=False)
    console.print(workflow_table(summary["workflows"]))
    console.print(where_they_went(summary), highlight=False)
    table = Table(title="The same search work", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("in flight", "runs", "joules a run", "seconds a run"):
        table.add_column(heading, justify="right")
    for row in summary["comparison"]:
        joules = joules_text(row["joules_per_run"], row["quality"])
        seconds = "-" if row["mean_duration_s"] is None else f"{row['mean_duration_s']:.1f}"
        table.add_row(str(row["in_flight"]), str(row["runs"]), joules, seconds)
    console.print(table)
    (folder / "summary.svg").write_text(_picture(console))
    console.print(f"Everything is in {folder}: summary.json and .svg, the ledger, the logs, Locust's statistics.")
    console.print(f"Ask the ledger again: joulegate energy --ledger {folder / 'ledger.sqlite'}", soft_wrap=True)
    console.print("Next: `joulegate serve` for your own application; README.md says how to tag its calls.")


def _picture(console: Console) -> str:
    """What was printed, as an SVG that fetches nothing: the viewer's own monospaced font will do."""
    return re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="joulegate demo"), flags=re.DOTALL)


def where_they_went(summary: dict[str, Any]) -> str:
    """In one sentence, what became of all joules of the demo."""
    devices = summary["balance"].values()
    total = sum(device["counter_j"] for device in devices)
    quality = worst(summary["quality"])
    if total <= 0:
        return "No counter moved: this machine's joules are not known."
    parts = [
        f"{part(total, sum(device[key] or 0 for device in devices))} {words}"
        for key, words in (
            ("workflow_j", "went into requests"),
            ("idle_j", "were spent with nothing in flight"),
            ("foreign_j", "into work that did not come through the gateway"),
            ("gap_j", "while nobody could look"),
            ("open_j", "are not settled yet"),
        )
        if sum(device[key] or 0 for device in devices) > 0.005 * total
    ]
    most = max((row for row in summary["workflows"] if row["joules"]), key=lambda row: row["joules"], default=None)
    top = f"; the largest part, {part(total, most['joules'])}, by {most['workflow']}" if most else ""
    return f"Of {joules_text(total, quality)}, {', '.join(parts)}{top}."


def part(total: float, some: float) -> str:
    return f"{100 * some / total:.0f} %"
