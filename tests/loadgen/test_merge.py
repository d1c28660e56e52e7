from dataclasses import replace

import pytest

from loadgen.merge import merge
from loadgen.record import LoadRecord, RequestRecord, Result, RunRecord, Sample

LOAD = LoadRecord(
    driver="locust",
    load={},
    began_unix_s=1000.0,
    seconds=10.0,
    window_s=(0.0, 9.0),
    exact_lengths=True,
    lag_p99_s=0.001,
    cpu_share=0.2,
    valid=True,
)
RUN = RunRecord(
    stream=0,
    number=0,
    workflow="w",
    run="r",
    intended_s=1.0,
    started_s=1.0,
    ended_s=3.0,
    requests=1,
    outcome="ok",
)
REQUEST = RequestRecord(
    stream=0,
    number=0,
    workflow="w",
    run="r",
    step="s",
    node="n",
    intended_s=1.0,
    started_s=1.0,
    first_s=2.0,
    ended_s=3.0,
    max_tokens=1,
)
SAMPLE = Sample(at_s=1.0, device="g", component="gpu", energy_j=1.0, quality="emulated")


def test_workers_are_put_on_one_time() -> None:
    first = Result(LOAD, (REQUEST,), (RUN,), (SAMPLE,))
    later = replace(LOAD, began_unix_s=1000.5, seconds=11.0, window_s=(0.0, 8.0), lag_p99_s=0.5, cpu_share=0.95)
    second = Result(later, (replace(REQUEST, ended_s=2.1),), (RUN,), (SAMPLE,))
    merged = merge([first, second])
    assert [request.ended_s for request in merged.requests] == [2.6, 3.0]
    assert (merged.requests[0].intended_s, merged.requests[0].first_s) == (1.5, 2.5)
    assert [run.ended_s for run in merged.runs] == [3.0, 3.5] and merged.samples == (SAMPLE,)
    load = merged.load
    assert (load.began_unix_s, load.seconds, load.window_s) == (1000.0, 11.5, (0.0, 8.0))
    assert not load.valid and len(load.reasons) == 2 and len(load.facts["workers"]) == 2


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="no result"):
        merge([])
