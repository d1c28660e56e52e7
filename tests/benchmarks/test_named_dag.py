"""What is compared when coding is sent as a named DAG and call by call, and what is made of the trials."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import named_dag, real_nodes
from benchmarks.real_nodes import Case, prompt_of, trials
from loadgen.coding import Coding
from loadgen.workload import Execution
from proxy.nodes.placeholders import filled


def row(mode: str, repeat: int, latency_s: float, joules: float, users: int = 1) -> dict[str, Any]:
    runs = [f"{mode}-{repeat}-{user}" for user in range(users)]
    found = {"users": users, "rtt_ms": 0.0, "repeat": repeat, "mode": mode, "runs": runs, "latency_s": [latency_s]}
    return found | {"j_per_run": joules, "prompt_tokens": 900, "output_tokens": 100}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [row(mode, n, 4.0 * (1 + n), 100.0) for n in range(3) for mode in ("calls",)]
    rows += [row("nodes", n, 3.0 * (1 + n), 90.0 + n) for n in range(4)]  # one more than there are pairs
    receipts = [{"run": one["runs"][0], "joules": 50.0, "settled": one["repeat"] < 2} for one in rows]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "receipts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in receipts))
    return tmp_path


def test_both_ways_take_turns_and_no_case_has_the_same_first_always() -> None:
    cases = [Case.of("1x0"), Case.of("4x50")]
    order = list(trials(cases, 4))
    for case in cases:
        ways = [[one.mode for one in order if (one.case, one.repeat) == (case, n)] for n in range(4)]
        assert all(sorted(pair) == ["calls", "nodes"] for pair in ways)
        assert [pair[0] for pair in ways].count("calls") == 2
    assert cases[1] == Case(4, 50.0)


def test_a_gateway_fills_the_named_prompt_to_the_very_text_of_the_other() -> None:
    run = Coding.small().plan(Random(3))
    outputs: dict[str, str] = {}
    execution = Execution(run)
    while not execution.done:
        for dispatch in execution.take_ready():
            call = dispatch.call
            named = prompt_of(call, {}, "nodes")
            assert filled(named, outputs, call.parents) == prompt_of(call, outputs, "calls")
            outputs[call.node] = f" what {call.node} says, and more of it"
            execution.answer(call.node, outputs[call.node])


def test_an_answer_and_its_usage_are_read_from_a_stream() -> None:
    frames = [{"choices": [{"text": " a"}]}, {"choices": [{"text": " b"}]}, {"choices": [], "usage": {"x": 2}}]
    data = b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames) + b"data: [DONE]\n\n"
    assert real_nodes.read(data) == (" a b", {"x": 2})


def test_the_change_is_that_of_pairs_and_only_of_pairs(folder: Path) -> None:
    *lines, _, sure = named_dag.table(named_dag.read(folder)).splitlines()[2:]
    assert "among the 3 changes" in sure and "latency of a run (s), 1 at once, 0 ms away; joules" in sure
    rows = {line.split("|")[3].strip(): line for line in lines}
    latency = rows["latency of a run (s)"]
    assert "| 8.00 | 6.00 | -25.00% (-25.00% to -25.00%) | 3 |" in latency
    joules = rows["joules a run (machine, idle included)"]
    assert "| 100.00 | 91.00 | -9.0" in joules and joules.endswith("| 3 |")
    assert rows["joules a run (receipts)"].endswith("| +0.00% (+0.00% to +0.00%) | 2 |")  # a third is not settled


def test_trials_without_receipts_have_a_table_all_the_same(folder: Path) -> None:
    (folder / "receipts.jsonl").unlink()
    said = named_dag.table(named_dag.read(folder))
    assert "latency of a run" in said and "receipts" not in said


async def test_the_edge_of_a_counter_is_where_it_has_just_moved() -> None:
    readings = iter([5.0, 5.0, 5.0, 7.0, 9.0])
    assert await real_nodes.edge(lambda: next(readings)) == 7.0
