"""The lines of a panel: what the repeats of each of its cells came to, by series and knob."""

from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.campaign.definition import Campaign, Panel
from loadgen.campaign.grid import Cell, cells_of
from loadgen.campaign.knobs import KNOBS, Value
from loadgen.campaign.rows import Row
from loadgen.statistics import Interval, mean_interval


@dataclass(frozen=True, slots=True)
class Point:
    """A cell on a line: its repeats' values and their interval, or why it has none.

    `status` is ok, infeasible (an X in the figure), not possible, invalid (no repeat was valid), unknown (nobody could
    measure this here) or not tried.
    """

    x: Value
    cell: Cell
    values: tuple[float, ...]
    interval: Interval | None
    status: str
    reason: str = ""


def knob_of(campaign: Campaign, panel: Panel) -> str:
    """The knob on the axis."""
    return panel.x or next(iter(campaign.sweeps[panel.sweep].knobs))


def panel_cells(campaign: Campaign, panel: Panel) -> dict[str, list[Cell]]:
    """The cells of a panel by series, in the order of its knob.

    A series is a workload; where another knob of the sweep varies too, a workload at one setting of that.
    """
    sweep, x = campaign.sweeps[panel.sweep], knob_of(campaign, panel)
    others = [knob for knob, values in sweep.knobs.items() if knob != x and knob not in panel.only and len(values) > 1]
    found: dict[str, list[Cell]] = {}
    for cell in cells_of(campaign, sweep):
        if all(cell.get(knob) == value for knob, value in panel.only.items()):
            parts = [cell.workload] if len(sweep.workloads) > 1 or not others else []
            found.setdefault(", ".join([*parts, *(_named(knob, cell.get(knob)) for knob in others)]), []).append(cell)
    return found


def _named(knob: str, value: Value) -> str:
    """A word names itself, a number does not."""
    return value if isinstance(value, str) else f"{KNOBS[knob].title.partition(' (')[0]} {value}"


def lines(campaign: Campaign, panel: Panel, rows: Sequence[Row], measure: str) -> dict[str, list[Point]]:
    """A measure of a panel's cells: the points of every series."""
    by_cell: dict[str, list[Row]] = {}
    for row in rows:
        if row.of == row.workload:
            by_cell.setdefault(row.cell, []).append(row)
    x = knob_of(campaign, panel)
    return {
        series: [_point(campaign, cell, cell.get(x), by_cell.get(cell.key, []), measure) for cell in cells]
        for series, cells in panel_cells(campaign, panel).items()
    }


def _point(campaign: Campaign, cell: Cell, x: Value, rows: Sequence[Row], measure: str) -> Point:
    valid = [row for row in rows if row.ok]
    values = tuple(value for row in valid if (value := row.measures.get(measure)) is not None)
    if values:
        return Point(x, cell, values, mean_interval(values, campaign.interval), "ok")
    if valid:
        return Point(x, cell, (), None, "unknown", "nobody could measure this here")
    first = rows[0] if rows else None
    return Point(x, cell, (), None, first.status if first else "not tried", first.reason if first else "")
