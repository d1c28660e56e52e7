"""What the benchmark computes of a cell, in parts that are kept: the default with its oracles, and each policy."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from benchmarks.policies.cells import Cell
from benchmarks.policies.kept import Part, of_oracles, of_policies
from benchmarks.policies.oracle import Oracle, Setting
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


def parts(
    cell: Cell, patience_s: float, seeds: int, size: float, policies: Collection[str] = tuple(POLICIES)
) -> list[Part]:
    """What there is to compute of a cell at a patience: the default with its oracles, and each of these policies.

    Without patience there is nothing to hold, and a gate's oracle nothing to find.
    """
    about, arguments = f"{cell}, {patience_s:g} s of patience, {seeds} seeds of {size:g}", (patience_s, seeds, size)
    names = [name for name in POLICIES if name in policies and (patience_s == MAIN_S or name in RECOMMENDED)]
    return [
        Part(f"{about}, fixed", of_oracles(), fixed, (cell, *arguments)),
        *(Part(f"{about}, {name}", of_policies(), under, (name, cell, *arguments)) for name in names),
    ]


def under(name: str, cell: Cell, patience_s: float, seeds: int, size: float) -> dict[str, Any]:
    """A policy's trials, as `fixed` has them."""
    return {name: _kept([trial(cell, POLICIES[name](), patience_s, seed, size) for seed in range(seeds)])}


def fixed(cell: Cell, patience_s: float, seeds: int, size: float) -> dict[str, Any]:
    """By name the trials of the default and of the oracles, one a seed, and the setting of each oracle."""
    default = [trial(cell, Observe(), patience_s, seed, size) for seed in range(seeds)]

    @cache
    def measure(setting: Setting, seed: int) -> Trial:
        if setting == Setting():
            return default[seed]
        return trial(cell, setting.policy(cell, patience_s), patience_s, seed, size)

    best: dict[str, Setting] = {}
    if patience_s:
        oracle = Oracle(measure, default)
        best["oracle of company"] = oracle.of_gate()
        if patience_s == MAIN_S:
            best["oracle of hierarchical"] = oracle.with_clock(best["oracle of company"])
    oracles = {
        name: {**_kept([measure(setting, seed) for seed in range(seeds)]), "setting": _said(setting)}
        for name, setting in best.items()
    }
    about = {"objective": asdict(cell.objective(patience_s)), "runs_per_s": cell.runs_per_s}
    return {"default": {**_kept(default), **about}, **oracles}


def _kept(trials: Sequence[Trial]) -> dict[str, Any]:
    return {"trials": [asdict(one) for one in trials]}


def _said(setting: Setting) -> dict[str, Any]:
    """JSON has no infinity."""
    return {key: value if value != float("inf") else "inf" for key, value in asdict(setting).items()}
