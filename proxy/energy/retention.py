"""What the ledger forgets: detail that is old enough is rolled into sums by day. Totals keep what they have.

It goes in slices, so that the writer never waits long. A run is forgotten from its requests on; it has a row until it
has no request left.
"""

import sqlite3
from dataclasses import dataclass

from proxy.energy.sums import DAY_ENERGY, DAY_REQUESTS, DAY_RUNS, DAY_WINDOWS, WASTE

DAY_S = 86400.0
_LONGEST_S = 0.01  # what a slice should take; the disk, and a checkpoint in it, may make it longer
_FEWEST, _MOST = 10, 5000


@dataclass(slots=True)
class Retention:
    """How long detail is kept (days; null for good), and how much to forget at once: that follows what it takes."""

    receipts_days: float | None = None
    windows_days: float | None = None
    slice_rows: int = 100

    def before(self, now: float) -> tuple[float, float]:
        """The times before which receipts and windows are forgotten."""
        days = (self.receipts_days, self.windows_days)
        receipts, windows = (now - kept * DAY_S if kept is not None else float("-inf") for kept in days)
        return receipts, windows

    def took(self, seconds: float) -> None:
        """A full slice took so long."""
        if seconds > _LONGEST_S:
            self.slice_rows = max(_FEWEST, self.slice_rows // 2)
        elif seconds < _LONGEST_S / 2:
            self.slice_rows = min(_MOST, self.slice_rows + self.slice_rows // 4)


_DAY = "strftime('%Y-%m-%d', opened, 'unixepoch')"
_OLD_RUNS = """
    INSERT INTO touched_runs
    SELECT uid FROM runs WHERE opened < ?1 AND ended < ?1 AND state = 'final' ORDER BY opened LIMIT ?2
"""
_OLD_REQUESTS = """
    INSERT INTO touched_requests SELECT id FROM touched_runs CROSS JOIN requests ON run_uid = uid LIMIT ?
"""
_ROLL_REQUESTS = DAY_REQUESTS.add(
    f"""
    SELECT {_DAY}, tenant, workflow, step, coalesce(outcome, ''), coalesce(saved_quality, ''), count(*),
        coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0), coalesce(sum(output_tokens), 0),
        coalesce(sum(saved_uj), 0)
    FROM touched_requests CROSS JOIN requests USING (id) CROSS JOIN runs ON uid = run_uid
    WHERE true GROUP BY 1, 2, 3, 4, 5, 6
    """
)
_ROLL_ENERGY = DAY_ENERGY.add(
    f"""
    SELECT {_DAY}, tenant, workflow, step, engine, component, quality, {WASTE},
        count(*), sum(prefill_uj + decode_uj), sum(low_uj), sum(high_uj)
    FROM touched_requests AS touched CROSS JOIN energy ON energy.request_id = touched.id
        CROSS JOIN attempts ON attempts.request_id = energy.request_id AND n = attempt
        CROSS JOIN requests ON requests.id = touched.id CROSS JOIN runs ON uid = run_uid
    WHERE true GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    """
)
_ROLL_RUNS = DAY_RUNS.add(
    f"""
    SELECT {_DAY}, tenant, workflow, count(*), sum(CAST(round((ended - opened) * 1e6) AS INTEGER))
    FROM touched_runs CROSS JOIN runs USING (uid) WHERE true GROUP BY 1, 2, 3
    """
)


def roll_requests(db: sqlite3.Connection, before: float, most: int) -> bool:
    """Roll up to `most` requests of final runs that ended before a time (Unix seconds); returns whether there are more.

    To be called in a transaction, with the tables of what it touches empty; leaves them filled.
    """
    runs = db.execute(_OLD_RUNS, (before, most)).rowcount
    if not runs:
        return False
    requests = db.execute(_OLD_REQUESTS, (most,)).rowcount
    db.execute(_ROLL_REQUESTS)
    db.execute(_ROLL_ENERGY)
    for table, key in (("energy", "request_id"), ("attempts", "request_id"), ("requests", "id")):
        db.execute(f"DELETE FROM {table} WHERE {key} IN (SELECT id FROM touched_requests)")
    db.execute("DELETE FROM touched_runs WHERE EXISTS (SELECT 1 FROM requests WHERE run_uid = uid)")
    db.execute(_ROLL_RUNS)
    db.execute("DELETE FROM runs WHERE uid IN (SELECT uid FROM touched_runs)")
    return max(runs, requests) == most


def roll_windows(db: sqlite3.Connection, before: float, most: int) -> bool:
    """Roll `most` seconds of each device's windows that ended before a time; returns whether there are more."""
    more = False
    for (device,) in db.execute("SELECT DISTINCT device FROM total_windows").fetchall():
        oldest: int | None = db.execute("SELECT min(second) FROM windows WHERE device = ?", (device,)).fetchone()[0]
        if oldest is None or oldest >= before:
            continue
        until = min(before, oldest + most)
        of_device = "FROM windows WHERE device = ? AND second < ?"
        select = f"""
            SELECT strftime('%Y-%m-%d', second, 'unixepoch'), device, quality,
                sum(workflow_uj), sum(idle_uj), sum(foreign_uj), sum(gap_uj) {of_device} GROUP BY 1, 2, 3
        """
        db.execute(DAY_WINDOWS.add(select), (device, until))
        db.execute(f"DELETE {of_device}", (device, until))
        more |= until < before
    return more


def shrink(db: sqlite3.Connection, most: int) -> bool:
    """Give `most` pages back to the file system where over a tenth of the file is free; whether there are more.

    A file that was begun without room for this keeps its size and reuses what is free.
    """
    free, pages = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count"))
    if not db.execute("PRAGMA auto_vacuum").fetchone()[0] or free <= max(1000, pages // 10):
        return False
    db.executescript(f"PRAGMA incremental_vacuum({int(most)})")  # execute would stop after its first page
    return True
