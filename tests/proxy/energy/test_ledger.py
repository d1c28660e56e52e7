import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.ledger import Ledger
from proxy.energy.ledger_file import LedgerDraining, LedgerError, LedgerMismatch
from proxy.energy.ledger_reader import LedgerReader, Parts, check_place, worst
from proxy.energy.records import (
    AttemptRecord,
    Batch,
    DayEnergy,
    DayRequests,
    DayRuns,
    DeviceRecord,
    Dropped,
    EnergyRecord,
    Outcome,
    Quality,
    RequestRecord,
    RunRecord,
    SpentRecord,
    WindowRecord,
    waste_of,
)
from proxy.energy.schema import APPLICATION_ID, MIGRATIONS
from proxy.energy.sums import WASTE

Rows = Callable[[Path, str], list[tuple]]

RUN = RunRecord("u1", "default", "r1", "search", 100.0, 104.0, "open")
REQUEST = RequestRecord(
    id="q1",
    run_uid="u1",
    step="query",
    node="query-1",
    parents='["plan-1","q0"]',
    identified_by='{"run":"X-Workflow-Id"}',
    path="/v1/chat/completions",
    received=100.0,
    model="m",
    stream=1,
    ended=104.0,
    code=200,
    outcome="ok",
    prompt_tokens=30,
    cached_tokens=10,
    output_tokens=8,
    usage="engine",
)
ATTEMPT = AttemptRecord("q1", 1, "e1", 100.1, 100.2, 101.5, 104.0, 200, "ok")
ENERGY = EnergyRecord("q1", 1, "h1/gpu:0", "attributed", "gpu", 0, 2_000_000, 1_500_000, 2_500_000)
WINDOW = WindowRecord("h1/gpu:0", 103, Quality.MEASURED, 2_000_000, 500_000, 0, 7)
DEVICE = DeviceRecord("h1/gpu:0", "gpu", "H200", Quality.MEASURED, 2_500_007, 9_000_000, 104.0)
WHOLE = Batch([RUN], [REQUEST], [ATTEMPT], [ENERGY], [WINDOW], [DEVICE])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there" / "yet" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path)
    yield ledger
    ledger.close()


@pytest.fixture
def reader(ledger: Ledger) -> LedgerReader:
    return LedgerReader(ledger.path)


def test_a_runs_graph_knows_waits_from_work(ledger: Ledger, reader: LedgerReader) -> None:
    """Both came at 100; the second waited for the first until 104 and then in the queue until 105."""
    first = REQUEST._replace(id="q0", node="plan-1", parents="[]", step="plan")
    second = REQUEST._replace(parents='["plan-1"]', ended=107.0)
    refused = REQUEST._replace(id="q2", node="lost", parents='["ghost"]', ended=103.0, code=424, outcome="refused")
    running = REQUEST._replace(id="q3", node="late", parents='["query-1"]', ended=None, code=None, outcome=None)
    attempts = [
        ATTEMPT._replace(request_id="q0", queued=100.0, dispatched=100.0),
        ATTEMPT._replace(queued=104.0, dispatched=105.0, ended=107.0),
    ]
    ledger.write(replace(WHOLE, requests=[first, second, refused, running], attempts=attempts))
    run = reader.run("default", "r1")
    assert run is not None
    by_node = {request["node"]: request for request in run["requests"]}
    waits = {node: (request["held_s"], request["queued_s"]) for node, request in by_node.items()}
    assert waits == {"plan-1": (0.0, 0.0), "query-1": (4.0, 1.0), "lost": (3.0, 0), "late": (None, 0)}
    place = {"parents": (), "slack_s": 0.0, "joules": None}
    assert run["dag"] == {
        "critical_path": ("plan-1", "query-1"),
        "critical_path_s": 7.0,
        "critical_path_joules": 2.0,
        "nodes": {
            "lost": {**place, "step": "query", "seconds": 0.0, "slack_s": 7.0},
            "plan-1": {**place, "step": "plan", "seconds": 4.0},
            "query-1": {**place, "step": "query", "seconds": 3.0, "parents": ("plan-1",), "joules": 2.0},
        },
    }


def test_a_run_without_parents_has_no_graph(ledger: Ledger, reader: LedgerReader) -> None:
    ledger.write(replace(WHOLE, requests=[REQUEST._replace(parents="[]")]))
    run = reader.run("default", "r1")
    assert run is not None and run["dag"] is None


