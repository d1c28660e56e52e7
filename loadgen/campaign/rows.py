"""`trials.csv`: what each trial came to, a row each; what figures, `joulegate compare` and `joulegate gate` read.

Columns: cell, workload, repeat, status (ok, invalid, infeasible, not possible), reason, driver, quality, a column a
knob, then the measures (`loadgen/measures.py`). In a cell of several workloads each has a row of its own beside the
one of them all, named in `of`.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from loadgen.campaign.faults import CampaignError
from loadgen.campaign.folder import Refusal
from loadgen.campaign.grid import Trial
from loadgen.campaign.knobs import KNOBS, Value
from loadgen.measures import MEASURES, Check, Window, measures
from loadgen.record import Result, sum_energy

FIXED = ("cell", "workload", "of", "repeat", "status", "reason", "driver", "quality")


@dataclass(frozen=True, slots=True)
class Row:
    """`of` is the workload whose runs were counted; that of the cell for all of them."""

    cell: str
    workload: str
    of: str
    repeat: int
    status: str
    reason: str = ""
    driver: str = ""
    quality: str = ""  # of the joules: the worst among them
    settings: dict[str, Value] = field(default_factory=dict)
    measures: dict[str, float | None] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def rows_of(trial: Trial, outcome: Result | Refusal, window: Window, check: Check | None = None) -> list[Row]:
    """The rows of a trial: of the cell, and of each workload in a cell of several."""
    cell, settings = trial.cell, dict(trial.cell.settings)
    if isinstance(outcome, Refusal):
        reason = outcome.reason
        return [Row(cell.key, cell.workload, cell.workload, trial.repeat, outcome.status, reason, settings=settings)]
    load = outcome.load
    status, reason = ("ok", "") if load.valid else ("invalid", "; ".join(load.reasons))
    energy = sum_energy(run.energy for run in outcome.runs)
    quality = energy.quality if energy else ""

    def row(of: str, stream: int | None) -> Row:
        found = measures(outcome, window, stream, check)
        return Row(cell.key, cell.workload, of, trial.repeat, status, reason, load.driver, quality, settings, found)

    parts = cell.parts if len(cell.parts) > 1 else ()
    return [row(cell.workload, None), *(row(label, stream) for stream, label in enumerate(parts))]


def write(file: Path, rows: Iterable[Row]) -> int:
    """All of them or nothing; how many there were."""
    kept = list(rows)
    knobs = [knob for knob in KNOBS if any(knob in row.settings for row in kept)]
    part = file.with_name(file.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*FIXED, *knobs, *MEASURES])
        for row in kept:
            settings = [_text(row.settings[knob]) if knob in row.settings else "" for knob in knobs]
            values = [row.measures.get(name) for name in MEASURES]
            writer.writerow([*(getattr(row, name) for name in FIXED), *settings, *values])
    part.replace(file)
    return len(kept)


def read(path: Path) -> list[Row]:
    """The rows of a campaign's folder, or of a file. Raises CampaignError."""
    file = path / "trials.csv" if path.is_dir() else path
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            found = list(csv.DictReader(lines))
    except OSError as error:
        raise CampaignError(
            f"{file} cannot be read: {error.strerror or error}; `joulegate campaign` writes it"
        ) from None
    try:
        return [
            Row(
                **{name: line[name] for name in FIXED if name != "repeat"},
                repeat=int(line["repeat"]),
                settings={knob: yaml.safe_load(line[knob]) for knob in KNOBS if line.get(knob)},
                measures={name: float(line[name]) if line.get(name) else None for name in MEASURES},
            )
            for line in found
        ]
    except (KeyError, ValueError, TypeError, yaml.YAMLError) as error:
        raise CampaignError(f"{file} is no trials.csv of a campaign: {error!r}") from None


def _text(value: Value) -> str:
    return "null" if value is None else str(value)
