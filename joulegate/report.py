"""What the ledger knows, printed for people (`joulegate energy`) or as JSON (`--json`).

Printed digits follow the quality: an estimate has two, a figure that rests on a counter three. JSON keeps every
microjoule, so that its figures add up.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from proxy.energy import learnt
from proxy.energy.ledger_reader import LedgerReader, worst
from proxy.energy.records import Quality, Waste
from proxy.energy.views import Views, moved

_UNITS = {-6: "µJ", -3: "mJ", 0: "J", 3: "kJ", 6: "MJ", 9: "GJ"}
_CAVEATS = {
    Quality.ESTIMATED: (
        "Estimated: {share} joules come from processor use and a stated wattage, for want of a counter. They are good "
        "for comparing work on this machine, not for saying what it costs."
    ),
    Quality.EMULATED: "Emulated: {share} joules come from a model of a GPU; no hardware has spent them.",
}


def show(
    reader: LedgerReader,
    as_json: bool,
    console: Console,
    pue: Mapping[str, float] | None = None,
    engines: Mapping[str, str] | None = None,
) -> None:
    """Print workflows, devices, waste and savings. Raises LedgerError when the ledger cannot be read.

    `pue` and `engines` (the host of each) are the configuration's, for what the whole machine took.
    """
    workflows, devices = reader.workflows(), reader.balance()
    views = Views(moved(devices), learnt.read(learnt.beside(reader.path)).floors, pue or {}, engines or {})
    workflows: list[dict[str, Any]] = [row | views.of_engines(row.pop("by_engine")) for row in workflows]
    if as_json:
        figures = {"workflows": workflows, "devices": devices, "engines": reader.engines()}
        print(json.dumps(figures, indent=2), file=console.file)
        return
    for caveat in caveats([*workflows, *devices.values()]):
        console.print(caveat)
    if not workflows:
        console.print(f"No workflow has run yet: the ledger {reader.path} holds no request.", markup=False)
    else:
        console.print(workflow_table(workflows))
        if any(row["joules_wasted"] or row["saved_joules"] for row in workflows):
            console.print(worth_table(workflows))
        console.print(waste(workflows))
        if text := savings(workflows):
            console.print(text)
    if devices:
        console.print(device_table(devices))
        for line in whole(views):
            console.print(line, markup=False, highlight=False)
    if (dropped := reader.dropped())[0]:
        text = joules_text(dropped[1] / 1e6, worst(row["quality"] for row in workflows if row["quality"]))
        console.print(f"Of {dropped[0]:,} requests ({text}) only sums are kept: the ledger could not be written then.")


def caveats(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What must be said before any figure: one sentence for each quality that is not a counter's."""
    found = {row["quality"] for row in rows} - {None}
    share = "all" if len(found) == 1 else "some"
    return [text.format(share=share) for quality, text in _CAVEATS.items() if quality in found]