def test_a_run_is_read_back_whole(ledger: Ledger, reader: LedgerReader) -> None:
    prefill = ENERGY._replace(prefill_uj=1, decode_uj=0, low_uj=0, high_uj=3)
    cpu = ENERGY._replace(device="h1/cpu:0", component="cpu", quality="estimated", decode_uj=500_000)
    ledger.write(replace(WHOLE, energy=[ENERGY, prefill, cpu]))
    worth = {"joules_wasted": 0.0, "wasted_by_reason": {}, "saved_joules": 0.0, "saved_quality": None}
    run = reader.run("default", "r1")
    assert run is not None
    request = run.pop("requests")[0]
    assert run.pop("dag")["critical_path"] == ("query-1",)
    assert run == {
        "run": "r1",
        "tenant": "default",
        "workflow": "search",
        "segment": 1,
        "state": "open",
        "opened": 100.0,
        "ended": 104.0,
        "duration_s": 4.0,
        "joules": 2.500001,
        "joules_low": 3.0,
        "joules_high": 5.000003,
        "quality": "estimated",
        **worth,
        "by_step": {"query": {"requests": 1, "joules": 2.500001, "output_tokens": 8}},
    }
    assert request == {
        "id": "q1",
        "step": "query",
        "node": "query-1",
        "parents": ["plan-1", "q0"],
        "identified_by": {"run": "X-Workflow-Id"},
        "model": "m",
        "path": "/v1/chat/completions",
        "engine": "e1",
        "attempts": 1,
        "outcome": "ok",
        "code": 200,
        "stream": True,
        "received": 100.0,
        "held_s": pytest.approx(0.1),
        "queued_s": pytest.approx(0.1),
        "duration_s": 4.0,
        "ttft_s": 1.5,
        "prompt_tokens": 30,
        "cached_tokens": 10,
        "output_tokens": 8,
        "usage": "engine",
        "joules": 2.500001,
        "joules_low": 3.0,
        "joules_high": 5.000003,
        "quality": "estimated",
        **worth,
        "by_component": {"gpu": 2.000001, "cpu": 0.5},
        "by_phase": {"prefill": 1e-06, "decode": 2.5},
        "by_place": {("h1", "attributed"): 2_000_001, ("h1", "estimated"): 500_000},
    }
    whose = {"run": "r1", "tenant": "default", "workflow": "search", "segment": 1}
    assert reader.request("q1") == {**whose, **request}
    assert reader.run("other", "r1") is None and reader.run(None, "r2") is None and reader.request("q2") is None


def test_energy_and_windows_are_added_and_the_rest_replaced(ledger: Ledger, reader: LedgerReader) -> None:
    ledger.write(WHOLE)
    ledger.write(
        Batch(
            runs=[RUN._replace(ended=110.0, state="closed")],
            requests=[REQUEST._replace(output_tokens=9)],
            attempts=[ATTEMPT._replace(n=2, engine="e2", first=103.0)],
            energy=[ENERGY, ENERGY._replace(attempt=2, decode_uj=1)],
            windows=[WINDOW],
            devices=[DEVICE._replace(raw_uj=11_500_007, t=110.0)],
        )
    )
    run = reader.run(None, "r1")
    assert run is not None
    assert (run["workflow"], run["state"], run["duration_s"], run["joules"]) == ("search", "closed", 10.0, 4.000001)
    request = run["requests"][0]
    assert (request["attempts"], request["engine"], request["ttft_s"], request["output_tokens"]) == (2, "e2", 3.0, 9)
    assert reader.parts() == {"h1/gpu:0": Parts(4_000_000, 1_000_000, 0, 14)}
    assert reader.devices() == [DEVICE._replace(counter_uj=5_000_014, raw_uj=11_500_007, t=110.0)]
    assert reader.balance()["h1/gpu:0"] == {
        "counter_j": 5.000014,
        "workflow_j": 4.0,
        "idle_j": 1.0,
        "foreign_j": 0.0,
        "gap_j": 0.000014,
        "residual_j": 0.0,
        "quality": "measured",
    }


def test_workflow_totals(ledger: Ledger, reader: LedgerReader) -> None:
    cancelled = REQUEST._replace(id="q2", outcome=Outcome.CANCELLED, prompt_tokens=None, output_tokens=2)
    flying = REQUEST._replace(id="q3", step="plan", outcome=None, ended=None, output_tokens=None)
    ledger.write(
        Batch(
            runs=[RUN._replace(state="final"), RUN._replace(uid="u2", run="r2"), RUN._replace(uid="u3", tenant="b")],
            requests=[REQUEST, cancelled, flying, REQUEST._replace(id="q4", outcome=Outcome.FAILED, run_uid="u2")],
            attempts=[
                ATTEMPT._replace(outcome=Outcome.FAILED),
                ATTEMPT._replace(n=2),
                ATTEMPT._replace(request_id="q2", outcome=Outcome.CANCELLED),
                ATTEMPT._replace(request_id="q3", outcome=None),
            ],
            energy=[
                ENERGY._replace(decode_uj=1_000_000),
                ENERGY._replace(attempt=2, decode_uj=10_000_000),
                ENERGY._replace(request_id="q2", decode_uj=100_000_000),
                ENERGY._replace(request_id="q3", decode_uj=1_000_000_000),
            ],
        )
    )
    search, other = reader.workflows()
    assert (other["tenant"], other["runs"], other["requests"], other["quality"]) == ("b", 1, 0, None)
    assert other["joules_per_output_token"] is None and other["mean_duration_s"] is None
    assert search["runs"] == 2 and search["mean_duration_s"] == 4.0
    assert (search["requests"], search["failed"], search["cancelled"], search["refused"]) == (4, 1, 1, 0)
    assert (search["prompt_tokens"], search["cached_tokens"], search["output_tokens"]) == (90, 40, 18)
    assert search["joules"] == 1111.0 and search["joules_wasted"] == 101.0 and search["joules_per_run"] == 555.5
    assert search["joules_per_output_token"] == 1111 / 18
    assert search["by_component"] == {"gpu": 1111.0} and search["quality"] == "attributed"
    assert search["by_step"]["plan"] == {"requests": 1, "joules": 1000.0, "output_tokens": 0}
    assert [row["tenant"] for row in reader.workflows("b")] == ["b"] and reader.workflows("nobody") == []
    assert reader.engines()["e1"]["joules"] == 1111.0
    assert search["wasted_by_reason"] == {"retried": 1.0, "cancelled": 100.0}
    ledger.write(Batch(attempts=[ATTEMPT._replace(request_id="q3", outcome=Outcome.FAILED)]))
    assert reader.workflows("default")[0]["joules_wasted"] == 101.0, "another attempt may still answer"
    ledger.write(Batch(requests=[flying._replace(outcome=Outcome.FAILED)]))
    wasted = reader.workflows("default")[0]["wasted_by_reason"]
    assert wasted == {"retried": 1.0, "cancelled": 100.0, "failed": 1000.0}, "what it cost before it failed, too"


