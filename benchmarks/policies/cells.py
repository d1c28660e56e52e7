"""The benchmark's cells: a workload on a GPU at a load, what its requests take alone, and what is asked of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from random import Random

from benchmarks.policies.work import WORKLOADS, Job, Task, tasks
from benchmarks.sim import Observer, Outcome, Simulation
from emulator.core.presets import GpuPreset, ModelPreset, load_gpu, load_model
from policies.interface import Objective, Prices, Signals
from policies.observe import Observe
from proxy.energy.prior import prior

GPUS = {"h200": "NVIDIA H200", "a100-40g": "NVIDIA A100-PCIE-40GB"}
MODEL = "llama-2-7b"
LOADS = {"light": 0.05, "medium": 0.25, "near": 0.8}  # of what the engine can do
CROWD = 32  # runs at once that show what that is
ALONE = 12  # runs one after the other that show what they take alone
TIMES_ALONE = 5.0
FIRST_S = 1.0
LEAST_S = 240.0  # of arrivals
LEAST_RUNS, MOST_RUNS = 24, 400


class Blind(Observer):
    """Tells a policy nothing."""

    def signals(self, now: float, simulation: Simulation) -> Signals:
        return Signals(now)


@dataclass(frozen=True)
class Alone:
    """95th percentiles, in seconds, of runs that have the engine to themselves, and the most calls in a row of one."""

    ttft_s: float
    itl_s: float
    run_s: float
    depth: float


@dataclass(frozen=True)
class Cell:
    workload: str
    gpu: str
    load: str

    def __str__(self) -> str:
        return f"{self.workload} {self.gpu} {self.load}"

    @property
    def runs_per_s(self) -> float:
        return LOADS[self.load] * capacity(self.workload, self.gpu)

    @property
    def preset(self) -> GpuPreset:
        return load_gpu(self.gpu)

    def objective(self, patience_s: float) -> Objective:
        """Five times what it takes alone, a second for the first token where that is more, and what patience adds."""
        alone = taken_alone(self.workload, self.gpu)
        return Objective(
            patience_s,
            max(FIRST_S, TIMES_ALONE * alone.ttft_s) + patience_s,
            TIMES_ALONE * alone.itl_s,
            TIMES_ALONE * alone.run_s + alone.depth * patience_s,
        )

    def prices(self) -> Prices:
        """What the gateway believes of an engine before it has learnt anything, and the watts at rest that it reads."""
        known = prior(GPUS[self.gpu], MODEL)
        return Prices(
            *(known.step_j, known.prompt_j, known.output_j, known.context_j, known.step_s, known.prompt_s),
            known.spread,
            rest_w=self.preset.card.idle_w,
        )

    def arrivals(self, seed: int, size: float = 1.0) -> list[tuple[float, Task]]:
        """Runs begin as a Poisson process; the same seed gives the same runs at the same times."""
        count = min(MOST_RUNS, max(LEAST_RUNS, ceil(size * LEAST_S * self.runs_per_s)))
        rng, at = Random(f"{self} {seed}"), 0.0
        found: list[tuple[float, Task]] = []
        for task in tasks(self.workload, seed, count):
            at += rng.expovariate(self.runs_per_s)
            found.append((at, task))
        return found


CELLS = [Cell(workload, gpu, load) for workload in WORKLOADS for gpu in GPUS for load in LOADS]


@cache
def model() -> ModelPreset:
    return load_model(MODEL)


@cache
def capacity(workload: str, gpu: str) -> float:
    """Runs a second with many at once."""
    outcome = _released_at_once(gpu, [(0.0, task) for task in tasks(workload, 0, CROWD)])
    return CROWD / outcome.ended


@cache
def taken_alone(workload: str, gpu: str) -> Alone:
    outcome = _released_at_once(gpu, [(1000.0 * n, task) for n, task in enumerate(tasks(workload, 1, ALONE))])
    return Alone(
        p95([sent.ttft_s for sent in outcome.sent]),
        p95([sent.itl_s or 0.0 for sent in outcome.sent]),
        p95([run.ended - run.began for run in outcome.runs]),
        max(_depth(run.task.jobs) for run in outcome.runs),
    )


def p95(values: Sequence[float]) -> float:
    """The smallest value that at least 95 % are not above."""
    return sorted(values)[ceil(0.95 * len(values)) - 1]


def _released_at_once(gpu: str, arrivals: list[tuple[float, Task]]) -> Outcome:
    return Simulation(load_gpu(gpu), model(), Observe(), Blind()).run(arrivals)


def _depth(jobs: Sequence[Job]) -> int:
    depths: list[int] = []
    for job in jobs:
        depths.append(1 + max((depths[place] for place in job.after), default=0))
    return max(depths)
