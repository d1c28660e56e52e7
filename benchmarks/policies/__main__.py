"""Policies against the default and an oracle, in virtual time: `make bench-policies` (BENCH=--quick for a look).

Everything is emulated; of caps and clocks not even the emulator is calibrated. Writes policies.json, table.md and
pictures under docs/results/policies (with --quick under a temporary folder).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.policies import report
from benchmarks.policies.bars import bars, front_bars
from benchmarks.policies.cells import CELLS
from benchmarks.policies.change import change
from benchmarks.policies.compare import MAIN_S, compare
from benchmarks.policies.front import front

RESULTS = Path("docs/results/policies")
PATIENCES = (0.0, 3.0, 30.0)
CAVEAT = (
    "All joules are emulated: nothing here is a saving on hardware. What power caps and clocks do in the emulator is"
    " uncalibrated."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, patience 3 s, shorter runs: two minutes")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seeds = min(options.seeds, 2) if options.quick else options.seeds
    patiences, size = ((MAIN_S,), 0.5) if options.quick else (PATIENCES, 1.0)
    cells = [cell for cell in CELLS if options.only in str(cell)]
    partial = options.quick or len(cells) < len(CELLS) or seeds < 10
    out = options.out or (Path(tempfile.mkdtemp(prefix="bench-policies-")) if partial else RESULTS)
    console = Console()
    console.print(CAVEAT, style="yellow")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    began, found = time.time(), {}
    with Progress(*columns, console=console) as progress, ProcessPoolExecutor(options.jobs) as pool:
        task = progress.add_task(f"{len(cells)} cells, {seeds} seeds", total=len(cells) + 2)
        # The dear ones first, so that nobody waits for them alone in the end.
        order = sorted(cells, key=lambda cell: (cell.load != "near", cell.workload != "summarize"))
        follow, fronts = pool.submit(change, seeds), pool.submit(front, seeds)
        waiting = {pool.submit(compare, cell, patiences, seeds, size): cell for cell in order}
        for done in as_completed([*waiting, follow, fronts]):
            if done in waiting:
                found[waiting[done]] = done.result()
                progress.console.print(f"{time.time() - began:5.0f} s  {_told(found[waiting[done]])}", highlight=False)
            progress.advance(task)
    results: list[dict[str, Any]] = [found[cell] for cell in cells]
    verdicts = [*bars(results, f"{MAIN_S:g}"), *front_bars(fronts.result())]
    data = {
        "caveat": CAVEAT,
        "command": "python -m benchmarks.policies " + " ".join(sys.argv[1:]),
        "seeds": seeds,
        "seconds": round(time.time() - began),
        "bars": [bar.__dict__ for bar in verdicts],
        "change": follow.result(),
        "front": fronts.result(),
        "cells": results,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "policies.json").write_text(json.dumps(data, indent=1) + "\n")
    (out / "table.md").write_text(report.tables(data))
    report.draw(data, out)
    console.print(report.tables(data), markup=False, highlight=False)
    console.print(f"written to {out}")
    return 0 if all(bar.met for bar in verdicts) or partial else 1


def _told(cell: dict[str, Any]) -> str:
    rows = cell["patience"][f"{MAIN_S:g}"]["rows"]
    names = [name for name in rows if name != "default"]
    return f"{cell['cell']}: " + ", ".join(f"{name} {100 * rows[name]['saved']['mean']:.1f} %" for name in names)


if __name__ == "__main__":
    sys.exit(main())