@pytest.mark.parametrize(
    ("outcomes", "request_outcome", "reasons"),
    [
        (["ok"], "ok", {}),
        (["failed", "ok"], "ok", {"retried": 1.0}),
        (["error", "failed"], "failed", {"failed": 3.0}),
        (["failed", "cancelled"], "cancelled", {"failed": 1.0, "cancelled": 2.0}),
        (["refused"], "refused", {"stopped": 1.0}),
        (["failed", None], None, {}),
    ],
)
def test_waste_has_a_reason_wherever_it_is_asked_for(
    ledger: Ledger,
    reader: LedgerReader,
    outcomes: list[str | None],
    request_outcome: str | None,
    reasons: dict,
    totals_equal_detail: Callable[[Path], bool],
) -> None:
    tries = [ATTEMPT._replace(n=n, outcome=outcome) for n, outcome in enumerate(outcomes, start=1)]
    energy = [ENERGY._replace(attempt=one.n, decode_uj=one.n * 1_000_000) for one in tries]
    ledger.write(Batch([RUN], [REQUEST._replace(outcome=request_outcome)], tries, energy))
    run, request = reader.run(None, "r1"), reader.request("q1")
    assert run is not None and request is not None
    for figures in (run, run["requests"][0], request, reader.runs()[0], reader.workflows()[0]):
        assert figures["wasted_by_reason"] == reasons and figures["joules_wasted"] == sum(reasons.values())
    assert totals_equal_detail(ledger.path)


@pytest.mark.parametrize("attempt", [None, *Outcome])
@pytest.mark.parametrize("request_outcome", [None, *Outcome])
def test_sql_and_python_agree_on_what_is_waste(attempt: Outcome | None, request_outcome: Outcome | None) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript("CREATE TABLE attempts (outcome); CREATE TABLE requests (outcome);")
        db.execute("INSERT INTO attempts VALUES (?)", (attempt,))
        db.execute("INSERT INTO requests VALUES (?)", (request_outcome,))
        said = db.execute(f"SELECT {WASTE} FROM attempts, requests").fetchone()[0]
    assert said == (waste_of(attempt, request_outcome) or "")


def test_what_was_saved_is_beside_the_joules(
    ledger: Ledger, reader: LedgerReader, totals_equal_detail: Callable[[Path], bool]
) -> None:
    ledger.write(WHOLE)
    guessed = REQUEST._replace(saved_uj=5, saved_quality="estimated")
    fitted = REQUEST._replace(id="q2", saved_uj=1_000_000, saved_quality="attributed")
    ledger.write(Batch(requests=[guessed, fitted], attempts=[ATTEMPT._replace(request_id="q2")]))
    run, first, second = reader.run(None, "r1"), reader.request("q1"), reader.request("q2")
    assert run is not None and first is not None and second is not None
    assert (first["saved_joules"], first["saved_quality"], first["joules"]) == (5e-6, "estimated", 2.0)
    assert (second["saved_joules"], second["saved_quality"], second["joules"]) == (1.0, "attributed", None)
    for figures in (run, reader.runs()[0], reader.workflows()[0]):
        assert (figures["saved_joules"], figures["saved_quality"]) == (1.000005, "estimated")
        assert figures["joules"] == 2.0, "what was not spent is in no sum"
    assert totals_equal_detail(ledger.path) and reader.workflows()[0]["requests"] == 2


def test_what_tenants_spent_is_kept_by_the_hour(ledger: Ledger, reader: LedgerReader) -> None:
    ledger.write(Batch(spent=[SpentRecord("a", 10, 5), SpentRecord("a", 11, 7), SpentRecord("b", 11, 1)]))
    ledger.write(Batch(spent=[SpentRecord("a", 11, 100)]))
    assert reader.spent(since=10) == {"a": {10: 5, 11: 107}, "b": {11: 1}}
    assert reader.spent(since=11) == {"a": {11: 107}, "b": {11: 1}}


