from collections.abc import Callable, Sequence

import pytest

from loadgen.campaign.definition import Campaign, parse
from loadgen.campaign.grid import cells
from loadgen.campaign.knobs import Value
from loadgen.campaign.rows import Row

TEXT = """
name: made-up
title: "Made <up>"
question: What is seen?
fixed: {users: 2}
unsaid: [nothing of note]
sweeps:
  batch: {workloads: [search, coding], knobs: {max_num_seqs: [1, 2, 4, 16]}}
  engines: {workloads: [search], knobs: {output_tokens: [100, 200], engine: [vllm, parrot]}}
panels:
  - {figure: lines, title: Lines, sweep: batch, kind: lines, measures: [joules_per_token_paper], paper: It falls.,
     expects: [{shape: falls}]}
  - {figure: dual, title: Dual, sweep: batch, kind: dual, measures: [joules_per_run, latency_s]}
  - {figure: box, title: Box, sweep: batch, kind: box, measures: [hit_rate]}
  - {figure: bars, title: Bars, sweep: engines, kind: bars, measures: [gpu_joules_per_run, cpu_joules_per_run]}
  - {figure: time, title: Time, sweep: engines, kind: timeline, only: {output_tokens: 100}}
"""

Make = Callable[..., list[Row]]


@pytest.fixture
def campaign() -> Campaign:
    return parse(TEXT)


@pytest.fixture
def make(campaign: Campaign) -> Make:
    """Rows of the cells of one workload in the order of their values, each cell with the repeats given for it.

    None for a cell is infeasible, "parrot" not possible.
    """

    def rows(
        values: Sequence[Sequence[float] | str | None],
        measure: str = "joules_per_token_paper",
        workload: str = "search",
        knob: str = "max_num_seqs",
        engine: Value = None,
    ) -> list[Row]:
        found: list[Row] = []
        wanted = [one for one in cells(campaign) if one.workload == workload and one.get(knob) is not None]
        wanted = [one for one in wanted if one.get("engine") == engine]
        for cell, repeats in zip(wanted, values, strict=True):
            head = (cell.key, cell.workload, cell.workload)
            if repeats is None or isinstance(repeats, str):
                status, reason = ("infeasible", "out of memory") if repeats is None else ("not possible", repeats)
                found.append(Row(*head, 1, status, reason, settings=dict(cell.settings)))
                continue
            for repeat, value in enumerate(repeats, start=1):
                row = Row(*head, repeat, "ok", "", "http", "attributed", dict(cell.settings))
                row.measures[measure] = value
                found.append(row)
        return found

    return rows
