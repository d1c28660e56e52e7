"""The demo: a gateway, a small model and the four workloads, and at the end where the joules went.

Everything runs in processes that are started here and gone at the end, whatever happens: the gateway (which owns the
model's process) and Locust, one after the other.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from joulegate.report import caveats, joules_text, workflow_table
from joulegate.serve import bind, url_of
from proxy.config import ConfigError, Listen

USERS = 4
COMPARED = (1, 4)  # users, so requests in flight, of the comparison
COMPARED_RUNS = 8
SETTLE_S = 20.0
START_S = 600.0  # the first time, the model has to be fetched


@dataclass
class Gateway:
    """A running gateway and how to ask it."""

    process: subprocess.Popen[bytes]
    url: str

    def get(self, path: str) -> Any:
        """The JSON at `path`. Raises ConfigError when the gateway has ended, OSError when it does not answer."""
        if self.process.poll() is not None:
            raise ConfigError(f"the gateway ended by itself (exit {self.process.returncode}); see gateway.log")
        with urllib.request.urlopen(self.url + path, timeout=10) as reply:
            return json.load(reply)

    def workflows(self) -> list[dict[str, Any]]:
        return self.get("/energy/workflows")["workflows"]


def run(seconds: int, port: int, folder: Path, console: Console) -> None:
    """The whole demo. `seconds` is the length of the load; results go to `folder`. Raises ConfigError."""
    folder.mkdir(parents=True, exist_ok=True)
    with _gateway(folder, port, console) as gateway:
        balance = gateway.get("/energy/balance")
        for line in caveats(balance.values()):
            console.print(line, style="yellow", highlight=False)
        console.print(f"Gateway on {gateway.url}/v1; the load: four workloads by {USERS} users for {seconds} s.\n")
        _load(gateway, folder, console, seconds)
        comparison = _compare(gateway, folder, console)
        _settle(gateway)
        summary = _summary(gateway, comparison)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _tell(summary, folder, console)


# The processes -------------------------------------------------------------------------------------------------------


@contextmanager
def _gateway(folder: Path, port: int, console: Console) -> Iterator[Gateway]:
    sock = bind(Listen(port=port), or_another=True)
    url, (host, taken) = url_of(sock), sock.getsockname()[:2]
    sock.close()
    config = folder / "joulegate.yaml"
    ledger = folder / "ledger.sqlite"
    if ledger.exists():
        raise ConfigError(f"{folder} holds an earlier demo; give another folder with --out")
    settings = {
        "listen": {"host": host, "port": taken},
        "engines": [{"name": "embedded", "kind": "embedded"}],
        "ledger": {"path": str(ledger)},
    }
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    with (folder / "gateway.log").open("wb") as log:
        command = [sys.executable, "-m", "joulegate", "serve", "-c", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        gateway = Gateway(process, url)
        try:
            with console.status("Starting the gateway and a small model (the first time, 98 MB are fetched) ..."):
                _wait_ready(gateway, folder)
            yield gateway
        finally:
            _end(process)


def _wait_ready(gateway: Gateway, folder: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if gateway.process.poll() is not None:
            last = (folder / "gateway.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise ConfigError(f"the gateway did not start: {last[0] if last else 'it said nothing'}")
        try:
            gateway.get("/readyz")
            return
        except OSError:  # not listening yet, or 503: no engine is up
            time.sleep(0.2)
    raise ConfigError(f"the gateway is not ready after {START_S:g} s; see {folder / 'gateway.log'}")


@contextmanager
def _locust(gateway: Gateway, folder: Path, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    spec = find_spec("loadgen")
    assert spec and spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "locustfile.py"
    command = [sys.executable, "-m", "locust", "-f", str(file), "--headless", "--host", gateway.url, "--only-summary"]
    command += ["--exit-code-on-error", "1", "--csv", str(folder / name), *options]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        finally:
            _end(process)
    if process.returncode:
        raise ConfigError(f"the load {name} had failures (exit {process.returncode}); see {folder / name}.log")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# The load ------------------------------------------------------------------------------------------------------------


def _load(gateway: Gateway, folder: Path, console: Console, seconds: int) -> None:
    """All four workloads at once, with a live table."""
    bar = _bar()
    task = bar.add_task("four workloads", total=seconds)
    options = ("--users", str(USERS), "--spawn-rate", "4", "--run-time", f"{seconds}s", "--workload", "all")
    began = time.monotonic()
    with _locust(gateway, folder, "load", *options) as process, Live(console=console, refresh_per_second=4) as live:
        while process.poll() is None:
            bar.update(task, completed=min(seconds, time.monotonic() - began))
            live.update(Group(workflow_table(gateway.workflows()), bar))
            time.sleep(0.5)
        live.update(Group(workflow_table(gateway.workflows()), bar))


def _compare(gateway: Gateway, folder: Path, console: Console) -> list[dict[str, Any]]:
    """The same search runs with one and with four in flight."""
    console.print("\nThe same search work again, first one request at a time, then four in flight:")
    names: dict[int, str] = {}
    for users in COMPARED:
        name = names[users] = f"search-x{users}"
        bar = _bar()
        task = bar.add_task(name, total=COMPARED_RUNS)
        options = ("--users", str(users), "--spawn-rate", "10", "--workload", "search", "--seed", "1")
        options += ("--max-runs", str(COMPARED_RUNS), "--run-name", name)
        with _locust(gateway, folder, name, *options) as process, Live(bar, console=console, refresh_per_second=4):
            while process.poll() is None:
                done = sum(row["runs"] for row in gateway.workflows() if row["workflow"] == name)
                bar.update(task, completed=max(0, done - users))
                time.sleep(0.5)
            bar.update(task, completed=COMPARED_RUNS)
    _settle(gateway)
    rows = {row["workflow"]: row for row in gateway.workflows()}
    keys = ("runs", "requests", "output_tokens", "joules", "joules_per_run", "mean_duration_s", "quality")
    return [{"in_flight": users, **{key: rows[names[users]][key] for key in keys}} for users in COMPARED]


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
        table.add_row(str(row["in_flight"]), str(row["runs"]), joules, f"{row['mean_duration_s']:.1f}")
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
    quality = max(summary["quality"], default=None)
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
    most = max(summary["workflows"], key=lambda row: row["joules"], default=None)
    top = f"; {most['workflow']} took most of it, {part(total, most['joules'])}" if most else ""
    return f"Of {joules_text(total, quality)}, {', '.join(parts)}{top}."


def part(total: float, some: float) -> str:
    return f"{100 * some / total:.0f} %"