def test_what_a_run_spent_in_its_earlier_segments(ledger: Ledger, reader: LedgerReader) -> None:
    ledger.write(WHOLE)
    runs = [RUN._replace(uid="u2", opened=200.0), RUN._replace(uid="u3", tenant="b")]
    requests = [REQUEST._replace(id=f"q{n}", run_uid=f"u{n}") for n in (2, 3)]
    tries = [ATTEMPT._replace(request_id=f"q{n}") for n in (2, 3)]
    ledger.write(Batch(runs, requests, tries, [ENERGY._replace(request_id=f"q{n}", prefill_uj=n) for n in (2, 3)]))
    assert reader.run_uj("default", "r1") == 4_000_002
    assert reader.run_uj("default", "r1", but=("u2",)) == 2_000_000
    assert reader.run_uj("b", "r1") == 2_000_003 and reader.run_uj("b", "r2") == 0


def test_what_no_counter_saw_is_not_0_joules(ledger: Ledger, reader: LedgerReader) -> None:
    unseen = REQUEST._replace(id="q2", run_uid="u2", step="plan")
    attempts = [ATTEMPT, ATTEMPT._replace(request_id="q3")]
    ledger.write(replace(WHOLE, requests=[REQUEST, REQUEST._replace(id="q3", step="rank")], attempts=attempts))
    ledger.write(
        Batch([RUN._replace(uid="u2", run="r2", workflow="far")], [unseen], [ATTEMPT._replace(request_id="q2")])
    )
    run, request = reader.run(None, "r2"), reader.request("q2")
    assert run is not None and request is not None
    for figures in (run, request, run["requests"][0], reader.runs(workflow="far")[0]):
        assert [figures[key] for key in ("joules", "joules_low", "joules_high", "quality")] == [None] * 4
    assert run["by_step"] == {"plan": {"requests": 1, "joules": None, "output_tokens": 8}}
    assert (request["by_component"], request["by_phase"]) == ({}, {})
    search, far = reader.workflows()
    assert far["workflow"] == "far" and far["output_tokens"] == 8
    per = ("joules", "joules_low", "joules_high", "joules_per_run", "joules_per_output_token", "joules_wasted")
    assert [far[key] for key in per] == [None] * 6 and far["by_step"]["plan"]["joules"] is None
    assert search["joules"] == 2.0 and search["joules_wasted"] == 0.0
    assert search["by_step"]["rank"]["joules"] is None and search["by_step"]["query"]["joules"] == 2.0
    known = reader.run(None, "r1")
    assert known is not None and known["joules"] == 2.0 and known["by_step"]["rank"]["joules"] is None


@pytest.mark.parametrize("place", ["there/ledger.sqlite", "not/there/yet/ledger.sqlite"])
def test_a_place_for_a_ledger_is_looked_at_and_left_as_it_is(tmp_path: Path, place: str) -> None:
    (tmp_path / "there").mkdir()
    check_place(tmp_path / place)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_ledger_in_use_is_a_good_place(ledger: Ledger) -> None:
    check_place(ledger.path)


def test_a_place_where_no_ledger_can_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("this is no database, and long enough to be seen as none " * 20)
    with pytest.raises(LedgerError, match="file is not a folder; set"):
        check_place(file / "deeper" / "ledger.sqlite")
    with pytest.raises(LedgerError, match="file is not a database"):
        check_place(file)
    with pytest.raises(LedgerError, match="cannot be a folder"):
        check_place(tmp_path)
    if os.geteuid():  # root may write everywhere
        tmp_path.chmod(0o500)
        with pytest.raises(LedgerError, match="cannot be written; set"):
            check_place(tmp_path / "ledger.sqlite")
        tmp_path.chmod(0o700)


def test_segments_count_up_for_each_tenant(ledger: Ledger, reader: LedgerReader) -> None:
    for n, tenant in enumerate(["a", "a", "b", "a"]):
        ledger.write(Batch([RUN._replace(uid=f"u{n}", tenant=tenant, opened=float(n), ended=float(n))]))
    ledger.write(Batch([RUN._replace(uid="u3", tenant="a", opened=3.0, ended=9.0)]))  # again: still the same segment
    listed = [(run["tenant"], run["segment"], run["ended"]) for run in reader.runs()]
    assert listed == [("a", 3, 9.0), ("b", 1, 2.0), ("a", 2, 1.0), ("a", 1, 0.0)]
    for tenant, newest in [("a", ("a", 3)), ("b", ("b", 1)), (None, ("a", 3))]:
        run = reader.run(tenant, "r1")
        assert run is not None and (run["tenant"], run["segment"]) == newest


def test_runs_are_filtered(ledger: Ledger, reader: LedgerReader) -> None:
    ledger.write(WHOLE)
    ledger.write(Batch([RUN._replace(uid="u2", run="r2", workflow="chat", opened=200.0, ended=200.0)]))
    assert [run["run"] for run in reader.runs()] == ["r2", "r1"]
    assert [run["run"] for run in reader.runs(limit=1)] == ["r2"]
    assert [run["run"] for run in reader.runs(since=100.1)] == ["r2"]
    assert [run["run"] for run in reader.runs(workflow="search", since=100.0)] == ["r1"]
    assert [run["run"] for run in reader.runs(tenant="default", workflow="chat")] == ["r2"]
    assert reader.runs(tenant="' OR 1=1 --") == []
    assert reader.runs(workflow="search")[0]["requests"] == 1
    assert reader.runs(workflow="search")[0]["joules"] == 2.0
    assert reader.runs(workflow="chat")[0]["output_tokens"] == 0


