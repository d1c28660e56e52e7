"""What `benchmarks/real_policies.py` measured, as tables and a picture.

    python benchmarks/real_policies_table.py OUT_DIR

Reads OUT_DIR/trials.jsonl; prints tables in Markdown and writes `front.svg`: saving against mean latency, by rate,
of the first repeat.
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


def savings(rows: Sequence[Row], rate: float) -> dict[str, dict[int, tuple[float, float]]]:
    """By rule and repeat: the part of the default's joules in the same repeat that it saved, and mean latency.

    Arrivals differ between repeats and are the same within one; what was tried twice in one is its mean.
    """
    found: dict[str, dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["rates"] == {"search": rate}:
            found[name(row)][row["repeat"]].append(row)
    default_j = {repeat: fmean(row["joules"] for row in tries) for repeat, tries in found["default"].items()}
    return {
        rule: {
            repeat: (
                1 - fmean(row["joules"] for row in tries) / default_j[repeat],
                fmean(s for row in tries for s in row["latency_s"]["search"]),
            )
            for repeat, tries in repeats.items()
        }
        for rule, repeats in found.items()
    }


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
    for rate in rates(rows):
        found = savings(rows, rate)
        often = {rule: repeats for rule, repeats in found.items() if len(repeats) > 1 and rule != "default"}
        numbers = sorted({repeat for repeats in often.values() for repeat in repeats})
        print(f"\n{rate:g} requests a second: joules saved, idle included\n")
        print("| rule |", *(f"repeat {number} |" for number in numbers), "mean, 95 % (t) | mean latency |")
        print("|---|", *("---|" for _ in numbers), "---|---|")
        for rule, repeats in often.items():
            saved = [saved for saved, _ in repeats.values()]
            cells = [f"{repeats[number][0]:.1%} |" if number in repeats else "|" for number in numbers]
            latency_s = fmean(at for _, at in repeats.values())
            print(f"| {rule} |", *cells, f"{fmean(saved):.1%} {interval(saved)} | {latency_s:.2f} s |")
        if {"company 3 s", "window 3 s"} <= often.keys():
            own, other = (fmean(s for s, _ in often[rule].values()) for rule in ("company 3 s", "window 3 s"))
            met = "met" if own / other >= BAR else "MISSED"
            print(f"\ncompany reaches {own / other:.2f} of the 3 s window's saving (bar {BAR}): {met}")
        _front(found)


def _front(found: dict[str, dict[int, tuple[float, float]]]) -> None:
    """Every rule in the first repeat, where all of them had the same arrivals."""
    points = {rule: repeats[0] for rule, repeats in found.items() if 0 in repeats}
    fixed = front([point for rule, point in points.items() if not rule.startswith("company")])
    print("\n| rule, repeat 0 | saved | mean latency | the front of the others there |\n|---|---|---|---|")
    for rule, (saved, latency_s) in sorted(points.items(), key=lambda item: item[1][1]):
        there = f"{above(fixed, latency_s):.1%}" if rule.startswith("company") else ""
        print(f"| {rule} | {saved:.1%} | {latency_s:.2f} s | {there} |")


def rates(rows: Sequence[Row]) -> list[float]:
    return sorted({row["rates"]["search"] for row in rows if len(row["rates"]) == 1})


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

    shown = rates(rows)
    figure, panes = pyplot.subplots(1, len(shown), figsize=(4 * len(shown), 3.4), squeeze=False)
    for pane, rate in zip(panes[0], shown, strict=True):
        found = savings(rows, rate)
        for kind, mark in (("default", "ks"), ("window", "C0o-"), ("hitch", "C1^-"), ("company", "C2D-")):
            points = sorted(
                (repeats[0][1], 100 * repeats[0][0])
                for rule, repeats in found.items()
                if rule.startswith(kind) and 0 in repeats
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
