from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.ledger import Ledger
from proxy.energy.ledger_reader import LedgerReader
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
from proxy.energy.retention import Retention

Rows = Callable[[Path, str], list[tuple]]
DAY = 86400


def run(n: int, opened: float, requests: int, state: str = "final", length: float = 10.0) -> Batch:
    """A run with some requests, each with two devices' joules, and the windows that they are in."""
    uid = f"u{n:05d}"
    ids = [f"q{n:05d}-{one}" for one in range(requests)]
    rest = (opened + length, 200, "ok", 10, 5, 3, "engine", 11, "attributed")
    return Batch(
        [RunRecord(uid, "t", f"r{n}", "search" if n % 2 else "chat", opened, opened + length, state)],
        [RequestRecord(id_, uid, "s", None, "[]", "{}", "/v1", opened, "m", 1, *rest) for id_ in ids],
        [AttemptRecord(id_, 1, "e", opened, opened, None, opened + length, 200, "ok") for id_ in ids],
        [EnergyRecord(id_, 1, device, "attributed", device, 1, 4, 2, 9) for id_ in ids for device in ("gpu", "cpu")],
        [WindowRecord(device, int(opened), Quality.MEASURED, 5 * requests, 2, 1, 0) for device in ("gpu", "cpu")],
        [DeviceRecord(device, device, "m", Quality.MEASURED, 5 * requests + 3, 0, opened) for device in ("gpu", "cpu")],
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def forget_all(ledger: Ledger, receipts_before: float, windows_before: float, most: int = 1000) -> int:
    """Slice by slice until nothing is left to forget; how many there were."""
    slices = 1
    while ledger.forget(receipts_before, windows_before, most):
        slices += 1
        assert slices < 10_000
    return slices


def test_old_runs_become_days_and_totals_stay(
    ledger: Ledger, rows: Rows, totals_equal_detail: Callable[[Path], bool]
) -> None:
    for n, opened in enumerate([0.5 * DAY, 0.6 * DAY, 1.5 * DAY, 9 * DAY]):
        ledger.write(run(n, opened, 3))
    reader = LedgerReader(ledger.path)
    before = reader.workflows(), reader.balance(), reader.parts(), reader.engines()
    forget_all(ledger, receipts_before=5 * DAY, windows_before=1 * DAY)
    assert (reader.workflows(), reader.balance(), reader.parts(), reader.engines()) == before
    assert totals_equal_detail(ledger.path)
    assert [one["run"] for one in reader.runs()] == ["r3"]
    assert reader.run(None, "r0") is None and reader.request("q00001-0") is None
    assert rows(ledger.path, "SELECT * FROM day_runs") == [
        ("1970-01-01", "t", "chat", 1, 10_000_000),
        ("1970-01-01", "t", "search", 1, 10_000_000),
        ("1970-01-02", "t", "chat", 1, 10_000_000),
    ]
    assert rows(ledger.path, "SELECT * FROM day_requests WHERE workflow = 'search'") == [
        ("1970-01-01", "t", "search", "s", "ok", "attributed", 3, 30, 15, 9, 33)
    ]
    energy = rows(ledger.path, "SELECT * FROM day_energy WHERE workflow = 'search'")
    assert energy == [
        ("1970-01-01", "t", "search", "s", "e", part, "attributed", "", 3, 15, 6, 27) for part in ("cpu", "gpu")
    ]
    assert rows(ledger.path, "SELECT * FROM day_windows") == [
        ("1970-01-01", device, "measured", 30, 4, 2, 0) for device in ("cpu", "gpu")
    ]
    assert rows(ledger.path, "SELECT DISTINCT second FROM windows ORDER BY 1") == [(1.5 * DAY,), (9 * DAY,)]


def test_what_is_not_over_or_ended_of_late_stays(ledger: Ledger) -> None:
    ledger.write(run(1, 1.0, 1, state="open"))
    ledger.write(run(2, 1.0, 1, length=8 * DAY))
    ledger.write(run(3, 1.0, 1))
    forget_all(ledger, 5 * DAY, float("-inf"))
    reader = LedgerReader(ledger.path)
    assert {one["run"] for one in reader.runs()} == {"r1", "r2"}
    assert len(reader.parts()) == 2 and reader.balance()["gpu"]["residual_j"] == 0


def test_kept_for_good_means_for_good(ledger: Ledger) -> None:
    ledger.write(run(1, 1.0, 2))
    assert not ledger.forget(*Retention(None, None).before(1e12), 100)
    assert len(LedgerReader(ledger.path).runs()) == 1


def test_a_large_run_goes_in_slices(ledger: Ledger, rows: Rows, totals_equal_detail: Callable[[Path], bool]) -> None:
    ledger.write(run(1, 1.0, 25))
    assert ledger.forget(DAY, DAY, 10)
    found = LedgerReader(ledger.path).run(None, "r1")
    assert found is not None and len(found["requests"]) == 15 and totals_equal_detail(ledger.path)
    assert forget_all(ledger, DAY, DAY, 10) == 2
    assert LedgerReader(ledger.path).run(None, "r1") is None and totals_equal_detail(ledger.path)
    assert rows(ledger.path, "SELECT runs, requests FROM day_runs, day_requests") == [(1, 25)]


@settings(max_examples=30, deadline=None)
@given(
    opened=st.lists(st.tuples(st.floats(0, 4 * DAY), st.integers(0, 4), st.booleans()), max_size=12),
    cuts=st.lists(st.tuples(st.floats(0, 5 * DAY), st.floats(0, 5 * DAY), st.integers(1, 30)), min_size=1, max_size=3),
)
def test_nothing_is_lost_however_it_is_cut(
    opened: list[tuple[float, int, bool]],
    cuts: list[tuple[float, float, int]],
    totals_equal_detail: Callable[[Path], bool],
) -> None:
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        reader = LedgerReader(ledger.path)
        for n, (t, requests, final) in enumerate(opened):
            ledger.write(run(n, t, requests, "final" if final else "open"))
        before = reader.workflows(), reader.balance()
        for receipts, windows, most in cuts:
            ledger.forget(receipts, windows, most)
            assert totals_equal_detail(ledger.path) and (reader.workflows(), reader.balance()) == before
        receipts = max(cut[0] for cut in cuts)
        forget_all(ledger, receipts, 0.0, 7)
        assert totals_equal_detail(ledger.path) and (reader.workflows(), reader.balance()) == before
        kept = {f"r{n}" for n, (t, _, final) in enumerate(opened) if not final or t >= receipts or t + 10.0 >= receipts}
        assert {one["run"] for one in reader.runs()} == kept
        ledger.close()


def test_the_file_shrinks_when_much_of_it_is_free(ledger: Ledger) -> None:
    for n in range(25):
        ledger.write(run(n, 1.0 + n, 1000))
    ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    large = ledger.path.stat().st_size
    ledger.write(run(99, 10 * DAY, 1))
    forget_all(ledger, DAY, DAY, 5000)
    ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    free, pages = (ledger._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count"))
    assert free <= max(1000, pages // 10)
    assert ledger.path.stat().st_size < large / 2


def test_a_slice_is_as_large_as_time_permits() -> None:
    retention = Retention(90.0, 7.0)
    assert retention.before(100 * DAY) == (10 * DAY, 93 * DAY)
    for _ in range(100):
        retention.took(0.001)
    assert retention.slice_rows == 5000
    retention.took(0.008)
    assert retention.slice_rows == 5000
    for _ in range(20):
        retention.took(0.06)
    assert retention.slice_rows == 10
