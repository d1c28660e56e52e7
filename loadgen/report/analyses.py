"""Tables over a whole sweep: an energy model, shares of variance, what workloads cost beside each other."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from loadgen.campaign.definition import Analysis, Campaign
from loadgen.campaign.grid import Cell, cells_of
from loadgen.campaign.knobs import Value
from loadgen.campaign.rows import Row
from loadgen.energy_model import EnergyModel, fit
from loadgen.measures import MEASURES
from loadgen.statistics import Interval, mean_interval, paired_change
from loadgen.variance import Share, shares

LENGTHS = ("input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Section:
    """A table with what it shows; no rows, and the text says why, where there is nothing to show."""

    name: str
    title: str
    paper: str
    text: str
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    def write(self, folder: Path) -> Path:
        """The table as CSV."""
        file = folder / f"{self.name}.csv"
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(self.heads)
            writer.writerows(self.rows)
        return file


def section(campaign: Campaign, analysis: Analysis, rows: Sequence[Row]) -> Section:
    """The section of an analysis."""
    values: dict[tuple[str, str], dict[int, float]] = {}  # by cell and workload of it: repeats
    for row in rows:
        value = row.measures.get(analysis.measure)
        if row.ok and value is not None:
            values.setdefault((row.cell, row.of), {})[row.repeat] = value
    made = {"energy model": _energy_model, "variance": _variance, "interference": _interference}[analysis.kind]
    return made(campaign, analysis, values)


Values = Mapping[tuple[str, str], Mapping[int, float]]


def _energy_model(campaign: Campaign, analysis: Analysis, values: Values) -> Section:
    sweep = campaign.sweeps[analysis.sweep]
    others = [knob for knob in sweep.knobs if knob not in LENGTHS]
    groups: dict[str, list[Cell]] = {}
    for cell in cells_of(campaign, sweep):
        name = ", ".join(f"{knob} {cell.get(knob)}" for knob in others) or "all"
        groups.setdefault(name, []).append(cell)
    found: list[tuple[str, ...]] = []
    why = ""
    for name, cells in groups.items():
        try:
            models = _models(cells, values)
        except ValueError as error:
            why += f" For {name}: {error}."
            continue
        columns = [
            _figure(mean_interval([getattr(one, term) for one in models], campaign.interval))
            for term in ("prompt_mj", "output_mj", "pair_mj", "r2")
        ]
        found.append((name, *columns, str(models[0].n)))
    heads = ("for", "mJ a prompt token", "mJ an output token", "mJ a pair of them", "R²", "cells")
    text = (
        "Joules of a request = a · tokens in + b · tokens out + c · in · out, by least squares over the cells of each"
        f" repeat; intervals are over repeats.{why}"
    )
    return Section("energy_model", "Energy model", analysis.paper, text, heads, tuple(found))


def _models(cells: Sequence[Cell], values: Values) -> list[EnergyModel]:
    """One a repeat that has all cells."""
    seen = [(cell, values.get((cell.key, cell.workload), {})) for cell in cells]
    repeats = sorted(set.intersection(*(set(by_repeat) for _, by_repeat in seen)))
    if not repeats:
        raise ValueError("no repeat has all cells")
    prompts, outputs = ([_number(cell.get(knob)) for cell in cells] for knob in LENGTHS)
    return [fit(prompts, outputs, [by_repeat[repeat] for _, by_repeat in seen]) for repeat in repeats]


def _variance(campaign: Campaign, analysis: Analysis, values: Values) -> Section:
    sweep = campaign.sweeps[analysis.sweep]
    factors: dict[str, Sequence[Value]] = {"workload": sweep.workloads, **sweep.knobs}
    factors = {name: levels for name, levels in factors.items() if len(levels) > 1}
    name, title = f"variance_{analysis.measure}", f"Which knob matters: {MEASURES[analysis.measure].title}"
    cells = {
        tuple(cell.workload if name == "workload" else cell.get(name) for name in factors): cell
        for cell in cells_of(campaign, sweep)
    }
    order = [cells[levels] for levels in product(*factors.values())]
    seen = [values.get((cell.key, cell.workload), {}) for cell in order]
    repeats = sorted(set.intersection(*(set(by_repeat) for by_repeat in seen)))
    if not repeats:
        text = "No repeat has all cells of the grid, so there is nothing to share out."
        return Section(name, title, analysis.paper, text)
    table = np.array([[by_repeat[repeat] for repeat in repeats] for by_repeat in seen])
    try:
        found = shares(table.reshape(*(len(levels) for levels in factors.values()), len(repeats)), list(factors))
    except ValueError as error:
        return Section(name, title, analysis.paper, f"{error}.")
    rows = tuple((_factors(one), f"{one.share:.1%}", _band(one)) for one in found)
    text = (
        f"Shares of the variance of the logarithm over {len(order)} cells and {len(repeats)} repeats; 95 % intervals by"
        " the bootstrap over repeats. A pair is what two factors do together beyond what each does alone. They hold for"
        " the values that were swept: a wider grid gives a knob more."
    )
    return Section(name, title, analysis.paper, text, ("factor", "share", "interval"), rows)


def _factors(one: Share) -> str:
    return " × ".join(one.factors) or "the rest, chance among it"


def _band(one: Share) -> str:
    return "" if one.low is None or one.high is None else f"{one.low:.1%} to {one.high:.1%}"


def _interference(campaign: Campaign, analysis: Analysis, values: Values) -> Section:
    """A row a workload at one setting of the knobs: alone, then the change beside each other workload."""
    cells = cells_of(campaign, campaign.sweeps[analysis.sweep])
    alone = [cell for cell in cells if len(cell.parts) == 1]
    beside = {(cell.parts, cell.settings): cell for cell in cells if len(cell.parts) == 2}
    others = list(dict.fromkeys(cell.workload for cell in alone))
    found: list[tuple[str, ...]] = []
    for cell in alone:
        own = values.get((cell.key, cell.workload), {})
        swept = {knob: cell.get(knob) for knob in campaign.sweeps[analysis.sweep].knobs}
        name = ", ".join([cell.workload, *(f"{knob} {value}" for knob, value in swept.items())])
        row = [name, _figure(mean_interval(list(own.values()), campaign.interval)) if own else "not known"]
        for other in others:
            pairs = [(cell.workload, other), (other, cell.workload)]
            both = next((beside[pair, cell.settings] for pair in pairs if (pair, cell.settings) in beside), None)
            row.append(_beside(own, values.get((both.key, cell.workload), {})) if both else "")
        found.append(tuple(row))
    unit = MEASURES[analysis.measure].unit
    heads = ("workload", f"alone{f', {unit}' if unit else ''}", *(f"beside {other}" for other in others))
    text = (
        f"{MEASURES[analysis.measure].title}, alone and as a change of it beside each other workload, which has as many"
        " users of its own; 95 % intervals of pairs of repeats."
    )
    return Section("interference", "What workloads cost beside each other", analysis.paper, text, heads, tuple(found))


def _beside(alone: Mapping[int, float], beside: Mapping[int, float]) -> str:
    repeats = sorted(alone.keys() & beside.keys())
    if not repeats or min(*alone.values(), *beside.values()) <= 0:
        return "not known"
    change = paired_change([alone[repeat] for repeat in repeats], [beside[repeat] for repeat in repeats])
    if change.low is None or change.high is None:
        return f"{change.share:+.0%}"
    return f"{change.share:+.0%} ({change.low:+.0%} to {change.high:+.0%})"


def _figure(one: Interval) -> str:
    if one.low is None or one.high is None:
        return f"{one.mean:.4g}"
    return f"{one.mean:.4g} ({one.low:.4g} to {one.high:.4g})"


def _number(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
