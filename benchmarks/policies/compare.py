"""One cell of the benchmark in figures: the default, every policy and the oracles, at every patience, over the same
seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.policies.cells import Cell
from benchmarks.policies.interval import interval
from benchmarks.policies.oracle import converged, later, savings
from benchmarks.policies.trial import Trial


def compare(cell: Cell, found: Mapping[float, Mapping[str, Any]]) -> dict[str, Any]:
    """All figures of a cell, ready to be written as JSON, from what its parts gave, by patience."""
    return {
        "cell": str(cell),
        "workload": cell.workload,
        "gpu": cell.gpu,
        "load": cell.load,
        "patience": {f"{patience_s:g}": {"rows": _rows(rows)} for patience_s, rows in found.items()},
    }


def _rows(found: Mapping[str, Any]) -> dict[str, Any]:
    trials = {name: [Trial(**one) for one in row["trials"]] for name, row in found.items()}
    default = trials.pop("default")
    rows = {name: _row(default, mine) for name, mine in trials.items()}
    for name, row in rows.items():
        if "setting" in found[name]:
            row["setting"] = found[name]["setting"]
    about = {key: value for key, value in found["default"].items() if key != "trials"}
    return {"default": {**_default(default), **about}, **rows}


def _default(trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "j_per_run": interval([one.joules / one.runs for one in trials]),
        "watts": sum(one.joules for one in trials) / sum(one.ended for one in trials),
        "run_s": _mean([one.run_s for one in trials]),
        "request_s": _mean([one.request_s for one in trials]),
        "requests": sum(one.requests for one in trials),
        "late": {kind: _mean([one.late[kind] for one in trials]) for kind in trials[0].late},
    }


def _row(default: Sequence[Trial], trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "saved": interval(savings(default, trials)),
        "converged": interval(converged(default, trials)),
        "later": later(default, trials),
        "run_s": _mean([one.run_s for one in trials]),
        "request_s": _mean([one.request_s for one in trials]),
        "wait_p95_s": _mean([one.wait_p95_s for one in trials]),
        "held_at": [one.held_at for one in trials],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
