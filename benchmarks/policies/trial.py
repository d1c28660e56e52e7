"""One policy under one load: what it cost, and what its objectives came to."""

from dataclasses import dataclass
from math import inf

from benchmarks.policies.cells import Blind, Cell, model, p95
from benchmarks.policies.observing import Learning
from benchmarks.sim import Run, Sent, Simulation
from policies.interface import Objective, Policy
from policies.observe import Observe
from policies.static import Static

CONVERGED_S = 60.0


@dataclass(frozen=True)
class Trial:
    """Energy from the first arrival to the last answer; idle time until a common end is added by `joules_by`.

    `late` are parts of requests, and of runs, that missed their objective: 0..1. `held_at` is when something was held
    first.
    """

    joules: float
    early_j: float  # before CONVERGED_S
    tokens: int  # of output
    early_tokens: int  # of what was answered before CONVERGED_S
    ended: float
    idle_w: float
    runs: int
    requests: int
    run_s: float  # mean
    request_s: float  # mean, with what the gate held
    wait_p95_s: float
    late: dict[str, float]
    held_at: float | None

    def joules_by(self, until: float) -> float:
        return self.joules + self.idle_w * (until - self.ended)

    def converged_by(self, until: float) -> float:
        """Joules for an output token from CONVERGED_S on: what was held before is paid, and counted, later."""
        return (self.joules_by(until) - self.early_j) / max(1, self.tokens - self.early_tokens)


def trial(cell: Cell, policy: Policy, patience_s: float, seed: int, size: float = 1.0) -> Trial:
    objective = cell.objective(patience_s)
    if isinstance(policy, Observe | Static):  # these ask for nothing, and never change
        simulation = Simulation(cell.preset, model(), policy, Blind(), inf)
    else:
        observer = Learning({cell.workload: objective}, cell.prices())
        simulation = Simulation(cell.preset, model(), policy, observer)
    outcome = simulation.run(cell.arrivals(seed, size), [CONVERGED_S])
    runs = outcome.runs
    return Trial(
        joules=outcome.joules,
        early_j=outcome.marks_j[CONVERGED_S],
        tokens=sum(sent.output_tokens for sent in outcome.sent),
        early_tokens=sum(sent.output_tokens for sent in outcome.sent if sent.ended <= CONVERGED_S),
        ended=outcome.ended,
        idle_w=outcome.idle_w,
        runs=len(runs),
        requests=len(outcome.sent),
        run_s=sum(run.ended - run.began for run in runs) / len(runs),
        request_s=sum(sent.ended - sent.arrived for sent in outcome.sent) / len(outcome.sent),
        wait_p95_s=p95([sent.released - sent.arrived for sent in outcome.sent]),
        late=late(objective, outcome.sent, runs),
        held_at=next((at for at, decision in outcome.decisions if decision.release), None),
    )


def late(objective: Objective, sent: list[Sent], runs: list[Run]) -> dict[str, float]:
    """The part of requests, or of runs, that took longer than the objective."""

    def part(values: list[float], most: float | None) -> float:
        return sum(value > most for value in values) / len(values) if most is not None and values else 0.0

    return {
        "ttft": part([each.ttft_s for each in sent], objective.ttft_p95_s),
        "itl": part([itl_s for each in sent if (itl_s := each.itl_s) is not None], objective.itl_p95_s),
        "run": part([run.ended - run.began for run in runs], objective.run_p95_s),
    }
