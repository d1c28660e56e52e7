"""What `benchmarks/real_policies.py` measured, as tables and a picture.

    python benchmarks/real_policies_table.py OUT_DIR

Reads OUT_DIR/trials.jsonl; prints tables in Markdown and writes `front.svg`: saving against mean latency, by rate.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from math import ceil, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Row = dict[str, Any]
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}  # 95 %, two-sided, by the number of values
BAR = 0.9  # of the 3 s window's saving


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines() if line]


def name(row: Row) -> str:
    return row["rule"] if row["rule"] == "default" else f"{row['rule']} {row['seconds_held']:g} s"


def savings(rows: Sequence[Row], rate: float) -> dict[str, list[tuple[float, float]]]:
    """By rule, for each trial: the part of the default's joules in the same repeat that it saved, and mean latency."""
    rows = [row for row in rows if row["rates"] == {"search": rate}]
    default_j: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row["rule"] == "default":
            default_j[row["repeat"]].append(row["joules"])
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        saved = 1 - row["joules"] / fmean(default_j[row["repeat"]])
        found[name(row)].append((saved, fmean(row["latency_s"]["search"])))
    return found


def interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "one trial"
    half = STUDENT.get(len(values), 2.0) * stdev(values) / sqrt(len(values))
    return f"± {half:.1%}"


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (saving, latency) those that no other beats in both, by latency."""
    kept: list[tuple[float, float]] = []
    for saved, at in sorted(points, key=lambda point: (point[1], -point[0])):
        if not kept or saved > kept[-1][0]:
            kept.append((saved, at))
    return kept


def above(points: Sequence[tuple[float, float]], latency_s: float) -> float:
    """The saving that a front has at this latency: linear between its points, and no more than the last beyond."""
    for (saved, at), (next_saved, next_at) in pairwise(points):
        if at <= latency_s <= next_at:
            return saved + (next_saved - saved) * (latency_s - at) / (next_at - at)
    return points[0][0] if latency_s < points[0][1] else points[-1][0]


def single(rows: Sequence[Row]) -> None:
    for rate in sorted({row["rates"]["search"] for row in rows if len(row["rates"]) == 1}):
        found = savings(rows, rate)
        mean = {rule: (fmean(s for s, _ in trials), fmean(at for _, at in trials)) for rule, trials in found.items()}
        fixed = front([point for rule, point in mean.items() if not rule.startswith("company")])
        print(
            f"\n{rate:g} requests a second\n\n| rule | trials | saved | | mean latency | the front there |",
            "|---|---|---|---|---|---|",
            sep="\n",
        )
        for rule, (saved, latency_s) in sorted(mean.items(), key=lambda item: item[1][1]):
            there = f"{above(fixed, latency_s):.1%}" if rule.startswith("company") else ""
            spread = interval([s for s, _ in found[rule]])
            print(f"| {rule} | {len(found[rule])} | {saved:.1%} | {spread} | {latency_s:.2f} s | {there} |")
        if {"company 3 s", "window 3 s"} <= mean.keys():
            part = mean["company 3 s"][0] / mean["window 3 s"][0]
            print(f"\ncompany reaches {part:.2f} of the 3 s window's saving: {'met' if part >= BAR else 'MISSED'}")


def pair(rows: Sequence[Row]) -> None:
    pairs = [row for row in rows if len(row["rates"]) > 1]
    if not pairs:
        return
    print("\nA patient workflow (search) beside an impatient one (chat)\n")
    print("| rule | trials | J/request | search mean, p95 | chat mean, p95 |\n|---|---|---|---|---|")
    for rule in dict.fromkeys(map(name, pairs)):
        own = [row for row in pairs if name(row) == rule]
        cells = []
        for workflow in ("search", "chat"):
            values = sorted(s for row in own for s in row["latency_s"][workflow])
            cells.append(f"{fmean(values):.2f} s, {values[ceil(0.95 * len(values)) - 1]:.2f} s")
        joules = sum(row["joules"] for row in own) / sum(row["requests"] for row in own)
        print(f"| {rule} | {len(own)} | {joules:.1f} | {cells[0]} | {cells[1]} |")


def draw(rows: Sequence[Row], file: Path) -> None:
    import matplotlib  # only drawing needs it

    matplotlib.use("svg")
    from matplotlib import pyplot

    rates = sorted({row["rates"]["search"] for row in rows if len(row["rates"]) == 1})
    figure, panes = pyplot.subplots(1, len(rates), figsize=(4 * len(rates), 3.4), squeeze=False)
    for pane, rate in zip(panes[0], rates, strict=True):
        found = savings(rows, rate)
        for kind, mark in (("default", "ks"), ("window", "C0o-"), ("hitch", "C1^-"), ("company", "C2D-")):
            points = sorted(
                (fmean(at for _, at in trials), 100 * fmean(saved for saved, _ in trials))
                for rule, trials in found.items()
                if rule.startswith(kind)
            )
            if points:
                pane.plot(*zip(*points, strict=True), mark, label=kind)
        pane.set(title=f"{rate:g} requests/s", xlabel="mean latency, s", ylabel="joules saved, %")
        pane.grid(alpha=0.3)
    panes[0][0].legend()
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    everything = read(folder / "trials.jsonl")
    single(everything)
    pair(everything)
    draw(everything, folder / "front.svg")