def workflow_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line a workflow, from rows as `LedgerReader.workflows` and `GET /energy/workflows` give them.

    Fits into 80 columns; the quality is in the title, or has a column when there are several.
    """
    qualities = sorted({row["quality"] for row in rows} - {None})
    title = f"Workflows (joules: {qualities[0]})" if len(qualities) == 1 else "Workflows"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("workflow", no_wrap=True)
    for heading in ("runs", "calls", "tokens in", "out", "joules", "a run", "a token", "s a run"):
        table.add_column(heading, justify="right", no_wrap=True)
    if len(qualities) > 1:
        table.add_column("quality")
    several_tenants = len({row["tenant"] for row in rows}) > 1
    for row in rows:
        table.add_row(
            escape(f"{row['tenant']}/{row['workflow']}" if several_tenants else row["workflow"]),
            *(f"{row[key]:,}" for key in ("runs", "requests", "prompt_tokens", "output_tokens")),
            *(joules_text(row[key], row["quality"]) for key in ("joules", "joules_per_run", "joules_per_output_token")),
            "-" if row["mean_duration_s"] is None else f"{row['mean_duration_s']:.1f}",
            *([row["quality"] or "-"] if len(qualities) > 1 else []),
        )
    return table


def worth_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What of each workflow's joules bought nothing, and why, and what the prefix cache saved besides."""
    reasons = [reason.value for reason in Waste if any(row["wasted_by_reason"].get(reason) for row in rows)]
    table = Table(title="Wasted and saved", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("workflow", no_wrap=True)
    for heading in ("joules", "wasted", *reasons, "saved"):
        table.add_column(heading, justify="right", no_wrap=True)
    several_tenants = len({row["tenant"] for row in rows}) > 1
    for row in rows:
        wasted_j, by_reason = row["joules_wasted"], row["wasted_by_reason"]
        table.add_row(
            escape(f"{row['tenant']}/{row['workflow']}" if several_tenants else row["workflow"]),
            joules_text(row["joules"], row["quality"]),
            "-" if wasted_j is None else _percent(wasted_j, row["joules"]),
            *(joules_text(by_reason.get(reason), row["quality"]) for reason in reasons),
            joules_text(row["saved_joules"], row["saved_quality"] or row["quality"]),
        )
    return table


def device_table(devices: Mapping[str, Mapping[str, Any]]) -> Table:
    """What became of each device's counter, in shares of it."""
    table = Table(title="Devices", title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("device")
    for heading in ("counter", "workflows", "idle", "foreign", "gap", "residual"):
        table.add_column(heading, justify="right")
    table.add_column("quality")
    for device, books in devices.items():
        table.add_row(
            escape(device),
            joules_text(books["counter_j"], books["quality"]),
            *(_percent(books[f"{share}_j"], books["counter_j"]) for share in ("workflow", "idle", "foreign", "gap")),
            f"{round(books['residual_j'] * 1e6):,} µJ",
            books["quality"],
        )
    return table


def waste(rows: Sequence[Mapping[str, Any]]) -> str:
    """How much of the workflows' energy bought no answer, in one sentence."""
    known = [row for row in rows if row["joules"] is not None]
    if not known:
        return "No counter saw what these workflows did: name the engines' devices in the configuration."
    wasted_j, total_j = (sum(row[key] for row in known) for key in ("joules_wasted", "joules"))
    if not wasted_j:
        return "No joule went into attempts that bought nothing."
    quality = Quality.ESTIMATED if any(row["quality"] == Quality.ESTIMATED for row in rows) else None
    wasted, total = joules_text(wasted_j, quality), joules_text(total_j, quality)
    return f"{wasted} of {total} ({_percent(wasted_j, total_j)}) went into attempts that bought nothing."


def savings(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the prefix cache saved, in one sentence; empty where it saved nothing."""
    saved_j = sum(row["saved_joules"] or 0.0 for row in rows)
    if not saved_j:
        return ""
    estimated = any(row["saved_quality"] == Quality.ESTIMATED for row in rows)
    why = "by a price that is not fitted to the engine yet" if estimated else "by the engine's fitted price"
    text = joules_text(saved_j, Quality.ESTIMATED if estimated else None)
    return f"{text} were not spent, {why}: prompt tokens found in the prefix cache. No other figure has them in it."


def whole(views: Views) -> list[str]:
    """What a joule of work is in the other views, a line for each host."""
    lines: list[str] = []
    for (host, quality), (active, full) in views.factors.items():
        if full is not None:
            digits = 2 if quality == Quality.ESTIMATED else 3
            above = "" if active is None else f"{active:.2g} J above the loaded idle, and "
            lines.append(f"{host}: a joule of work is {above}{full:.{digits}g} J of the whole machine")
    return lines


def joules_text(joules: float | None, quality: str | None) -> str:
    """Joules with a fitting unit and no more digits than the quality permits; an estimate begins with ≈."""
    if joules is None:
        return "-"
    digits = 2 if quality == Quality.ESTIMATED else 3
    rounded = float(f"{joules:.{digits - 1}e}")
    if abs(rounded) < 1e-6:
        return "0 J"
    exponent = min(9, math.floor(math.log10(abs(rounded))) // 3 * 3)
    scaled = rounded / 10**exponent
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(scaled)) + 1e-9))
    return f"{'≈ ' if quality == Quality.ESTIMATED else ''}{scaled:.{decimals}f} {_UNITS[exponent]}"


def _percent(part_j: float | None, whole_j: float) -> str:
    if part_j is None or not whole_j:
        return "-"
    return f"{float(f'{100 * part_j / whole_j:.1e}'):g} %"
