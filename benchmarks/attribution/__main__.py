"""Random mixes on the emulated H200, attributed by our method and by others', against exact Shapley values."""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.attribution import picture
from benchmarks.attribution.baselines import METHODS
from benchmarks.attribution.study import FITTED, GPU, MODEL, PRIOR, WRONG, Found, study
from benchmarks.bars import Bar
from benchmarks.machine import describe
from benchmarks.report import print_bars, write

MIXES, SECONDS = 240, 20.0
BENT = ("cap", "clocks", "evictions")
BENT_MIXES = 40  # of each
MEAN, P95 = 0.03, 0.06
RESULTS = Path(__file__).parents[2] / "docs/results/attribution"


def main(
    mixes: Annotated[int, typer.Option(min=1, help="random mixes")] = MIXES,
    bent: Annotated[int, typer.Option(min=0, help="further ones of each kind that bends the truth")] = BENT_MIXES,
    seconds: Annotated[
        float, typer.Option(min=5, help="in which new runs begin, of each mix, in virtual time")
    ] = SECONDS,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    folder: Annotated[Path, typer.Option("--out", help="where figures and pictures go")] = RESULTS,
) -> None:
    """Exit status 1 if a bar is missed."""
    console, began = Console(), time.monotonic()
    jobs = [(seed, seconds, "") for seed in range(mixes)] + [
        (seed, seconds, how) for how in BENT for seed in range(bent)
    ]
    with ProcessPoolExecutor(workers) as pool:
        found = list(track(pool.map(study, jobs), "mixes", len(jobs), console=Console(stderr=True)))
    groups = {how: [one for one in found if one.figures["bent"] == how] for how in ("", *BENT)}
    summary = {how: summarized(group) for how, group in groups.items() if group}
    bars = check(groups[""], found)
    show(summary, console)
    print_bars(console, bars)
    command = f"python -m benchmarks.attribution --mixes {mixes} --bent {bent} --seconds {seconds:g}"
    result = {
        "command": command,
        "emulated": {"gpu": GPU, "model": MODEL},
        "took_s": round(time.monotonic() - began),
        "machine": describe(),
        "bars": [{"what": bar.what, "limit": bar.limit, "value": bar.value, "met": bar.met} for bar in bars],
        "summary": {how or "as it is": figures for how, figures in summary.items()},
        "mixes": [one.figures for one in found],
    }
    write(folder / "attribution.json", result)
    picture.errors(folder / "errors.svg", groups)
    picture.requests(folder / "requests.svg", groups[""])
    console.print(f"written: {folder}/attribution.json, errors.svg, requests.svg")
    raise typer.Exit(not all(bar.met for bar in bars))


def summarized(group: Sequence[Found]) -> dict[str, Any]:
    """Error of each method over a group of mixes; how the rest of its figures lie."""
    figures = [one.figures for one in group]
    methods = {}
    for name in (FITTED, PRIOR, WRONG, *METHODS):
        errors = np.array([one["errors"][name] for one in figures])
        methods[name] = {
            "mean": round(float(errors.mean()), 4),
            "p95": round(float(np.quantile(errors, 0.95)), 4),
            "max": round(float(errors.max()), 4),
        }
    off = np.array([abs(bias) for one in figures for bias in one["classes"].values()])
    return {
        "mixes": len(group),
        "requests": sum(one["requests"] for one in figures),
        "methods": methods,
        "class_error": {"mean": round(float(off.mean()), 4), "p95": round(float(np.quantile(off, 0.95)), 4)},
        "in_band": round(
            float(np.average([one["in_band"] for one in figures], weights=[one["requests"] for one in figures])), 3
        ),
        "bent_share": round(float(np.mean([one["bent_share"] for one in figures])), 3),
        "preemptions": sum(one["preemptions"] for one in figures),
        "sampling": round(max(one["sampling"] for one in figures), 5),
    }


def check(group: Sequence[Found], everything: Sequence[Found]) -> list[Bar]:
    ours = summarized(group)["methods"][FITTED]
    residual = max(abs(one.figures["residual_uj"]) for one in everything)
    return [
        Bar("Σ|error|/E, mean over mixes", f"<= {MEAN:g}", ours["mean"], ours["mean"] <= MEAN),
        Bar("Σ|error|/E, 95th percentile", f"<= {P95:g}", ours["p95"], ours["p95"] <= P95),
        Bar("residual of every book (µJ)", "0", residual, residual == 0),
    ]


def show(summary: dict[str, dict[str, Any]], console: Console) -> None:
    table = Table(title="Σ|error|/E in %: mean (95th percentile, worst)", title_justify="left")
    table.add_column("")
    for how, figures in summary.items():
        table.add_column(f"{how or 'as it is'}\n{figures['mixes']} mixes", justify="right")
    for name in (FITTED, PRIOR, WRONG, *METHODS):
        cells = [figures["methods"][name] for figures in summary.values()]
        shown = (f"{100 * c['mean']:.1f} ({100 * c['p95']:.1f}, {100 * c['max']:.1f})" for c in cells)
        table.add_row(METHODS.get(name, name), *shown)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
