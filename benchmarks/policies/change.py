"""A load that changes under a policy: search requests, few, then many, then few again."""

from random import Random
from typing import Any

from benchmarks.policies.cells import Cell, model
from benchmarks.policies.interval import interval
from benchmarks.policies.observing import Learning
from benchmarks.policies.work import Task, tasks
from benchmarks.sim import Simulation
from policies.company import Company
from policies.interface import Policy
from policies.observe import Observe
from policies.static import Hold, Static

PHASES = ((300.0, "light"), (300.0, "near"), (300.0, "light"))
SETTLED_S = 60.0
PATIENCE_S = 3.0
BEST = Hold(hold_s=PATIENCE_S, join_part=0.35)


def change(seeds: int) -> dict[str, Any]:
    """By phase, from `SETTLED_S` after it began: what company saves, and what a fixed rule good in all of them does."""
    found: dict[str, list[list[float]]] = {"company": [], "fixed": []}
    for seed in range(seeds):
        default = _phases(Observe(), seed)
        for name, policy in (("company", Company()), ("fixed", Static(release={"search": BEST}))):
            mine = _phases(policy, seed)
            found[name].append([1 - a / b for a, b in zip(mine, default, strict=True)])
    return {
        "phases": [load for _, load in PHASES],
        "saved": {name: [interval(list(values)) for values in zip(*rows, strict=True)] for name, rows in found.items()},
    }


def _phases(policy: Policy, seed: int) -> list[float]:
    """Joules for an output token in each phase, once `SETTLED_S` of it are over."""
    cell, rng = Cell("search", "h200", "light"), Random(f"change {seed}")
    arrivals: list[tuple[float, Task]] = []
    spans: list[tuple[float, float]] = []
    begins = 0.0
    planned = iter(tasks("search", 1000 + seed, 1000))
    for seconds, load in PHASES:
        rate, at = Cell("search", "h200", load).runs_per_s, begins
        while (at := at + rng.expovariate(rate)) < begins + seconds:
            arrivals.append((at, next(planned)))
        spans.append((begins + SETTLED_S, begins + seconds))
        begins += seconds
    observer = Learning({"search": cell.objective(PATIENCE_S)}, cell.prices())
    simulation = Simulation(cell.preset, model(), policy, observer)
    outcome = simulation.run([*arrivals, (begins + 1, next(planned))], [edge for span in spans for edge in span])
    joules = []
    for low, high in spans:
        tokens = sum(sent.output_tokens for sent in outcome.sent if low < sent.ended <= high)
        joules.append((outcome.marks_j[high] - outcome.marks_j[low]) / max(1, tokens))
    return joules
