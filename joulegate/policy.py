"""What a running gateway's policy does and why (`joulegate policy`), for people or as JSON."""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from proxy.config import ConfigError

_TIMEOUT_S = 10.0
_SHOWN = 10  # of the history


def fetch(url: str, key: str | None) -> dict[str, Any]:
    """What the gateway at `url` says at `/energy/policy`. Raises ConfigError with one line where it does not."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        reply = httpx.get(f"{url.rstrip('/')}/energy/policy", headers=headers, timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"no gateway answers at {url}: {error}") from None
    if reply.status_code in (401, 403):
        raise ConfigError(f"{url} wants the admin key: set JOULEGATE_KEY, or give --key-file")
    if not reply.is_success:
        raise ConfigError(f"{url} answers {reply.status_code}: is it a gateway of this version?")
    return reply.json()


def show(report: Mapping[str, Any], as_json: bool, console: Console) -> None:
    """Print it."""
    if as_json:
        print(json.dumps(report, indent=2), file=console.file)
        return

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    say(f"policy {report['policy']}: {report['standing'].replace('_', ' ')}")
    if report["why"]:
        say(f"  because {report['why']}")
    say(f"  {report['reason'] or 'no reason given'}")
    for about, reason in report["reasons"].items():
        say(f"  {about}: {reason}")
    for line in _devices(report["devices"]):
        say(line)
    if (groups := report["groups"])["count"]:
        say(f"last minute: {groups['count']} groups left the gate, {groups['mean_size']:.3g} requests each")
    if report["measured"]:
        console.print(_measured(report["measured"]))
    if report["history"]:
        console.print(_history(report["history"][:_SHOWN]))


def _devices(devices: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    for name, device in devices.items():
        for one in device["settings"]:
            wanted = "as found" if one["wanted"] is None else f"{one['wanted']:g} {one['unit']}"
            yield f"{name}: {one['what']} {wanted}: {one['effect']}" + (f", {one['reason']}" if one["reason"] else "")
        if device["note"]:
            yield f"{name}: {device['note']}"


def _measured(measured: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="measured, idle included (loads differ: an indication)", box=SIMPLE_HEAD, title_justify="left")
    for column in ("under", "seconds", "requests", "held", "J/request", "J/output token", "mean wait s"):
        table.add_column(column, justify="left" if column == "under" else "right")
    for policy, one in measured.items():
        figures = (one["joules_per_request"], one["joules_per_output_token"], one["mean_wait_s"])
        shown = ("-" if figure is None else f"{figure:.3g}" for figure in figures)
        table.add_row(escape(policy), f"{one['seconds']:.0f}", str(one["requests"]), str(one["requests_held"]), *shown)
    return table


def _history(entries: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title="last decisions", box=SIMPLE_HEAD, title_justify="left")
    for column in ("since", "standing", "reason", "would save W"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        since = time.strftime("%H:%M:%S", time.localtime(entry["t"]))
        worth = entry["preview"]
        saved = "-" if worth is None else f"{worth['saved_w']:.2g} ({worth['low_w']:.2g} to {worth['high_w']:.2g})"
        table.add_row(since, entry["standing"].replace("_", " "), escape(entry["why"] or entry["reason"]), saved)
    return table
