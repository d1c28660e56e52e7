"""The tables of a campaign as files: trials, runs and requests, in CSV and, where pyarrow is, in Parquet."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loadgen.campaign.definition import Campaign
from loadgen.campaign.folder import Folder, Refusal
from loadgen.campaign.grid import Trial, trials
from loadgen.campaign.rows import Row, rows_of
from loadgen.campaign.rows import write as write_rows
from loadgen.critical_path import critical_path
from loadgen.measures import Check
from loadgen.record import RequestRecord, Result, RunRecord
from loadgen.report.figures import Seen

CALL = ("workflow", "run", "step", "node", "outcome", "intended_s", "started_s", "first_s", "ended_s", "max_tokens")
RUN = ("workflow", "run", "outcome", "intended_s", "started_s", "ended_s", "latency_s", "requests")
TOKENS = ("prompt_tokens", "cached_tokens", "output_tokens")
ENERGY = ("joules", "joules_low", "joules_high", "quality", "active_joules")
OF_A_TRIAL = ("label", "host", "kv_tokens", "books")
COMPONENTS = ("gpu", "cpu", "dram")
ENERGY_COLUMNS = (*ENERGY, *(f"{component}_joules" for component in COMPONENTS))
RUN_COLUMNS = ("cell", "repeat", *RUN, *TOKENS, *ENERGY_COLUMNS, "joules_on_path")
REQUEST_COLUMNS = ("cell", "repeat", *CALL, *TOKENS, *ENERGY_COLUMNS)


@dataclass
class Read:
    """What one reading of a campaign's records gives: rows and what figures need besides, what was kept, and facts."""

    rows: list[Row] = field(default_factory=list)
    hit_rates: dict[str, list[float]] = field(default_factory=dict)
    busy: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)  # what drivers said of what they drove, each once
    temperatures_c: list[float] = field(default_factory=list)
    exact_lengths: bool = True
    start_delay_max_s: float = 0.0
    books: list[bool] = field(default_factory=list)  # of each trial with a gateway: whether its totals are the same

    @property
    def seen(self) -> Seen:
        return Seen(self.rows, self.hit_rates, self.busy)


def write_all(campaign: Campaign, folder: Folder) -> tuple[Read, list[Path]]:
    """Read every trial once; write trials, runs and requests. What was read, and the files."""
    read = Read()
    files = [folder.path / f"{name}.csv" for name in ("trials", "runs", "requests")]
    with ExitStack() as stack:
        writers = []
        for file, columns in zip(files[1:], (RUN_COLUMNS, REQUEST_COLUMNS), strict=True):
            out = stack.enter_context(file.open("w", newline="", encoding="utf-8"))
            writers.append(csv.writer(out, lineterminator="\n"))
            writers[-1].writerow(columns)
        for trial in sorted(trials(campaign), key=lambda trial: (trial.cell.key, trial.repeat)):
            outcome = folder.read(trial)
            if outcome is None:
                continue
            check = Check(campaign.check.latency_s, campaign.check.ttft_s)
            read.rows += rows_of(trial, outcome, campaign.window, check)
            if not isinstance(outcome, Refusal):
                writers[0].writerows(_runs(trial, outcome))
                writers[1].writerows(_requests(trial, outcome))
                _note(read, trial, outcome)
    write_rows(files[0], read.rows)
    if find_spec("pyarrow"):
        files += [_parquet(file) for file in files]
    return read, files


def _runs(trial: Trial, result: Result) -> Iterator[Sequence[Any]]:
    by_run: dict[str, list[RequestRecord]] = {}
    for request in result.requests:
        by_run.setdefault(request.run, []).append(request)
    for run in result.runs:
        path = [request.energy for request in critical_path(by_run.get(run.run, ()))]
        on_path = sum(energy.joules for energy in path if energy) if path and all(path) else None
        yield [*_head(trial), *(getattr(run, name) for name in (*RUN, *TOKENS)), *_energy(run), on_path]


def _requests(trial: Trial, result: Result) -> Iterator[Sequence[Any]]:
    for request in result.requests:
        yield [*_head(trial), *(getattr(request, name) for name in (*CALL, *TOKENS)), *_energy(request)]


def _head(trial: Trial) -> tuple[str, int]:
    return trial.cell.key, trial.repeat


def _energy(record: RunRecord | RequestRecord) -> list[Any]:
    energy = record.energy
    if energy is None:
        return [None] * len(ENERGY_COLUMNS)
    components = [energy.by_component.get(component) for component in COMPONENTS]
    return [*(getattr(energy, name) for name in ENERGY), *components]


def _note(read: Read, trial: Trial, result: Result) -> None:
    key = trial.cell.key
    rates = [
        run.cached_tokens / run.prompt_tokens
        for run in result.runs
        if run.prompt_tokens and run.cached_tokens is not None
    ]
    read.hit_rates.setdefault(key, []).extend(rates)
    if key not in read.busy:
        read.busy[key] = [(one.at_s, one.busy_share) for one in result.samples if one.busy_share is not None]
    read.temperatures_c += [one.temperature_c for one in result.samples if one.temperature_c is not None]
    read.exact_lengths &= result.load.exact_lengths
    read.start_delay_max_s = max(read.start_delay_max_s, result.load.start_delay_max_s or 0.0)
    if books := result.load.facts.get("books"):
        read.books.append(books["agrees"])
    facts = {name: value for name, value in result.load.facts.items() if name not in OF_A_TRIAL}
    if facts not in read.facts:
        read.facts.append(facts)


def _parquet(file: Path) -> Path:
    from pyarrow import csv as arrow
    from pyarrow import parquet

    target = file.with_suffix(".parquet")
    parquet.write_table(arrow.read_csv(file), target)
    return target
