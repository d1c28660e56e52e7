"""How near the emulated H200 comes to the measured one: its fit, and what was never fitted.

Data are in `docs/results/h200/emulator/` (its README says how they were measured).
"""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.bars import Bar
from benchmarks.emulator_workloads import Cell, Search, Trial, coalesce, gate_sweep, search
from emulator.calibrate import FITTED, error_percent, errors, report
from emulator.core.presets import GpuPreset, load_gpu, load_model
from emulator.sweep import read_sweep

DATA = Path(__file__).parents[1] / "docs/results/h200/emulator"
FITTED_ON, KEPT_APART = "llama-2-7b", "llama-3.1-8b"


def compare(gpu: GpuPreset) -> dict[str, Any]:
    """Everything that was measured against the same, emulated; errors and differences in per cent."""
    return {
        "calibration": report(read_sweep(DATA / "calibration.csv"), gpu, load_model(FITTED_ON)),
        "gates": gates(gpu, FITTED_ON, DATA / "gate_sweep.csv"),
        "coalesce": trials(gpu),
        "kept_apart": report(read_sweep(DATA / KEPT_APART / "calibration.csv"), gpu, load_model(KEPT_APART)),
        "kept_apart_gates": gates(gpu, KEPT_APART, DATA / KEPT_APART / "gate_sweep.csv"),
        "a100_search": [asdict(found) for found in a100_search()],
    }


def gates(gpu: GpuPreset, model: str, file: Path) -> list[dict[str, Any]]:
    """Each cell's joules a run and seconds; measured: the mean of its repetitions."""
    measured = _grouped(file, "workload", "gate")
    cells: list[Cell] = gate_sweep(gpu, load_model(model))
    found = []
    for cell in cells:
        rows = measured.get((cell.workload, str(cell.gate)))
        if rows:
            joules, seconds = (mean(float(row[name]) for row in rows) for name in ("j_per_run", "seconds"))
            line = {"workload": cell.workload, "gate": cell.gate}
            line |= {"joules_measured": joules, "joules_predicted": cell.joules / cell.runs}
            found.append(line | {"seconds_measured": seconds, "seconds_predicted": cell.seconds})
    return found


def trials(gpu: GpuPreset) -> list[dict[str, Any]]:
    """Each release rule's joules a request, and their ratio to those of `now` at the same rate."""
    model = load_model(FITTED_ON)
    now: dict[str, tuple[float, float]] = {}
    found = []
    for (rate, rule, wait), rows in _grouped(DATA / "coalesce.csv", "rate", "rule", "wait").items():
        trial: Trial = coalesce(gpu, model, float(rate), rule, float(wait))
        measured, predicted = mean(float(row["j_per_request"]) for row in rows), trial.joules / trial.requests
        if rule == "now":
            now[rate] = measured, predicted
        ratios = {"ratio_measured": measured / now[rate][0], "ratio_predicted": predicted / now[rate][1]}
        line = {"rate": float(rate), "rule": rule, "wait": float(wait)}
        found.append(line | {"joules_measured": measured, "joules_predicted": predicted} | ratios)
    return found


def a100_search() -> list[Search]:
    """The paper's search workload on its card, one knob at a time."""
    gpu, model = load_gpu("a100-40g"), load_model(FITTED_ON)
    knobs = [(users, 200, 250) for users in (1, 2, 4, 8)]
    knobs += [(8, tokens, 250) for tokens in (200, 400, 600, 800)]
    knobs += [(8, 400, watts) for watts in (150, 160, 175, 200, 225, 250)]
    return [search(gpu, model, *knob) for knob in knobs]


def check(found: dict[str, Any]) -> list[Bar]:
    """The bars of the calibration, in the order in which they were set."""
    fit, apart = found["calibration"], found["kept_apart"]
    decode = [line for line in fit["rows"] if line["kind"] == "decode"]
    ratio = max(100 * abs(line["ratio_predicted"] - line["ratio_measured"]) for line in found["coalesce"])
    return [
        _most("fitted factors", 12, len(FITTED)),
        _most("joules, mean error over 40 rows, %", 4, fit["joules"]["mape"]),
        _most("joules, largest error of a row, %", 12, fit["joules"]["max"]),
        _most("seconds, mean error over 40 rows, %", 5, fit["seconds"]["mape"]),
        _most("inter-token latency, largest error of a decode row, %", 8, errors(decode, "itl")["max"]),
        _most("gates: joules a run, largest error of a cell, %", 10, errors(found["gates"], "joules")["max"]),
        _most("release rules: joules relative to `now`, percentage points", 5, ratio),
        _most(f"{KEPT_APART}: joules, mean error, %", 10, apart["joules"]["mape"]),
        _most(f"{KEPT_APART}: seconds, mean error, %", 10, apart["seconds"]["mape"]),
    ]


def _most(what: str, limit: float, value: float | None) -> Bar:
    return Bar(what, f"<= {limit:g}", value, value is not None and value <= limit)


def _grouped(file: Path, *names: str) -> dict[tuple[str, ...], list[dict[str, str]]]:
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            groups[tuple(row[name] for name in names)].append(row)
    return groups


def picture(found: dict[str, Any], file: Path) -> None:
    """Measured against predicted joules, and the error of each, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series: dict[str, Sequence[dict[str, Any]]] = {
        "calibration (fitted)": found["calibration"]["rows"],
        "gates, J a run": found["gates"],
        "release rules, J a request": found["coalesce"],
        f"{KEPT_APART} (kept apart)": found["kept_apart"]["rows"],
        f"{KEPT_APART}, gates": found["kept_apart_gates"],
    }
    figure, (values, percent) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for name, lines in series.items():
        measured = [line["joules_measured"] for line in lines]
        values.loglog(measured, [line["joules_predicted"] for line in lines], "o", ms=4, alpha=0.7, label=name)
        percent.semilogx(measured, [error_percent(line, "joules") for line in lines], "o", ms=4, alpha=0.7)
    ends = [50, 2e4]
    values.plot(ends, ends, color="0.6", lw=0.8, zorder=0)
    values.set(xlabel="measured, J", ylabel="emulated, J")
    values.legend(frameon=False, fontsize=8)
    percent.axhline(0, color="0.6", lw=0.8, zorder=0)
    percent.set(xlabel="measured, J", ylabel="error, %", ylim=(-14, 14))
    figure.suptitle("Emulated H200 against the measured one")
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
