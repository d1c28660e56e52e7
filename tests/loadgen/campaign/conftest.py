import pytest

from loadgen.campaign.definition import Campaign, parse

TEXT = """
name: small
title: A small one
repeats: 3
fixed: {users: 2, output_tokens: 20}
workloads:
  short: {workload: search, fields: {queries: [2, 3]}, runs_per_user: 2}
sweeps:
  gate: {workloads: [short, summarize+short], knobs: {in_flight: [1, 2]}}
  again: {workloads: [short], knobs: {in_flight: [2, 4]}}
panels:
  - {figure: "1", title: Joules, sweep: gate, kind: lines, measures: [joules_per_token], paper: It falls.,
     expects: [{of: short, shape: falls}]}
quick: {repeats: 1, runs_per_user: 1}
"""


@pytest.fixture
def text() -> str:
    return TEXT


@pytest.fixture
def campaign() -> Campaign:
    return parse(TEXT)