def test_a_batch_is_written_whole_or_not_at_all(ledger: Ledger, reader: LedgerReader) -> None:
    with pytest.raises(LedgerError, match="never written"):
        ledger.write(replace(WHOLE, energy=[ENERGY, ENERGY._replace(request_id="unknown")]))
    assert reader.runs() == [] and reader.parts() == {}
    ledger.write(WHOLE)
    assert [run["joules"] for run in reader.runs()] == [2.0]


def test_readers_see_one_commit_while_the_next_is_written(ledger: Ledger, reader: LedgerReader) -> None:
    ledger.write(WHOLE)
    with reader.read() as db:
        before = db.execute("SELECT sum(decode_uj) FROM energy").fetchone()[0]
        ledger.write(Batch(energy=[ENERGY]))
        assert db.execute("SELECT sum(decode_uj) FROM energy").fetchone()[0] == before
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("DELETE FROM runs")
    assert reader.runs()[0]["joules"] == 4.0


names = st.sampled_from(["a", "b"])
ids = st.sampled_from(["1", "2", "3"])
outcomes = st.sampled_from([None, *Outcome])
tokens = st.none() | st.integers(0, 1000)
uj = st.integers(0, 10**12)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """What happens to three runs, requests and attempts in one second, in any way the contract allows."""

    def runs() -> RunRecord:
        uid, opened = draw(ids), draw(st.floats(0, 1e9))
        tenant, run = ("t", "x") if uid == "1" else ("s", "y")
        state = draw(st.sampled_from(["open", "closed", "final"]))
        return RunRecord(uid, tenant, run, draw(names), opened, opened + draw(st.floats(0, 1e4)), state)

    def request() -> RequestRecord:
        prompt, cached, output = draw(tokens), draw(tokens), draw(tokens)
        return REQUEST._replace(
            id=draw(ids),
            run_uid=draw(ids),
            step=draw(names),
            outcome=draw(outcomes),
            prompt_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
            saved_uj=(saved := draw(tokens)),
            saved_quality=None if saved is None else draw(st.sampled_from(["attributed", "estimated"])),
        )

    def attempt() -> AttemptRecord:
        return ATTEMPT._replace(
            request_id=draw(ids), n=draw(st.integers(1, 2)), engine=draw(names), outcome=draw(outcomes)
        )

    def energy() -> EnergyRecord:
        device = draw(names)
        return EnergyRecord(
            draw(ids),
            draw(st.integers(1, 2)),
            device,
            draw(st.sampled_from(["attributed", "estimated"])),
            {"a": "gpu", "b": "cpu"}[device],
            draw(uj),
            draw(uj),
            draw(uj),
            draw(uj),
        )

    def window() -> WindowRecord:
        quality = draw(st.sampled_from([Quality.MEASURED, Quality.ESTIMATED]))
        return WindowRecord(draw(names), draw(st.integers(0, 2)), quality, draw(uj), draw(uj), draw(uj), draw(uj))

    def some(record):
        return [record() for _ in range(draw(st.integers(0, 3)))]

    return Batch(some(runs), some(request), some(attempt), some(energy), some(window))


EVERYTHING = Batch(
    runs=[RUN._replace(uid=n, tenant=t, run=r) for n, t, r in [("1", "t", "x"), ("2", "s", "y"), ("3", "s", "y")]],
    requests=[REQUEST._replace(id=n, run_uid=n) for n in "123"],
    attempts=[ATTEMPT._replace(request_id=request, n=n) for request in "123" for n in (1, 2)],
)


@settings(max_examples=40, deadline=None)
@given(seconds=st.lists(batches(), max_size=5))
def test_no_joule_is_lost_and_totals_equal_the_detail(
    seconds: list[Batch], totals_equal_detail: Callable[[Path], bool], rows: Rows
) -> None:
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        reader = LedgerReader(ledger.path)
        for batch in [EVERYTHING, *seconds]:
            ledger.write(batch)
            assert totals_equal_detail(ledger.path)
        given_uj: Counter[str] = Counter()
        parts_uj: Counter[str] = Counter()
        for batch in seconds:
            for record in batch.energy:
                given_uj[record.component] += record.prefill_uj + record.decode_uj
            for window in batch.windows:
                parts_uj[window.device] += window.workflow_uj + window.idle_uj + window.foreign_uj + window.gap_uj
        kept = Counter(dict(rows(ledger.path, "SELECT component, sum(uj) FROM total_energy GROUP BY component")))
        assert +kept == +given_uj
        assert +Counter({device: sum(parts) for device, parts in reader.parts().items()}) == +parts_uj
        runs_uj = sum(round((run["joules"] or 0.0) * 1e6) for run in reader.runs())
        workflows_uj = sum(round((row["joules"] or 0.0) * 1e6) for row in reader.workflows())
        assert runs_uj == workflows_uj == given_uj.total()
        ledger.close()
        Ledger(ledger.path).close()
        assert totals_equal_detail(ledger.path)
        assert {run["state"] for run in reader.runs()} == {"final"}


