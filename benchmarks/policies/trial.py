"""One policy under one load: what it cost, and what its objectives came to."""

from dataclasses import asdict, dataclass

from benchmarks.policies.cells import Cell, model, p95
from benchmarks.policies.observing import Learning
from benchmarks.sim import Outcome, Run, Sent, Simulation
from policies.interface import Objective, Policy

CONVERGED_S = 60.0


@dataclass(frozen=True)
class Trial:
    """Energy from the first arrival to the last answer; idle time until a common end is added by `joules_by`.

    `late` are parts of requests, and of runs, that missed their objective: 0..1. `held_at` is when something was held
    first, `settled_at` when the rule was changed by more than a third last.
    """

    joules: float
    converged_j: float  # by CONVERGED_S
    ended: float
    idle_w: float
    runs: int
    requests: int
    latency_s: float  # mean, of runs
    request_s: float  # mean, with what the gate held
    wait_p95_s: float
    late: dict[str, float]
    held_at: float | None
    settled_at: float | None

    def joules_by(self, until: float) -> float:
        return self.joules + self.idle_w * (until - self.ended)

    def converged_by(self, until: float) -> float:
        """From CONVERGED_S on."""
        return self.joules_by(until) - self.converged_j

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def trial(cell: Cell, policy: Policy, patience_s: float, seed: int, size: float = 1.0) -> Trial:
    objective = cell.objective(patience_s)
    observer = Learning({cell.workload: objective}, cell.prices())
    simulation = Simulation(cell.preset, model(), policy, observer)
    outcome = simulation.run(cell.arrivals(seed, size), [CONVERGED_S])
    runs = outcome.runs
    return Trial(
        joules=outcome.joules,
        converged_j=outcome.marks_j[CONVERGED_S],
        ended=outcome.ended,
        idle_w=outcome.idle_w,
        runs=len(runs),
        requests=len(outcome.sent),
        latency_s=sum(run.ended - run.began for run in runs) / len(runs),
        request_s=sum(sent.ended - sent.arrived for sent in outcome.sent) / len(outcome.sent),
        wait_p95_s=p95([sent.released - sent.arrived for sent in outcome.sent]),
        late=late(objective, outcome.sent, runs),
        **_changes(outcome),
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


def _changes(outcome: Outcome) -> dict[str, float | None]:
    held_at = settled_at = None
    before = 0.0
    for at, decision in outcome.decisions:
        hold_s = max((rule.hold_s for rule in decision.release.values()), default=0.0)
        if hold_s and held_at is None:
            held_at = at
        if abs(hold_s - before) > max(hold_s, before) / 3:
            settled_at = at
        before = hold_s
    return {"held_at": held_at, "settled_at": settled_at}
