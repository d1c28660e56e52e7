"""One engine alone and behind Parrot, side by side: the table of a folder that `benchmarks/parrot.py` wrote.

    python -m benchmarks.parrot_table FOLDER        # or its trials.csv

In each sweep and at each value of its knob: the mean of the repeats that both have, and the change from the engine
alone to the same behind Parrot, in pairs of repeats with the same runs, with its 95 % interval.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parrot import CAMPAIGN
from loadgen.campaign.definition import Campaign, Sweep, load
from loadgen.campaign.grid import Cell, cells_of
from loadgen.campaign.knobs import KNOBS, Value
from loadgen.campaign.rows import Row, read
from loadgen.statistics import mean_interval, paired_change

SHOWN = {
    "latency_s": "latency of a document (s)",
    "throughput_window_tokens_s": "tokens/s",
    "gpu_joules_per_run": "GPU (J)",
    "cpu_joules_per_run": "CPU (J)",
    "dram_joules_per_run": "DRAM (J)",
}


def table(campaign: Campaign, rows: Sequence[Row]) -> str:
    """Markdown. Only valid trials count; the number of pairs is in the last column."""
    heads = ["", *SHOWN.values(), "pairs"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for sweep in campaign.sweeps.values():
        knob = next(name for name in sweep.knobs if name != "engine")
        for value in sweep.knobs[knob]:
            alone, behind = (_valid(rows, _cell(campaign, sweep, knob, value, engine)) for engine in ("vllm", "parrot"))
            both = sorted(alone.keys() & behind.keys())
            said = [_compared([alone[n] for n in both], [behind[n] for n in both], measure) for measure in SHOWN]
            unit = f" {KNOBS[knob].unit}" if KNOBS[knob].unit else ""
            lines.append(f"| {KNOBS[knob].title} {value}{unit} | {' | '.join(said)} | {len(both)} |")
    return "\n".join(lines)


def _cell(campaign: Campaign, sweep: Sweep, knob: str, value: Value, engine: str) -> Cell:
    return next(cell for cell in cells_of(campaign, sweep) if cell.get(knob) == value and cell.get("engine") == engine)


def _valid(rows: Sequence[Row], cell: Cell) -> dict[int, Row]:
    """By repeat."""
    return {row.repeat: row for row in rows if row.cell == cell.key and row.ok}


def _compared(alone: Sequence[Row], behind: Sequence[Row], measure: str) -> str:
    pairs = [(one.measures.get(measure), other.measures.get(measure)) for one, other in zip(alone, behind, strict=True)]
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    if not known:
        return "not known"
    first, second = ([pair[side] for pair in known] for side in (0, 1))
    change = paired_change(first, second)
    means = " → ".join(f"{mean_interval(values).mean:.4g}" for values in (first, second))
    if change.low is None or change.high is None:
        return f"{means} ({change.share:+.1%})"
    return f"{means} ({change.low:+.1%} to {change.high:+.1%})"


if __name__ == "__main__":
    print(table(load(CAMPAIGN), read(Path(sys.argv[1]))))
