"""Looks into a ledger's file with plain SQL, without the ledger's own statements."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.energy.records import waste_of

Rows = Callable[[Path, str], list[tuple]]


def _rows(path: Path, sql: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.create_function("waste_of", 2, lambda attempt, request: str(waste_of(attempt, request) or ""))
        return db.execute(sql).fetchall()


def _totals_equal_detail(path: Path) -> bool:
    """Adds up again what has rows of its own, and what is left of the rest by day."""
    for total, keys, rows, days in (
        (
            "total_energy",
            7,
            """SELECT r.tenant, r.workflow, q.step, a.engine, e.component, e.quality, waste_of(a.outcome, q.outcome),
                      1, e.prefill_uj + e.decode_uj, e.low_uj, e.high_uj
               FROM energy e JOIN attempts a ON a.request_id = e.request_id AND a.n = e.attempt
               JOIN requests q ON q.id = e.request_id JOIN runs r ON r.uid = q.run_uid""",
            "SELECT tenant, workflow, step, engine, component, quality, waste, records, uj, low_uj, high_uj"
            " FROM day_energy",
        ),
        (
            "total_requests",
            5,
            """SELECT r.tenant, r.workflow, q.step, ifnull(q.outcome, ''), ifnull(q.saved_quality, ''), 1,
                      ifnull(q.prompt_tokens, 0), ifnull(q.cached_tokens, 0), ifnull(q.output_tokens, 0),
                      ifnull(q.saved_uj, 0)
               FROM requests q JOIN runs r ON r.uid = q.run_uid""",
            "SELECT tenant, workflow, step, outcome, saved_quality, requests, prompt_tokens, cached_tokens,"
            " output_tokens, saved_uj FROM day_requests",
        ),
        (
            "total_runs",
            3,
            "SELECT tenant, workflow, state, 1, CAST(round((ended - opened) * 1e6) AS INTEGER) FROM runs",
            "SELECT tenant, workflow, 'final', runs, duration_us FROM day_runs",
        ),
        (
            "total_windows",
            2,
            "SELECT device, quality, workflow_uj, idle_uj, foreign_uj, gap_uj FROM windows",
            "SELECT device, quality, workflow_uj, idle_uj, foreign_uj, gap_uj FROM day_windows",
        ),
    ):
        table = _rows(path, f"SELECT * FROM {total}")
        added: dict[tuple, list[int]] = {}
        for row in _rows(path, f"{rows} UNION ALL {days}"):
            before = added.setdefault(row[:keys], [0] * (len(row) - keys))
            added[row[:keys]] = [a + b for a, b in zip(before, row[keys:], strict=True)]
        kept = {row[:keys]: list(row[keys:]) for row in table if any(row[keys:])}
        if kept != {key: values for key, values in added.items() if any(values)}:
            return False
    return True


@pytest.fixture(scope="session")
def rows() -> Rows:
    """`rows(path, sql)`: what a query finds in a ledger's file."""
    return _rows


@pytest.fixture(scope="session")
def totals_equal_detail() -> Callable[[Path], bool]:
    """Whether a ledger's totals are the sums of its detail and of its days."""
    return _totals_equal_detail
