"""What `benchmarks/real_gate_sweep.py` measured, as a table and a picture.

    joulegate export EXPORTED --ledger OUT_DIR/ledger.sqlite && cp EXPORTED/runs.csv OUT_DIR
    python benchmarks/real_gate_sweep_table.py OUT_DIR

Reads OUT_DIR/gate_sweep.jsonl and the joules that the gateway attributed to each run. Prints Markdown and
writes `gate_sweep.svg`: joules a run and its latency by the gate's width, each as a part of the widest's.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy import stats

Row = dict[str, Any]


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
    return f"{fmean(values):.4g} ± {half:.2g}"


def attributed_j(runs: Path) -> dict[str, float]:
    """Joules of each cell's runs, by the cell's name."""
    found: dict[str, float] = defaultdict(float)
    with runs.open() as lines:
        for run in csv.DictReader(lines):
            found[run["run"].partition("/")[0]] += float(run["joules"])
    return found


def cells(rows: list[Row]) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["workload"], row["gate"]].append(row)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], -item[0][1])))


def table(rows: list[Row], attributed: dict[str, float]) -> None:
    print("| workload | in flight | repeats | J a run | mJ an output token | run latency (s) | attributed / measured |")
    print("|---|---|---|---|---|---|---|")
    for (workload, gate), tries in cells(rows).items():
        joules = [row["j_per_run"] for row in tries]
        per_token = [1e3 * row["joules"] / row["output_tokens"] for row in tries]
        latency_s = [row["latency_mean_s"] for row in tries]
        own_j = [attributed[f"{row['repeat']}-{gate}-{workload}"] for row in tries]
        part = f"{sum(own_j) / sum(row['joules'] for row in tries):.1%}"
        figures = " | ".join(map(interval, (joules, per_token, latency_s)))
        print(f"| {workload} | {gate} | {len(tries)} | {figures} | {part} |")


def draw(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    found = cells(rows)
    workloads = list(dict.fromkeys(workload for workload, _ in found))
    figure, panes = pyplot.subplots(1, len(workloads), figsize=(3.4 * len(workloads), 3.2), sharey=True)
    for pane, workload in zip(panes, workloads, strict=True):
        gates = sorted(gate for name, gate in found if name == workload)
        for key, label, mark in (("j_per_run", "joules a run", "C3o-"), ("latency_mean_s", "run latency", "C0s--")):
            values = {gate: [row[key] for row in found[workload, gate]] for gate in gates}
            widest = fmean(values[gates[-1]])
            means = [fmean(values[gate]) / widest for gate in gates]
            ends = [stats.t.ppf(0.975, len(values[g]) - 1) * stats.sem(values[g]) / widest for g in gates]
            pane.errorbar(gates, means, ends, fmt=mark, capsize=3, label=label)
        pane.set(title=workload, xlabel="requests in flight, at most", xscale="log")
        pane.set_xticks(gates, [str(gate) for gate in gates], minor=False)
        pane.minorticks_off()
        pane.grid(alpha=0.3)
    panes[0].set_ylabel(f"of what it is at {max(gate for _, gate in found)} in flight")
    panes[0].legend()
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    measured = [json.loads(line) for line in (folder / "gate_sweep.jsonl").read_text().splitlines()]
    table(measured, attributed_j(folder / "runs.csv"))
    draw(measured, folder / "gate_sweep.svg")