def test_what_an_earlier_process_left_open_becomes_final(
    path: Path, totals_equal_detail: Callable[[Path], bool]
) -> None:
    ledger = Ledger(path)
    assert ledger.orphaned_uj == {}
    left = [ATTEMPT._replace(outcome=Outcome.FAILED), ATTEMPT._replace(n=2, ended=None, outcome=None)]
    energy = [ENERGY, ENERGY._replace(attempt=2, prefill_uj=5)]
    ledger.write(replace(WHOLE, requests=[REQUEST._replace(outcome=None, ended=None)], attempts=left, energy=energy))
    ledger.write(Batch(requests=[REQUEST._replace(id="q2")], attempts=[ATTEMPT._replace(request_id="q2")]))
    ledger.close()
    ledger = Ledger(path)
    run = LedgerReader(path).run("default", "r1")
    assert run is not None and run["state"] == "final"
    assert [request["outcome"] for request in run["requests"]] == ["orphaned", "ok"]
    assert run["wasted_by_reason"] == {"failed": 2.0, "orphaned": 2.000005}
    assert ledger.orphaned_uj == {"search": 2_000_005} and totals_equal_detail(path)
    assert LedgerReader(path).workflows()[0]["mean_duration_s"] == 4.0
    ledger.write(Batch([RUN._replace(uid="u2")]))
    again = LedgerReader(path).run("default", "r1")
    assert again is not None and again["segment"] == 2
    ledger.close()


WRITE_UNTIL_KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from proxy.energy.ledger import Ledger
from proxy.energy.records import *

ledger = Ledger(Path(sys.argv[1]))
n = 0
while True:
    n += 1
    id = f"q{n}"
    ledger.write(Batch(
        [RunRecord("u", "default", "r", "search", 1.0, 2.0, "open")],
        [RequestRecord(id, "u", "s", None, "[]", "{}", "/", 1.0, "m", 0, None, None, None, 1, 1, 1, "none")],
        [AttemptRecord(id, 1, "e", 1.0, 1.0, None, None, None, None)],
        [EnergyRecord(id, 1, "d", "attributed", "gpu", 3, 4, 6, 8)],
        [WindowRecord("d", n, Quality.MEASURED, 7, 1, 0, 0)],
        [DeviceRecord("d", "gpu", "m", Quality.MEASURED, 8, 8 * n, 1.0)],
    ))
    print(n, flush=True)
