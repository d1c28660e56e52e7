"""Policies against the default and an oracle, in virtual time: `make bench-policies` (BENCH=--quick for a look).

Everything is emulated; of caps and clocks not even the emulator is calibrated. Writes policies.json, table.md and
pictures under docs/results/policies (with --quick, or for some cells, under a temporary folder). What was computed is
kept in .bench-policies, so that a run that was broken off goes on where it was.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine
from benchmarks.policies import report
from benchmarks.policies.bars import bars, change_bars, front_bars
from benchmarks.policies.cells import CELLS, Cell
from benchmarks.policies.change import change
from benchmarks.policies.compare import compare
from benchmarks.policies.front import front
from benchmarks.policies.kept import Kept, Part, complete, of_policies
from benchmarks.policies.parts import MAIN_S, POLICIES, parts
from benchmarks.processes import ROOT

RESULTS = Path("docs/results/policies")
PATIENCES = (0.0, 3.0, 30.0)
SEEDS = 10
CAVEAT = (
    "All joules are emulated: nothing here is a saving on hardware. What power caps and clocks do in the emulator is"
    " uncalibrated."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, patience 3 s, shorter runs: a minute")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--side-seeds", type=int, default=SEEDS, help="seeds where patience is not 3 s")
    parser.add_argument("--patience", type=float, nargs="+", default=PATIENCES, metavar="S", help="3 is always among")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="others are left out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--out", type=Path, help="where the results are written")
    parser.add_argument("--kept", type=Path, default=ROOT / ".bench-policies", help="where parts are kept")
    options = parser.parse_args()
    seeds = min(options.seeds, 2) if options.quick else options.seeds
    patiences, size = ((MAIN_S,), 0.5) if options.quick else (sorted({*options.patience, MAIN_S}), 1.0)
    cells = [cell for cell in CELLS if options.only in str(cell)]
    partial = options.quick or len(cells) < len(CELLS) or seeds < SEEDS
    out = options.out or (Path(tempfile.mkdtemp(prefix="bench-policies-")) if partial else RESULTS)
    console = Console()
    console.print(CAVEAT, style="yellow")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    kept, began = Kept(options.kept), time.time()
    seeds_at = {at: seeds if at == MAIN_S else min(seeds, options.side_seeds) for at in patiences}
    of_cell = {(cell, at): parts(cell, at, seeds_at[at], size, options.policies) for cell in cells for at in patiences}
    follow = Part(f"change, {seeds} seeds", of_policies(), change, (seeds,))
    fronts = Part(f"front, {seeds} seeds", of_policies(), front, (seeds,))
    # What the bars need first, and of that the dear ones, so that nobody waits for them alone in the end.
    order = sorted(of_cell, key=lambda key: (key[1] != MAIN_S, key[0].load != "near", key[0].workload != "summarize"))
    work = [follow, fronts, *(part for key in order for part in of_cell[key])]

    def found(cell: Cell, at: float) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for part in of_cell[cell, at]:
            rows |= kept.read(part)
        return rows

    # Not forked: this process has threads.
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool,
    ):
        task = progress.add_task(f"{len(cells)} cells, {seeds} seeds", total=len(work))

        def told(part: Part) -> None:
            progress.advance(task)
            for (cell, at), mine in of_cell.items():
                if part in mine and all(map(kept.has, mine)):
                    line = _told(compare(cell, {at: found(cell, at)}), at)
                    console.print(f"{time.time() - began:5.0f} s  {line}", highlight=False)

        complete(work, kept, pool, told)
    results = [compare(cell, {at: found(cell, at) for at in patiences}) for cell in cells]
    verdicts = [
        *bars(results, f"{MAIN_S:g}"),
        *change_bars(kept.read(follow)),
        *front_bars(kept.read(fronts)),
    ]
    about = machine.describe()
    data = {
        "caveat": CAVEAT,
        "command": " ".join(("python -m benchmarks.policies", *_asked(sys.argv[1:]))),
        "machine": about,
        "seeds": {f"{at:g}": count for at, count in seeds_at.items()},
        "bars": [bar.__dict__ for bar in verdicts],
        "change": kept.read(follow),
        "front": kept.read(fronts),
        "cells": results,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "policies.json").write_text(json.dumps(report.rounded(data), indent=1) + "\n")
    (out / "table.md").write_text(report.tables(data))
    report.draw(data, out)
    console.print(report.tables(data), markup=False, highlight=False)
    console.print(f"written to {out}")
    return 0 if all(bar.met for bar in verdicts) or partial else 1


def _asked(arguments: list[str]) -> Iterator[str]:
    """Without what changes no figure."""
    words = iter(arguments)
    for word in words:
        if word in ("--out", "--kept", "--jobs"):
            next(words, None)
        else:
            yield word


def _told(cell: dict[str, Any], at: float) -> str:
    rows = cell["patience"][f"{at:g}"]["rows"]
    shown = ", ".join(f"{name} {100 * row['saved']['mean']:.1f} %" for name, row in rows.items() if name != "default")
    return f"{cell['cell']} at {at:g} s: {shown}"


if __name__ == "__main__":
    sys.exit(main())
