"""What a workflow asks for in seconds, where it says "5x isolated" too."""

from policies.interface import Objective, Prices
from proxy.config import Relative, Workflow
from proxy.control.learner import Isolated, Lately


def objective(workflow: Workflow, isolated: Isolated) -> Objective:
    """The objective, relative targets resolved; one that rests on something unknown is left out."""
    slo = workflow.slo
    return Objective(
        patience_s=workflow.patience,
        ttft_p95_s=_seconds(slo.ttft_p95, isolated.ttft_s),
        itl_p95_s=_seconds(slo.itl_p95, isolated.itl_s),
        run_p95_s=_seconds(slo.run_p95, isolated.run_s),
    )


def isolated(workflow: Workflow, seen: Isolated, lately: Lately, prices: Prices | None) -> Isolated:
    """What the workflow takes alone: as configured, else as seen, else what its sizes take by an engine's prices."""
    given, priced = workflow.isolated, _priced(lately, prices)
    return Isolated(
        ttft_s=_first(given.ttft, seen.ttft_s, priced.ttft_s),
        itl_s=_first(given.itl, seen.itl_s, priced.itl_s),
        run_s=_first(given.run, seen.run_s, priced.run_s),
    )


def _priced(lately: Lately, prices: Prices | None) -> Isolated:
    if prices is None or lately.prompt_tokens is None or lately.output_tokens is None:
        return Isolated()
    first_s = lately.prompt_tokens * prices.prompt_s + prices.step_s
    return Isolated(first_s, prices.step_s, (lately.depth or 1.0) * (first_s + lately.output_tokens * prices.step_s))


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _seconds(target: float | Relative | None, isolated_s: float | None) -> float | None:
    if isinstance(target, Relative):
        return None if isolated_s is None else target.times * isolated_s
    return target
