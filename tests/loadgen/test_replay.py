import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from loadgen.arrivals import Closed, Trace
from loadgen.coding import Coding
from loadgen.prompt import about_tokens
from loadgen.record import write
from loadgen.recorded import RecordedError, recorded_runs
from loadgen.replay import Replay
from loadgen.schedule import Load, Stream
from loadgen.search import Search
from loadgen.virtual import run
from loadgen.virtual_host import Host


def called(run: str, node: str, prompt: int, output: int, started: float, ended: float, **more: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "output_tokens": output}
    return {"run": run, "node": node, "started": started, "ended": ended, **counts, **more}


LINES = [
    called("b", "", 9, 4, 107.0, 108.0, step="later"),
    called("a", "x", 50, 7, 100.0, 101.0, workflow="w"),
    called("a", "y", 60, 7, 101.5, 104.0, cached_tokens=40),
    called("a", "z", 20, 7, 102.0, 103.0, parents=["x"]),
    called("a", "end", 30, 2, 104.25, 105.0),
]


def lines(folder: Path, calls: list[dict[str, Any]]) -> str:
    file = folder / "calls.jsonl"
    file.write_text("".join(json.dumps(call) + "\n" for call in calls))
    return str(file)


def test_order_and_pauses_are_those_of_the_recording(tmp_path: Path) -> None:
    workload = Replay(lines(tmp_path, LINES))
    plan = workload.plan(Random(0), 0)
    assert plan.workflow == "w" and [call.node for call in plan.calls] == ["x", "y", "z", "end"]
    assert [(*call.parents, *call.after) for call in plan.calls] == [(), ("x",), ("x",), ("y",)]
    assert [call.pause_s for call in plan.calls] == pytest.approx([0.0, 0.5, 1.0, 0.25])
    assert [call.parents for call in plan.calls] == [(), (), ("x",), ()]
    assert [call.max_tokens for call in plan.calls] == [7, 7, 7, 2]
    assert [sum(map(about_tokens, call.prompt)) for call in plan.calls] == [50, 60, 20, 30]
    assert workload.arrivals() == Trace((0.0, 7.0))
    fast = replace(workload, pace=2.0)
    assert fast.arrivals() == Trace((0.0, 3.5)) and fast.plan(Random(0), 0).calls[2].pause_s == 0.5
    assert workload.plan(Random(0), 1).calls[0].step == "later" and workload.plan(Random(0), 2).workflow == "w"


def test_what_was_cached_is_shared_by_the_calls_of_a_step(tmp_path: Path) -> None:
    calls = [{"run": n, "prompt_tokens": 400, "cached_tokens": 320 * (n != "0"), "output_tokens": 4} for n in "0123"]
    workload = Replay(lines(tmp_path, calls))
    result = run(Load((Stream((workload,), Closed(1), 4),)), Host())
    assert [request.prompt_tokens for request in result.requests] == [400] * 4
    assert [request.cached_tokens for request in result.requests] == [0, 0, 320, 320]


def test_prompts_that_were_kept_are_sent(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    calls = [{"run": "a", "prompt": "hello", "max_tokens": 3}, {"run": "a", "messages": chat, "max_tokens": 3}]
    first, second = Replay(lines(tmp_path, calls)).plan(Random(0)).calls
    assert first.messages({}) == [{"role": "user", "content": "hello"}] and second.messages({}) == chat
    assert second.after == (first.node,)


@pytest.mark.parametrize("workload", [Search.paper(), Coding.small()])
def test_a_load_that_was_recorded_can_be_replayed(tmp_path: Path, workload: Any) -> None:
    result = run(Load((Stream((workload,), Closed(2, think_s=1.0), 4),)), Host())
    write(tmp_path / "load.jsonl", result)
    replay = Replay(str(tmp_path / "load.jsonl"))
    again = run(Load((Stream((replay,), replay.arrivals()),)), Host())
    assert len(again.runs) == 4 and {one.workflow for one in again.runs} == {workload.name}
    for first, second in zip(result.runs, sorted(again.runs, key=lambda one: one.ended_s), strict=True):
        assert (first.requests, first.prompt_tokens, first.output_tokens) == (
            *(second.requests, second.prompt_tokens, second.output_tokens),
        )
        assert second.ended_s == pytest.approx(first.ended_s, rel=0.1)


def test_a_ledger_can_be_replayed(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE runs (uid, workflow)")
        columns = (
            "id, run_uid, step, node, parents, received, ended, outcome, prompt_tokens, cached_tokens, output_tokens"
        )
        db.execute(f"CREATE TABLE requests ({columns})")
        db.execute("INSERT INTO runs VALUES ('u', 'search')")
        for row in (
            ("r1", "u", "q", None, "[]", 10.0, 11.0, "ok", 100, None, 5),
            ("r2", "u", "q", "n2", '["r1"]', 11.5, 12.0, "ok", 200, 64, 6),
            ("r3", "u", "q", "n3", "[]", 13.0, None, "failed", None, None, None),
        ):
            db.execute(f"INSERT INTO requests VALUES ({','.join('?' * len(row))})", row)
    db.close()
    (found,) = recorded_runs(str(file))
    assert [(one.call.node, one.waits_for, one.pause_s) for one in found.calls] == [
        ("r1", (), 0.0),
        ("n2", ("r1",), 0.5),
    ]
    assert (found.workflow, found.calls[1].call.cached_tokens) == ("search", 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no call that was answered"),
        ("oops\n", "line 1 is not a JSON object"),
        ("[]\n", "line 1 is not a JSON object"),
        ('{"run": "a"}\n', "line 1: output_tokens"),
        ('{"run": "a", "output_tokens": 3}\n', "line 1 needs output_tokens, and prompt_tokens"),
        ('{"kind":"load","driver":"x"}\n', "line 1: "),
        ('{"run": "a", "node": "n", "prompt": "x", "max_tokens": 3}\n' * 2, "two calls that are called 'n'"),
        ("SQLite format 3\x00", "no ledger of Joulegate"),
    ],
)
def test_what_cannot_be_replayed_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recording"
    file.write_text(text)
    with pytest.raises(RecordedError, match=message):
        recorded_runs(str(file))


def test_a_replay_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a file"):
        Replay().plan(Random(0))
    with pytest.raises(RecordedError, match="cannot be read"):
        recorded_runs(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="got 0"):
        Replay(pace=0)
