"""One cell of the benchmark: the default, every policy and the oracles, at every patience, over the same seeds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from benchmarks.policies.cells import Cell, taken_alone
from benchmarks.policies.interval import interval
from benchmarks.policies.oracle import Oracle, Setting, converged, later, savings
from benchmarks.policies.trial import Trial, trial
from policies.clocks import Clocks
from policies.company import Company
from policies.hierarchical import Hierarchical
from policies.interface import Policy
from policies.observe import Observe
from policies.paper import Paper
from policies.powercap import PowerCap

MAIN_S = 3.0  # the patience at which all is compared
POLICIES: dict[str, Callable[[], Policy]] = {
    "company": Company,
    "hierarchical": Hierarchical,
    "clocks": Clocks,
    "powercap": PowerCap,
    "paper": Paper,
}
RECOMMENDED = ("company", "hierarchical")


def compare(cell: Cell, patiences: Sequence[float], seeds: int, size: float) -> dict[str, Any]:
    """All figures of a cell, ready to be written as JSON."""
    alone = taken_alone(cell.workload, cell.gpu)
    found: dict[str, Any] = {
        "cell": str(cell),
        "workload": cell.workload,
        "gpu": cell.gpu,
        "load": cell.load,
        "runs_per_s": cell.runs_per_s,
        "alone": asdict(alone),
        "patience": {},
    }
    for patience_s in patiences:
        default = [trial(cell, Observe(), patience_s, seed, size) for seed in range(seeds)]
        rows: dict[str, Any] = {"default": _default(default)}
        for name in POLICIES if patience_s == MAIN_S else RECOMMENDED:
            trials = [trial(cell, POLICIES[name](), patience_s, seed, size) for seed in range(seeds)]
            rows[name] = _row(default, trials)
        if patience_s:
            rows |= _oracles(cell, patience_s, default, size)
        found["patience"][f"{patience_s:g}"] = {"objective": asdict(cell.objective(patience_s)), "rows": rows}
    return found


def _oracles(cell: Cell, patience_s: float, default: Sequence[Trial], size: float) -> dict[str, Any]:
    @cache
    def measure(setting: Setting, seed: int) -> Trial:
        return trial(cell, setting.policy(cell, patience_s), patience_s, seed, size)

    oracle = Oracle(measure, default)
    gate = oracle.of_gate()
    best = {"oracle of company": gate}
    if patience_s == MAIN_S:
        best["oracle of hierarchical"] = oracle.with_clock(gate)
    return {
        name: {**_row(default, [measure(setting, seed) for seed in range(len(default))]), "setting": _said(setting)}
        for name, setting in best.items()
    }


def _said(setting: Setting) -> dict[str, Any]:
    """JSON has no infinity."""
    return {key: value if value != float("inf") else "inf" for key, value in asdict(setting).items()}


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
