"""Saving against latency for single search requests, as they were measured on an H200 (`coalesce.csv`), emulated: fixed
windows, "hold only while idle" (hitch) and company, each at several patiences."""

from itertools import pairwise
from math import inf
from random import Random
from statistics import fmean
from typing import Any

from benchmarks.policies.cells import Cell, model
from benchmarks.policies.interval import interval
from benchmarks.policies.observing import Learning
from benchmarks.policies.work import Job, Task
from benchmarks.sim import Simulation
from emulator.core.prompt import Text
from policies.company import Company
from policies.interface import Objective, Policy
from policies.observe import Observe
from policies.static import Hold, Static

RATES = (0.7, 2.0, 6.0)
PATIENCES = (0.5, 1.0, 2.0, 3.0)
ARRIVALS_S, TRIAL_S = 240.0, 247.0
WARM_S = 2.0
HEAD = Text("head", 3000)


def searches(rate: float, seed: int | str, seconds: float = ARRIVALS_S) -> list[tuple[float, Task]]:
    """Requests of 3000 shared prompt tokens, 40 of their own and 150 out, each a run; the shared ones are warm."""
    rng, at = Random(f"{rate} {seed}"), 0.0
    found = [(0.0, Task("search", (Job("query", (HEAD, Text("warm", 40)), 8, ()),)))]
    while (at := at + rng.expovariate(rate)) < seconds:
        job = Job("query", (HEAD, Text(("own", len(found)), 40)), 150, ())
        found.append((WARM_S + at, Task("search", (job,))))
    return found


def point(policy: Policy, patience_s: float, arrivals: list[tuple[float, Task]], seconds: float) -> tuple[float, float]:
    """Joules in all and mean latency, idle time included."""
    cell = Cell("search", "h200", "light")
    observer = Learning({"search": Objective(patience_s)}, cell.prices())
    outcome = Simulation(cell.preset, model(), policy, observer).run(arrivals, [WARM_S])
    joules = outcome.joules_by(WARM_S + seconds) - outcome.marks_j[WARM_S]
    return joules, fmean(sent.ended - sent.arrived for sent in outcome.sent[1:])


def rules() -> dict[str, tuple[Policy, float]]:
    found: dict[str, tuple[Policy, float]] = {}
    for patience_s in PATIENCES:
        hitch = Hold(hold_s=patience_s, join_s=inf)
        found[f"window {patience_s:g} s"] = Static(release={"search": Hold(hold_s=patience_s)}), patience_s
        found[f"hitch {patience_s:g} s"] = Static(release={"search": hitch}), patience_s
        found[f"company {patience_s:g} s"] = Company(), patience_s
    return found


def front(seeds: int) -> dict[str, Any]:
    """By rate and rule: what is saved and the mean latency; and of company what the others' front has there."""
    found: dict[str, Any] = {}
    for rate in RATES:
        loads = [searches(rate, seed) for seed in range(seeds)]
        default = [point(Observe(), 0.0, load, TRIAL_S) for load in loads]
        rows: dict[str, Any] = {"default": {"saved": {"mean": 0.0, "half": None}, "s": fmean(s for _, s in default)}}
        for name, (policy, patience_s) in rules().items():
            points = [point(policy, patience_s, load, TRIAL_S) for load in loads]
            saved = [1 - joules / base for (joules, _), (base, _) in zip(points, default, strict=True)]
            rows[name] = {"saved": interval(saved), "s": fmean(s for _, s in points)}
        fixed = [(row["s"], row["saved"]["mean"]) for name, row in rows.items() if not name.startswith("company")]
        for name, row in rows.items():
            if name.startswith("company"):
                row["front"] = best_at(fixed, row["s"])
        found[f"{rate:g}"] = rows
    return found


def best_at(points: list[tuple[float, float]], latency_s: float) -> float:
    """What the front of (latency, saving) has at a latency: straight between those that no other beats in both."""
    kept: list[tuple[float, float]] = []
    for at, saved in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or saved > kept[-1][1]:
            kept.append((at, saved))
    for (at, saved), (next_at, next_saved) in pairwise(kept):
        if at <= latency_s <= next_at:
            return saved + (next_saved - saved) * (latency_s - at) / (next_at - at)
    return kept[0][1] if latency_s < kept[0][0] else kept[-1][1]
