from dataclasses import replace

import pytest

from benchmarks.policies.cells import CELLS, Cell, taken_alone
from benchmarks.policies.trial import trial
from benchmarks.policies.work import WORKLOADS, tasks
from policies.company import Company
from policies.observe import Observe


def test_there_are_24_cells() -> None:
    assert len(CELLS) == len(set(CELLS)) == 24


@pytest.mark.parametrize("workload", WORKLOADS)
def test_runs_are_as_the_workload_plans_them(workload: str) -> None:
    one, *others = tasks(workload, 3, 4)
    assert tasks(workload, 3, 4)[0] == one and others[0] != one
    assert all(place < at for at, job in enumerate(one.jobs) for place in job.after)
    prompts = [sum(text.tokens for text in job.prompt) for task in (one, *others) for job in task.jobs]
    outputs = [job.max_tokens for task in (one, *others) for job in task.jobs]
    assert max(p + o for p, o in zip(prompts, outputs, strict=True)) < 4096


def test_calls_of_a_role_share_what_comes_first() -> None:
    coding = tasks("coding", 0, 1)[0]
    engineers = [job for job in coding.jobs if job.step == "engineer"]
    heads = {job.prompt[:3] for job in engineers}
    assert len(engineers) > 4 and len(heads) == 1 and len({job.prompt for job in engineers}) == len(engineers)


def test_without_patience_company_is_the_default() -> None:
    cell = Cell("search", "h200", "light")
    default, company = (trial(cell, policy, 0.0, 0, size=0.1) for policy in (Observe(), Company()))
    # Joules are summed up to the moments at which each was asked, in another order: equal but for rounding.
    joules, early_j = pytest.approx(default.joules), pytest.approx(default.early_j)
    assert company == replace(default, joules=joules, early_j=early_j) and default.held_at is None


def test_company_saves_and_keeps_the_objectives() -> None:
    cell = Cell("summarize", "a100-40g", "light")
    default, company = (trial(cell, policy, 3.0, 0, size=0.1) for policy in (Observe(), Company()))
    until = max(default.ended, company.ended)
    assert company.joules_by(until) < 0.95 * default.joules_by(until)
    assert max(company.late.values()) <= 0.01 and company.wait_p95_s <= 3.0 + 1e-9
    assert company.requests == default.requests and company.tokens == default.tokens
    assert taken_alone(cell.workload, cell.gpu).depth > 10
