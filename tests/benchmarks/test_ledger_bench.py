import asyncio
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import ledger as bench
from proxy.energy.ledger_reader import LedgerReader

QUIET = Console(quiet=True)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bench, "WINDOW_DAYS", 0.1)
    path = tmp_path / "ledger.sqlite"
    assert bench.build(path, 300, QUIET)["requests"] == 600
    return path


def test_the_file_is_a_ledger_whose_books_add_up(built: Path) -> None:
    reader = LedgerReader(built)
    assert reader.balance()[bench.DEVICE]["residual_j"] == 0
    rows = reader.workflows()
    assert sum(row["runs"] for row in rows) == 300 and {row["workflow"] for row in rows} == set(bench.WORKFLOWS)
    assert sum(round(row["joules"] * 1e6) for row in rows) == 600 * 32_000_000
    run = reader.run(None, bench.run_id(299))
    assert run is not None and len(run["requests"]) == 3 and run["state"] == "final"


def test_every_question_has_an_answer(built: Path) -> None:
    figures = bench.questions(built, 300)
    assert all(0 < one["p50_ms"] <= one["p99_ms"] <= one["longest_ms"] for one in figures.values())
    with pytest.raises(Exception, match="404"):
        asyncio.run(bench.ask(built, ["/energy/runs/nobody"]))


def test_it_goes_on_and_thins_out(built: Path) -> None:
    assert bench.write_on(built, 300)["cpu_us_request"] > 0
    thin = bench.thin_out(built, 50, QUIET)
    assert thin["requests"] == pytest.approx(300, abs=4), "the older half"
    reader = LedgerReader(built)
    assert (
        sum(row["requests"] for row in reader.workflows()) > 600 and reader.balance()[bench.DEVICE]["residual_j"] == 0
    )


def test_the_bars() -> None:
    fast, slow = ({"p50_ms": 1.0, "p99_ms": p99, "longest_ms": 300.0} for p99 in (49.0, 200.0))
    asked = {"/energy/runs/{id}": fast, "/energy/workflows": slow}
    assert [bar.met for bar in bench.bars({"questions": asked, "forgetting": fast})] == [True, False, True]
