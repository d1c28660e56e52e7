import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.energy.trace import WHOLE, TraceError, read_trace

COUNTER = {"kind": "counter", "t": 10.0, "energy_mj": 5.5, "steps": 3, "prompt": 9, "gen": 4, "running": 1, "cached": 2}
REQUEST = {"kind": "request", "cls": "search", "id": "r1", "t0": 9.0, "first": 9.5, "end": 11.0, "prompt": 40} | {
    "cached": 16,
    "out": 3,
    "ticks": [9.5, 10.0, 11.0],
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """`written(*lines)`: a file of these lines, dicts or bytes."""

    def write(*lines: Any, name: str = "t.jsonl") -> Path:
        data = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_trace_is_read_gzipped_or_not(written: Callable[..., Path], name: str) -> None:
    trace = read_trace(written(COUNTER, REQUEST, name=name))
    (scenario,) = trace.scenarios.values()
    assert list(trace.scenarios) == [WHOLE]
    assert scenario.counters[0][:7] == (10.0, 5500, "", "", 3.0, 4.0, 2.0)
    (one,) = scenario.served
    assert (one.id, one.cls, one.t0, one.first, one.end, one.ticks) == ("r1", "search", 9.0, 9.5, 11.0, [9.5, 10, 11])
    assert (one.prompt_tokens, one.cached_tokens, one.output_tokens, one.streamed) == (40, 16, 3, True)


def test_a_gzipped_name_says_nothing_and_its_bytes_do(written: Callable[..., Path], tmp_path: Path) -> None:
    written(COUNTER, name="a.jsonl.gz").rename(tmp_path / "plain.jsonl")
    assert read_trace(tmp_path / "plain.jsonl").scenarios[WHOLE].counters


def test_scenarios_engines_and_devices_are_told_apart(written: Callable[..., Path]) -> None:
    named = {"scenario": "mix", "engine": "e1"}
    said = {"kind": "engine", "engine": "e1", "gpu": "NVIDIA H200", "model": "llama-2-7b"}
    cpu, gpu = COUNTER | named | {"device": "h/cpu:0"}, COUNTER | named | {"device": "h/gpu:0"}
    trace = read_trace(written(said, COUNTER, cpu, gpu, REQUEST | named))
    assert list(trace.scenarios) == [WHOLE, "mix"]
    assert trace.scenarios["mix"].engines() == {"e1": ("h/gpu:0", "h/cpu:0")}
    assert trace.scenarios[WHOLE].engines() == {"": ("",)}
    assert trace.engines == {"e1": ("NVIDIA H200", "llama-2-7b")}


def test_lines_out_of_order_come_into_order_and_a_line_that_comes_twice_counts_once(
    written: Callable[..., Path],
) -> None:
    later = COUNTER | {"t": 12.0}
    scenario = read_trace(written(later, REQUEST, COUNTER, REQUEST, later)).scenarios[WHOLE]
    assert [line.t for line in scenario.counters] == [10.0, 12.0] and len(scenario.served) == 1


def test_what_is_not_known_is_passed_over(written: Callable[..., Path]) -> None:
    scenario = read_trace(written(COUNTER | {"new": [1]}, {"kind": "weather"}, {"a": 1}, b"\n", REQUEST | {"x": {}}))
    assert len(scenario.scenarios[WHOLE].counters) == len(scenario.scenarios[WHOLE].served) == 1


@pytest.mark.parametrize(
    ("fields", "streamed", "first", "end"),
    [
        ({"first": None, "ticks": []}, False, None, 11.0),  # without a stream
        ({"first": None, "ticks": [], "out": None}, True, None, 11.0),  # left before it began
        ({"first": None, "ticks": [], "stream": True, "out": 3}, True, None, 11.0),
        ({"first": None}, True, 9.5, 11.0),  # the ticks say when
        ({"ticks": []}, True, 9.5, 11.0),
        ({"ticks": [11.2, 9.5], "end": None}, True, 9.5, 11.2),
        ({"first": None, "ticks": None, "end": None}, False, None, None),
    ],
)
def test_what_a_request_leaves_unsaid_is_taken_from_the_rest(
    written: Callable[..., Path], fields: dict[str, Any], streamed: bool, first: float | None, end: float | None
) -> None:
    (one,) = read_trace(written(COUNTER, REQUEST | fields)).scenarios[WHOLE].served
    assert (one.streamed, one.first, one.end) == (streamed, first, end)


@pytest.mark.parametrize("cut", [b'{"kind": "coun', b'{"kind": "request", "t0": 1.0}x', b"\xff\xfe"])
def test_a_last_line_that_was_cut_off_is_left_out(written: Callable[..., Path], cut: bytes) -> None:
    assert len(read_trace(written(COUNTER, cut)).scenarios[WHOLE].counters) == 1


def test_a_gzipped_file_of_somebody_who_was_killed_is_read_as_far_as_it_goes(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    whole = written(*[COUNTER | {"t": 10.0 + n / 7} for n in range(2000)], name="t.jsonl.gz").read_bytes()
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    assert 100 < len(read_trace(tmp_path / "cut.gz").scenarios[WHOLE].counters) < 2000


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "no counter in it"),
        ([REQUEST], "no counter in it"),
        ([b"{not json\n", COUNTER], "line 1: not JSON"),
        ([[1, 2]], "line 1: a line of a trace is a JSON object"),
        ([{"kind": "counter", "t": 1.0}], "line 1: 'energy_mj' is missing"),
        ([COUNTER, COUNTER | {"t": "now"}], "line 2: 't' is a number, not 'now'"),
        ([COUNTER | {"steps": True}], "line 1: 'steps' is a number, not True"),
        ([COUNTER, REQUEST | {"ticks": 7}], "line 2: 'ticks' is a list of Unix seconds, not 7"),
        ([COUNTER, REQUEST | {"ticks": [1.0, None]}], "line 2: 'ticks' is a number, not None"),
        ([COUNTER, {"kind": "request", "id": "r"}], "line 2: 't0' is missing"),
    ],
)
def test_a_file_that_is_no_trace_is_one_line(written: Callable[..., Path], lines: list[Any], says: str) -> None:
    with pytest.raises(TraceError) as error:
        read_trace(written(*lines))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8b" + b"rubbish" * 20)
    for path in (tmp_path / "none.jsonl", tmp_path, tmp_path / "bad.gz"):
        with pytest.raises(TraceError) as error:
            read_trace(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
