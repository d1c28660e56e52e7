import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from joulegate.cli import app
from joulegate.export import ExportError, export, moment
from proxy.energy.ledger import Ledger
from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.ledger_tables import TABLES, Selection
from proxy.energy.records import (
    AttemptRecord,
    Batch,
    DeviceRecord,
    EnergyRecord,
    Quality,
    RequestRecord,
    RunRecord,
    WindowRecord,
)

DAY = 86400.0


def request(n: int, run: str, received: float, node: str | None = None, output: int | None = 8) -> RequestRecord:
    rest = (received + 4, 200, "ok", 30, 10, output, "engine")
    made = RequestRecord(f"q{n}", run, "query", node, '["q0"]', "{}", "/v1", received, "m", 1, *rest)
    return made._replace(saved_uj=1_500_000, saved_quality="attributed") if n == 1 else made


def energy(n: int, device: str, prefill_uj: int, decode_uj: int, quality: str = "attributed") -> EnergyRecord:
    return EnergyRecord(f"q{n}", 1, device, quality, device, prefill_uj, decode_uj, 1_000_000, 9_000_000)


@pytest.fixture
def reader(tmp_path: Path) -> LedgerReader:
    """Two workflows of two tenants on the first day, one of them also on the ninth; and a day that is forgotten."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.write(Batch([RunRecord("u0", "a", "old", "chat", 1.0, 3.0, "final")], [request(9, "u0", 1.0)]))
    ledger.forget(DAY, 0.0, 100)
    ledger.write(
        Batch(
            runs=[
                RunRecord("u1", "a", "r,1", "chat", 100.0, 112.0, "final"),
                RunRecord("u2", "b", "r2", "search", 200.0, 204.0, "open"),
                RunRecord("u3", "a", "r3", "chat", 8 * DAY, 8 * DAY + 4, "final"),
            ],
            requests=[
                request(1, "u1", 100.0, 'a "node"'),
                request(2, "u1", 105.0, output=None),
                request(3, "u2", 200.0),
                request(4, "u3", 8 * DAY),
            ],
            attempts=[
                AttemptRecord("q1", 1, "e1", 100.0, 100.0, None, 101.0, 500, "failed"),
                AttemptRecord("q1", 2, "e2", 101.0, 101.0, 102.5, 104.0, 200, "ok"),
                AttemptRecord("q2", 1, "e1", 105.0, 105.0, 106.0, 109.0, 200, "ok"),
            ],
            energy=[energy(1, "gpu", 1, 2_000_000), energy(1, "cpu", 3, 0, "estimated"), energy(2, "gpu", 0, 500_000)],
            windows=[WindowRecord("h1/gpu:0", 103, Quality.MEASURED, 2_500_001, 5, 0, 1)],
            devices=[DeviceRecord("h1/gpu:0", "gpu", "H200", Quality.MEASURED, 2_500_007, 0, 104.0)],
        )
    )
    ledger.close()
    return LedgerReader(ledger.path)


def read(folder: Path, table: str) -> list[dict[str, str]]:
    with (folder / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_table_becomes_a_file(reader: LedgerReader, tmp_path: Path) -> None:
    out = tmp_path / "out" / "deeper"
    counts = export(reader, out, "csv", Selection())
    assert {file.stem: count for file, count in counts.items()} == {
        "requests": 4,
        "runs": 3,
        "windows": 1,
        "day_runs": 1,
        "day_requests": 1,
        "day_energy": 0,
        "day_windows": 0,
    }
    assert {path.name for path in out.iterdir()} == {f"{table.name}.csv" for table in TABLES}
    assert read(out, "requests")[0] == {
        "id": "q1",
        "tenant": "a",
        "workflow": "chat",
        "run": "r,1",
        "segment": "1",
        "step": "query",
        "node": 'a "node"',
        "parents": '["q0"]',
        "model": "m",
        "path": "/v1",
        "stream": "1",
        "engine": "e2",
        "attempts": "2",
        "outcome": "ok",
        "code": "200",
        "received": "100.0",
        "duration_s": "4.0",
        "ttft_s": "2.5",
        "prompt_tokens": "30",
        "cached_tokens": "10",
        "output_tokens": "8",
        "usage": "engine",
        "joules": "2.000004",
        "joules_low": "2.0",
        "joules_high": "18.0",
        "quality": "estimated",
        "prefill_joules": "4e-06",
        "decode_joules": "2.0",
        "gpu_joules": "2.000001",
        "cpu_joules": "3e-06",
        "soc_joules": "",
        "dram_joules": "",
        "saved_joules": "1.5",
        "saved_quality": "attributed",
    }
    assert read(out, "requests")[2]["joules"] == read(out, "requests")[2]["quality"] == "", "nobody measured it"
    chat = {row["run"]: row for row in read(out, "runs")}["r,1"]
    assert (chat["requests"], chat["joules"], chat["output_tokens"]) == ("2", "2.500004", "8")
    assert (chat["joules_high"], chat["quality"], chat["duration_s"]) == ("27.0", "estimated", "12.0")
    assert read(out, "windows") == [
        {
            "device": "h1/gpu:0",
            "second": "103",
            "quality": "measured",
            "workflow_joules": "2.500001",
            "idle_joules": "5e-06",
            "foreign_joules": "0.0",
            "gap_joules": "1e-06",
        }
    ]
    day = read(out, "day_requests")[0]
    assert (day["day"], day["saved_joules"], day["saved_quality"]) == ("1970-01-01", "0.0", "")


@pytest.mark.parametrize(
    ("selection", "requests", "days"),
    [
        (Selection(workflow="chat"), ["q1", "q2", "q4"], 1),
        (Selection(tenant="b"), ["q3"], 0),
        (Selection(since=105.0), ["q2", "q3", "q4"], 0),
        (Selection(since=0.0, until=105.0), ["q1"], 1),
        (Selection(since=DAY, workflow="chat"), ["q4"], 0),
        (Selection(workflow="' OR 1=1 --"), [], 0),
    ],
)
def test_a_selection(
    reader: LedgerReader, tmp_path: Path, selection: Selection, requests: list[str], days: int
) -> None:
    export(reader, tmp_path / "out", "csv", selection)
    assert [row["id"] for row in read(tmp_path / "out", "requests")] == requests
    assert len(read(tmp_path / "out", "day_requests")) == days


def test_more_rows_than_are_held_at_once(reader: LedgerReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joulegate.export.ROWS_AT_ONCE", 3)
    export(reader, tmp_path / "out", "csv", Selection())
    assert [row["id"] for row in read(tmp_path / "out", "requests")] == ["q1", "q2", "q3", "q4"]


def test_parquet_holds_the_same(reader: LedgerReader, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(reader, tmp_path / "out", "parquet", Selection())
    table = parquet.read_table(tmp_path / "out" / "requests.parquet").to_pydict()
    assert table["id"] == ["q1", "q2", "q3", "q4"] and table["joules"] == [2.000004, 0.5, None, None]
    assert table["output_tokens"] == [8, None, 8, 8] and table["node"] == ['a "node"', None, None, None]
    assert parquet.read_table(tmp_path / "out" / "day_energy.parquet").num_rows == 0


def test_without_pyarrow_it_says_how_to_get_it(
    reader: LedgerReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ExportError, match=r"pip install 'joulegate\[parquet\]'"):
        export(reader, tmp_path / "out", "parquet", Selection())
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_there_is_not_overwritten(reader: LedgerReader, tmp_path: Path) -> None:
    (tmp_path / "windows.csv").write_text("mine")
    with pytest.raises(ExportError, match=r"windows\.csv is there already"):
        export(reader, tmp_path, "csv", Selection())
    with pytest.raises(ExportError, match="cannot be written"):
        export(reader, tmp_path / "windows.csv" / "deeper", "csv", Selection())


def test_times_are_dates_or_seconds() -> None:
    assert moment("1970-01-02") == moment("1970-01-02T01:00+01:00") == moment("86400") == DAY
    with pytest.raises(ExportError, match="'yesterday' is no time"):
        moment("yesterday")


def test_the_command(reader: LedgerReader, tmp_path: Path) -> None:
    where = ["--ledger", str(reader.path), "--workflow", "chat", "--since", "1970-01-01", "--until", "1970-01-02"]
    done = CliRunner().invoke(app, ["export", str(tmp_path / "out"), *where])
    assert done.exit_code == 0 and "requests.csv: 2 rows" in done.output.replace("\n", "")
    for wrong in (["--format", "xlsx"], ["--since", "soon"], ["--ledger", str(tmp_path / "none.sqlite")]):
        done = CliRunner().invoke(app, ["export", str(tmp_path / "other"), *where, *wrong])
        assert done.exit_code == 1 and "Traceback" not in done.output
