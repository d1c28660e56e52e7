"""Asks a Prometheus every question of the dashboard: `python -m grafana.queries http://127.0.0.1:9090`.

A panel without data looks the same as a panel with a wrong query; this tells them apart before anybody looks.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

DASHBOARD = Path(__file__).parent / "dashboards" / "joulegate.json"


@dataclass(frozen=True)
class Target:
    """One query of one panel, its variables filled in."""

    panel: str
    expr: str
    instant: bool


def targets(dashboard: Path, rate_interval: str, range_: str) -> Iterator[Target]:
    """Every query of the dashboard, with all workflows and engines chosen. Durations as Prometheus writes them."""
    variables = {
        "$__rate_interval": rate_interval,
        "$__range": range_,
        "$workflow": ".*",
        "$engine": ".*",
    }
    for panel in json.loads(dashboard.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expr: str = target["expr"]
            for name, value in variables.items():
                expr = expr.replace(name, value)
            yield Target(panel["title"], expr, target["instant"])


def ask(prometheus_url: str, path: str, **parameters: str) -> Any:
    """`data` of an answer of Prometheus' HTTP API. Raises ValueError with its own words when it refuses."""
    try:
        with urlopen(f"{prometheus_url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as reply:
            return json.load(reply)["data"]
    except HTTPError as error:
        raise ValueError(f"{path} {parameters}: {json.load(error).get('error', error)}") from None


def has_numbers(prometheus_url: str, target: Target, range_s: int) -> bool:
    """Whether the query gives at least one number: now, or within the last `range_s` seconds for a course."""
    if target.instant:
        series = ask(prometheus_url, "query", query=target.expr)["result"]
        values = [one["value"] for one in series]
    else:
        now = time.time()
        span = {"start": f"{now - range_s}", "end": f"{now}", "step": f"{max(1, range_s // 300)}"}
        series = ask(prometheus_url, "query_range", query=target.expr, **span)["result"]
        values = [value for one in series for value in one["values"]]
    return any(math.isfinite(float(value)) for _, value in values)


def unanswered(
    prometheus_url: str, dashboard: Path = DASHBOARD, rate_interval: str = "1m", range_s: int = 1800
) -> list[Target]:
    """The queries that give no number. Raises ValueError for a query that Prometheus does not understand."""
    asked = targets(dashboard, rate_interval, f"{range_s}s")
    return [target for target in asked if not has_numbers(prometheus_url, target, range_s)]


if __name__ == "__main__":
    silent = unanswered(sys.argv[1].rstrip("/"))
    for target in silent:
        print(f"no data: {target.panel}: {target.expr}")
    sys.exit(bool(silent))
