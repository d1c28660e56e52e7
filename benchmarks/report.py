"""What a benchmark of proxies found: as tables, as JSON and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.bars import Bar
from benchmarks.measure import Turn
from benchmarks.targets import DIRECT, GATEWAY

_COLUMNS = {
    "cpu_us_request": ("CPU µs", "a request"),
    "cpu_us_chunk": ("CPU µs", "a chunk"),
    "cpu_us_paced_chunk": ("CPU µs", "paced chunk"),
    "requests_s": ("requests/s", ""),
    "chunks_s": ("chunks/s", ""),
    "latency_p50_ms": ("latency ms", "p50"),
    "latency_p99_ms": ("latency ms", "p99"),
    "busy_latency_p99_ms": ("32 clients", "p99 ms"),
    "added_latency_p50_ms": ("added ms", "p50"),
    "added_itl_p50_ms": ("added ITL ms", "p50"),
    "added_itl_p99_ms": ("added ITL ms", "p99"),
    "rss_mib": ("RSS MiB", ""),
    "failures": ("failed", ""),
}
_PANELS = {
    "cpu_us_request": "CPU a request (µs)",
    "cpu_us_chunk": "CPU a streamed chunk (µs)",
    "added_latency_p50_ms": "added latency, one client, p50 (ms)",
    "added_itl_p99_ms": "added inter-token latency,\n64 paced streams, p99 (ms)",
}


def print_figures(console: Console, summary: Mapping[str, Turn]) -> None:
    table = Table(title="medians of all rounds", title_justify="left")
    table.add_column("")
    for heading, unit in _COLUMNS.values():
        table.add_column(f"{heading}\n{unit}", justify="right")
    for name, figures in summary.items():
        table.add_row(name, *(_number(figures.get(figure)) for figure in _COLUMNS))
    console.print(table)


def print_bars(console: Console, bars: Sequence[Bar]) -> None:
    table = Table("", "bar", "", "", title="bars", title_justify="left")
    table.columns[2].header, table.columns[2].justify = "seen", "right"
    marks = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]-[/]"}
    table.add_column("", style="dim")
    for bar in bars:
        table.add_row(bar.what, bar.limit, _number(bar.value), marks[bar.met], bar.note)
    console.print(table)


def write(path: Path, result: Mapping[str, Any]) -> None:
    """The whole result as JSON, in a file that is made with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def plot(path: Path, summary: Mapping[str, Turn], caption: str) -> None:
    """Four panels, one bar a server, on logarithmic axes; the suffix of `path` says in which format."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "joulegate"  # the same figures give the same file
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        shown = [(name, turn[key]) for name, turn in summary.items() if key in turn]
        # A difference can come out at or below zero; a logarithmic axis has no place for it, so its bar is empty.
        widths = [max(value, 0.0) for _, value in shown]
        colours = ["#1f77b4" if name == GATEWAY else "#7f7f7f" if name == DIRECT else "#c7c7c7" for name, _ in shown]
        bars = axes.barh([name for name, _ in shown], widths, color=colours)
        axes.bar_label(bars, labels=[_number(value) for _, value in shown], padding=3)
        axes.set_title(title, fontsize=10)
        axes.invert_yaxis()
        if any(widths):
            axes.set_xscale("log")
            axes.set_xlim(right=max(widths) * 5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _number(value: float | None) -> str:
    """Three digits are more than a shared machine lets anyone believe."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"
