"""`joulegate compare A B`: what changed between two campaigns, with intervals and a verdict in words."""

import dataclasses
import json as encoder
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadgen.campaign.comparison import Difference, differences
from loadgen.campaign.faults import CampaignError
from loadgen.campaign.rows import Row, read
from loadgen.measures import MEASURES

STANDARD = ("joules_per_token", "latency_s", "throughput_tokens_s")


def compared(first: Path, second: Path, measures: Sequence[str]) -> list[Difference]:
    """The differences of two campaigns' folders or trials.csv files.

    Raises CampaignError for one that cannot be read, for a measure that there is not, and where no cell is in both.
    """
    for measure in measures:
        if measure not in MEASURES:
            raise CampaignError(f"there is no measure {measure!r}; there are {', '.join(MEASURES)}")
    before, after = read(first), read(second)
    if not {row.cell for row in before} & {row.cell for row in after}:
        raise CampaignError(f"{first} and {second} have no cell in common")
    same_kind(before, after)
    return differences(before, after, measures or STANDARD)


def same_kind(before: Sequence[Row], after: Sequence[Row]) -> None:
    """Raises CampaignError where emulated joules would be held against a machine's."""
    kinds = [{row.quality == "emulated" for row in rows if row.quality} for rows in (before, after)]
    if all(kinds) and kinds[0] != kinds[1]:
        raise CampaignError("one is emulated and the other is not: a model's figures say nothing of a machine's change")


def show(first: Path, second: Path, measures: Sequence[str], json: bool, out: Console) -> None:
    """Print it, or as JSON. Raises CampaignError."""
    found = compared(first, second, measures)
    if json:
        kept = [{**dataclasses.asdict(one), "verdict": one.verdict} for one in found]
        out.print_json(encoder.dumps(kept))
        return
    out.print(table(found))
    counts = Counter(word(one) for one in found)
    out.print(
        f"{counts['better']} better, {counts['worse']} worse, {counts['no difference shown']} with no difference shown,"
        f" {counts['not compared']} not compared (95 % intervals; p corrected for {len(found)} comparisons)",
        highlight=False,
        soft_wrap=True,
    )


def word(one: Difference) -> str:
    """The verdict in one or two words."""
    if one.change is None or one.p is None:
        return "not compared"
    if not one.is_sure:
        return "no difference shown"
    return {True: "worse", False: "better", None: "different"}[one.is_worse]


def table(found: Sequence[Difference]) -> Table:
    """The differences, a row each."""
    made = Table(box=None, header_style="bold")
    for name in ("cell", "measure", "first", "second", "verdict"):
        made.add_column(name, justify="right" if name in ("first", "second") else "left", overflow="fold")
    shared = _shared([one.cell for one in found])
    for one in found:
        cell = " ".join(part for part in one.cell.split() if part not in shared)
        if one.of != one.cell.split()[0]:
            cell += f" of it {one.of}"
        style = {"worse": "red", "better": "green"}.get(word(one), "")
        figures = ["" if value is None else f"{value:,.4g}" for value in (one.before, one.after)]
        made.add_row(cell, one.measure, *figures, one.verdict, style=style)
    return made


def _shared(cells: Sequence[str]) -> set[str]:
    """The settings that all cells have, which tell none from another."""
    return set.intersection(*(set(cell.split()[1:]) for cell in cells)) if cells else set()
