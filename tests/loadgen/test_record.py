from dataclasses import replace
from pathlib import Path

import pytest

from loadgen.record import (
    Energy,
    LoadRecord,
    RecordError,
    RequestRecord,
    Result,
    RunRecord,
    Sample,
    read,
    sum_energy,
    write,
)

ENERGY = Energy(
    joules=3.0, joules_low=2.0, joules_high=5.0, quality="attributed", by_component={"gpu": 2.5, "cpu": 0.5}
)
REQUEST = RequestRecord(
    stream=0,
    number=4,
    workflow="search",
    run="search-4",
    step="query",
    node="query-1",
    intended_s=1.0,
    started_s=1.5,
    first_s=2.0,
    ended_s=4.0,
    gaps_s=(0.5, 1.5),
    max_tokens=3,
    prompt_tokens=7,
    cached_tokens=0,
    output_tokens=3,
    energy=ENERGY,
)
RUN = RunRecord(
    stream=0,
    number=4,
    workflow="search",
    run="search-4",
    intended_s=1.0,
    started_s=1.5,
    ended_s=4.0,
    requests=1,
    outcome="ok",
)
LOAD = LoadRecord(
    driver="virtual",
    load={"seed": 1},
    seconds=4.0,
    window_s=(0.0, 4.0),
    exact_lengths=True,
    valid=False,
    reasons=("it was slow",),
)
SAMPLE = Sample(at_s=1.0, device="gpu:0", component="gpu", energy_j=10.0, quality="emulated", busy_share=0.5)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    result = Result(LOAD, (REQUEST, replace(REQUEST, energy=None, outcome="failed", error="x")), (RUN,), (SAMPLE,))
    file = tmp_path / "load.jsonl"
    write(file, result)
    assert read(file) == result
    assert [path.name for path in tmp_path.iterdir()] == ["load.jsonl"]


def test_times_count_from_the_intended_start() -> None:
    assert (REQUEST.start_delay_s, REQUEST.ttft_s, REQUEST.latency_s, REQUEST.mean_gap_s) == (0.5, 1.0, 3.0, 1.0)
    unseen = replace(REQUEST, first_s=None)
    assert unseen.ttft_s is None and unseen.mean_gap_s is None
    assert replace(REQUEST, output_tokens=1).mean_gap_s is None


def test_unknown_joules_are_not_zero() -> None:
    assert sum_energy([]) is None
    assert sum_energy([ENERGY, None]) is None
    estimated = replace(ENERGY, quality="estimated", active_joules=1.0)
    both = sum_energy([ENERGY, estimated])
    assert both is not None and both.quality == "estimated" and both.active_joules is None
    assert both.joules == 6.0 and both.by_component == {"gpu": 5.0, "cpu": 1.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold one load, it holds 0"),
        ("oops\n", "line 1 is not a record"),
        ('{"kind": "cell"}\n', "line 1 is not a record"),
        ('{"kind": "sample", "at_s": 1}\n', "line 1: device"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "load.jsonl"
    file.write_text(text)
    with pytest.raises(RecordError, match=message):
        read(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        read(tmp_path / "none")