"""


def test_kill_9_leaves_every_commit_and_no_half_of_one(path: Path, totals_equal_detail: Callable[[Path], bool]) -> None:
    root = Path(__file__).parents[3]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    committed = [int(writer.stdout.readline()) for _ in range(40)][-1]
    os.kill(writer.pid, signal.SIGKILL)
    committed = [committed, *map(int, writer.stdout.read().split())][-1]
    writer.wait()
    writer.stdout.close()
    ledger = Ledger(path)
    ledger.close()
    assert totals_equal_detail(path)
    balance = LedgerReader(path).balance()["d"]
    written = round(balance["counter_j"] * 1e6) // 8
    assert written in (committed, committed + 1) and balance["residual_j"] == 0
    run = LedgerReader(path).run("default", "r")
    assert run is not None and run["state"] == "final"
    assert len(run["requests"]) == written and round(run["joules"] * 1e6) == 7 * written


def test_a_file_of_version_1_comes_along_with_all_it_holds(
    path: Path, totals_equal_detail: Callable[[Path], bool], rows: Rows
) -> None:
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"{MIGRATIONS[0]} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;")
        db.executemany(
            "INSERT INTO runs VALUES (?, 't', ?, 1, 'search', 100, 104, 'open')", [("u1", "r1"), ("u2", "r2")]
        )
        db.executemany(
            "INSERT INTO requests VALUES (?, ?, 'query', NULL, '[]', '{\"run\":\"x\"}', 'm', '/v1', 1, 100, 104, 200,"
            " ?, 30, 10, 8, 'engine', ?)",
            [("q2", "u2", None, 0), ("q1", "u1", "ok", 1)],
        )
        db.executemany(
            "INSERT INTO attempts VALUES (?, 1, 'e1', 100, 100, 101, 104, 200, ?)", [("q1", "ok"), ("q2", None)]
        )
        db.executemany(
            "INSERT INTO energy VALUES (?, 1, 'h1/gpu:0', 'gpu', ?, 'attributed', ?, ?, ?)",
            [("q1", "prefill", 3, 2, 4), ("q1", "decode", 50, 40, 60), ("q2", "decode", 700, 600, 800)],
        )
        db.execute("INSERT INTO windows VALUES ('h1/gpu:0', 103, 'measured', 753, 5, 0, 7)")
        db.execute("INSERT INTO total_windows VALUES ('h1/gpu:0', 'measured', 753, 5, 0, 7)")
        db.execute("INSERT INTO devices VALUES ('h1/gpu:0', 'gpu', 'H200', 'measured', 765, 9000, 104)")
        db.execute("INSERT INTO total_runs VALUES ('t', 'search', 'open', 2, 8000000)")
        db.execute("INSERT INTO total_requests VALUES ('t', 'search', 'query', 'ok', 1, 30, 10, 8)")
        db.execute("INSERT INTO total_requests VALUES ('t', 'search', 'query', '', 1, 30, 10, 8)")
        db.execute("INSERT INTO total_energy VALUES ('t','search','query','e1','gpu','attributed','ok', 2, 53, 42, 64)")
        db.execute("INSERT INTO total_energy VALUES ('t','search','query','e1','gpu','attributed','',1,700,600,800)")
        db.commit()
    ledger, reader = Ledger(path), LedgerReader(path)
    assert totals_equal_detail(path) and rows(path, "PRAGMA foreign_key_check") == []
    run, request = reader.run("t", "r2"), reader.request("q1")
    assert run is not None and (run["state"], run["joules"]) == ("final", 0.0007)
    assert run["requests"][0]["outcome"] == "orphaned" and reader.spent(since=0) == {"t": {0: 753}}
    assert reader.workflows()[0]["wasted_by_reason"] == {"orphaned": 0.0007}
    assert request is not None and request["by_phase"] == {"prefill": 3e-06, "decode": 5e-05}
    assert (request["joules_low"], request["joules_high"], request["identified_by"]) == (42e-6, 64e-6, {"run": "x"})
    assert (request["stream"], request["model"], request["path"], request["received"]) == (True, "m", "/v1", 100.0)
    assert reader.balance()["h1/gpu:0"]["residual_j"] == 0.0 and reader.workflows()[0]["joules"] == 0.000753
    ledger.write(Batch(energy=[ENERGY]))
    again = reader.request("q1")
    assert again is not None and again["joules"] == 2.000053 and totals_equal_detail(path)
    with pytest.raises(LedgerError, match="never written"):
        ledger.write(Batch(energy=[ENERGY._replace(request_id="q9")]))
    ledger.close()


def test_a_file_of_version_3_brings_its_days_along(
    path: Path, rows: Rows, totals_equal_detail: Callable[[Path], bool]
) -> None:
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(
            f"{''.join(MIGRATIONS[:3])} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 3;"
        )
        db.execute("INSERT INTO day_requests VALUES ('1970-01-01', 't', 'search', 's', 'ok', 2, 30, 10, 8)")
        db.execute("INSERT INTO total_requests VALUES ('t', 'search', 's', 'ok', 2, 30, 10, 8)")
        for outcome, uj in [("ok", 100), ("failed", 1), ("error", 10), ("", 1000)]:
            key = ("t", "search", "s", "e1", "gpu", "attributed", outcome, 1, uj, uj, uj)
            db.execute("INSERT INTO day_energy VALUES ('1970-01-01', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", key)
            db.execute("INSERT INTO total_energy VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", key)
        db.commit()
    Ledger(path).close()
    (row,) = LedgerReader(path).workflows()
    assert totals_equal_detail(path) and (row["requests"], row["prompt_tokens"], row["joules"]) == (2, 30, 1111e-6)
    assert row["wasted_by_reason"] == {"failed": 11e-6}
    assert rows(path, "SELECT waste, records, uj FROM day_energy") == [("", 2, 1100), ("failed", 2, 11)]


def test_rows_go_in_by_the_statement(
    ledger: Ledger, reader: LedgerReader, totals_equal_detail: Callable[[Path], bool]
) -> None:
    """Many rows a statement, the rest one by one, and the same one twice: the last counts, as energy adds up."""
    several = [f"q{n:03d}" for n in range(120)]
    ledger.write(
        Batch(
            [RUN],
            [*(REQUEST._replace(id=name) for name in several), REQUEST._replace(id="q007", output_tokens=1000)],
            [ATTEMPT._replace(request_id=name) for name in several],
            [ENERGY._replace(request_id=name) for name in (*several, "q007")],
        )
    )
    run = reader.run(None, "r1")
    assert run is not None and [one["id"] for one in run["requests"]] == several
    assert run["by_step"]["query"] == {"requests": 120, "joules": 242.0, "output_tokens": 8 * 119 + 1000}
    assert totals_equal_detail(ledger.path)


def test_a_newer_ledger_is_refused(path: Path) -> None:
    Ledger(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    for open_it in (Ledger, lambda path: LedgerReader(path).workflows()):
        with pytest.raises(LedgerError, match="newer Joulegate"):
            open_it(path)


def test_files_that_are_no_ledger_are_refused(tmp_path: Path, rows: Rows) -> None:
    noise = tmp_path / "noise.sqlite"
    noise.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    foreign = tmp_path / "foreign.sqlite"
    with contextlib.closing(sqlite3.connect(foreign)) as db:
        db.execute("CREATE TABLE songs (name)")
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    for path, why in [
        (noise, "not a database"),
        (foreign, "another program"),
        (tmp_path, "cannot be used"),
        (in_the_way / "ledger.sqlite", "cannot be created"),
    ]:
        with pytest.raises(LedgerError, match=why) as caught:
            Ledger(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert rows(foreign, "SELECT name FROM sqlite_master") == [("songs",)]
    with pytest.raises(LedgerError, match="no ledger here yet"):
        LedgerReader(tmp_path / "none.sqlite").workflows()


def test_a_writer_that_drains_says_that_it_will_let_go(path: Path) -> None:
    first = Ledger(path)
    with pytest.raises(LedgerError) as refused:
        Ledger(path)
    assert not isinstance(refused.value, LedgerDraining)
    first.draining()
    with pytest.raises(LedgerDraining, match="drains still writes this ledger"):
        Ledger(path)
    first.close()
    second = Ledger(path)
    with pytest.raises(LedgerError) as refused:
        Ledger(path)
    assert not isinstance(refused.value, LedgerDraining), "the word was the former's"
    second.close()


def test_one_writer_at_a_time(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="another gateway"):
        Ledger(ledger.path)
    ledger.write(WHOLE)  # the refused one has not disturbed it


def test_a_sum_is_as_good_as_its_worst_part() -> None:
    assert worst([Quality.EMULATED, Quality.MEASURED]) == "emulated"
    assert worst(["attributed", "measured"]) == "attributed"
    assert worst([]) is None


# A file that cannot be written ----------------------------------------------------------------------------------------


def test_a_locked_file_can_be_written_again_once_it_is_free(
    ledger: Ledger, reader: LedgerReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.energy.ledger.BUSY_S", 0.01)
    ledger._db.execute("PRAGMA busy_timeout = 10")
    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(LedgerError, match="locked"):
                ledger.write(WHOLE)
        assert reader.workflows() == []
    ledger.write(WHOLE)
    assert reader.workflows()[0]["joules"] == 2.0
    run = reader.run(None, "r1")
    assert run is not None and run["state"] == "open", "opened anew, and still ours"


def test_a_full_disk_is_said_and_nothing_is_half_written(
    ledger: Ledger, reader: LedgerReader, totals_equal_detail: Callable[[Path], bool]
) -> None:
    ledger.write(WHOLE)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")  # what a full disk says, without one
    many = [REQUEST._replace(id=f"q{n}", run_uid="u1") for n in range(1000)]
    with pytest.raises(LedgerError, match="full; make room on its disk"):
        ledger.write(Batch([RUN], many))
    run = reader.run(None, "r1")
    assert run is not None and len(run["requests"]) == 1 and totals_equal_detail(ledger.path)
    ledger.write(Batch([RUN], many))  # room was made
    run = reader.run(None, "r1")
    assert run is not None and len(run["requests"]) == 1000 and totals_equal_detail(ledger.path)


def test_a_damaged_file_is_said_and_one_in_its_place_is_taken(ledger: Ledger, reader: LedgerReader) -> None:
    ledger.write(WHOLE)
    copy = sqlite3.connect(":memory:")
    with contextlib.closing(sqlite3.connect(ledger.path)) as db:
        db.backup(copy)
    ledger.path.unlink()
    ledger.path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    for _ in range(2):
        with pytest.raises(LedgerError, match="not a database; move it away, with its -wal and -shm") as caught:
            ledger.write(WHOLE)
        assert "\n" not in str(caught.value)
    ledger.path.unlink()
    with contextlib.closing(sqlite3.connect(ledger.path)) as restored:
        copy.backup(restored)
    copy.close()
    ledger.write(Batch(energy=[ENERGY]))
    assert reader.workflows()[0]["joules"] == 4.0


def test_a_page_that_went_bad_is_said(path: Path) -> None:
    ledger = Ledger(path)
    ledger.write(
        replace(WHOLE, requests=[REQUEST._replace(id=f"q{n:04d}") for n in range(2000)], attempts=[], energy=[])
    )
    ledger.close()
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(b"\xff" * 4096 * (pages - 2))
    with pytest.raises(LedgerError, match=r"malformed; move it away"):
        again = Ledger(path)
        again.write(WHOLE)


def test_a_file_that_was_moved_away_is_begun_anew(ledger: Ledger, reader: LedgerReader, tmp_path: Path) -> None:
    ledger.write(WHOLE)
    ledger.path.rename(tmp_path / "old.sqlite")
    with pytest.raises(LedgerMismatch, match="never written"):
        ledger.write(Batch(energy=[ENERGY]))
    ledger.write(WHOLE)
    assert reader.workflows()[0]["joules"] == 2.0 and reader.balance()["h1/gpu:0"]["residual_j"] == 0
    assert LedgerReader(tmp_path / "old.sqlite").workflows()[0]["joules"] == 2.0, "what had been written is in it"


def test_what_was_dropped_is_in_totals_and_days(
    ledger: Ledger, reader: LedgerReader, totals_equal_detail: Callable[[Path], bool]
) -> None:
    gone = Dropped(
        [DayRuns("1970-01-01", "default", "search", 2, 6_000_000)],
        [DayRequests("1970-01-01", "default", "search", "query", "ok", "attributed", 3, 30, 20, 10, 4)],
        [DayEnergy("1970-01-01", "default", "search", "query", "e1", "gpu", "attributed", "failed", 3, 7, 5, 9)],
    )
    ledger.write(replace(WHOLE, runs=[RUN._replace(state="final")], dropped=gone))
    ledger.write(Batch(dropped=gone))
    search = reader.workflows()[0]
    assert (search["runs"], search["requests"], search["output_tokens"]) == (5, 7, 28)
    assert (search["joules"], search["joules_low"], search["mean_duration_s"]) == (2.000014, 1.50001, 16.0 / 5)
    assert search["wasted_by_reason"] == {"failed": 14e-6}
    assert (search["saved_joules"], search["saved_quality"]) == (8e-6, "attributed")
    assert reader.dropped() == (6, 14) and totals_equal_detail(ledger.path)
