"""The durable record of runs, requests, attempts and windows: SQLite, one transaction a batch.

In WAL mode with synchronous=NORMAL a committed batch survives `kill -9` of the gateway; a loss of power may take the
last seconds, which the next start books as `gap`, but never leaves half a batch.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import orjson

from proxy.energy import retention
from proxy.energy.ledger_file import LedgerError, WriterLock, explained, identity, schema_version
from proxy.energy.records import Batch, Dropped, RunRecord
from proxy.energy.schema import APPLICATION_ID, MIGRATIONS
from proxy.energy.sums import (
    DAY_ENERGY,
    DAY_REQUESTS,
    DAY_RUNS,
    DROPPED,
    SPENT,
    TOTAL_ENERGY,
    TOTAL_REQUESTS,
    TOTAL_RUNS,
    TOTAL_WINDOWS,
    WASTE,
    WINDOWS,
)

BUSY_S = 2.0  # how long to wait for somebody else who holds the file

# Of one run it may be given one segment alone: rows that are written together are numbered by what was there before.
_RUN = """
    INSERT INTO runs (uid, tenant, run, segment, workflow, opened, ended, state)
    SELECT column1, column2, column3,
        (SELECT coalesce(max(segment), 0) + 1 FROM runs WHERE run = column3 AND tenant = column2),
        column4, column5, column6, column7
    FROM (VALUES {}) WHERE true
    ON CONFLICT (uid) DO UPDATE SET ended = excluded.ended, state = excluded.state
"""
_REQUEST = """
    INSERT INTO requests VALUES {} ON CONFLICT (id) DO UPDATE SET
        model = excluded.model, stream = excluded.stream, ended = excluded.ended, code = excluded.code,
        outcome = excluded.outcome, prompt_tokens = excluded.prompt_tokens, cached_tokens = excluded.cached_tokens,
        output_tokens = excluded.output_tokens, usage = excluded.usage, saved_uj = excluded.saved_uj,
        saved_quality = excluded.saved_quality
"""
_ATTEMPT = """
    INSERT INTO attempts VALUES {} ON CONFLICT (request_id, n) DO UPDATE SET
        engine = excluded.engine, queued = excluded.queued, dispatched = excluded.dispatched, first = excluded.first,
        ended = excluded.ended, code = excluded.code, outcome = excluded.outcome
"""
_ADD_UP = """
    ON CONFLICT (request_id, attempt, device, quality) DO UPDATE SET
        prefill_uj = prefill_uj + excluded.prefill_uj, decode_uj = decode_uj + excluded.decode_uj,
        low_uj = low_uj + excluded.low_uj, high_uj = high_uj + excluded.high_uj
"""
_NEW_ENERGY = "INSERT INTO new_energy VALUES {}" + _ADD_UP
_ADD_TOTAL_ENERGY = TOTAL_ENERGY.add(
    f"""
    SELECT tenant, workflow, step, engine, component, quality, {WASTE} AS waste,
        sum(NOT EXISTS (SELECT 1 FROM energy WHERE energy.request_id = new.request_id
            AND energy.attempt = new.attempt AND energy.device = new.device AND energy.quality = new.quality)),
        sum(prefill_uj + decode_uj), sum(low_uj), sum(high_uj)
    FROM new_energy AS new CROSS JOIN attempts ON attempts.request_id = new.request_id AND n = attempt
        CROSS JOIN requests ON requests.id = new.request_id CROSS JOIN runs ON uid = run_uid
    WHERE true GROUP BY tenant, workflow, step, engine, component, quality, waste
    """
)
_ADD_ENERGY = "INSERT INTO energy SELECT * FROM new_energy WHERE true" + _ADD_UP
_DEVICE = """
    INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (device) DO UPDATE SET
        component = excluded.component, model = excluded.model, quality = excluded.quality,
        counter_uj = counter_uj + excluded.counter_uj, raw_uj = excluded.raw_uj, t = excluded.t
"""

_OF_A_BATCH = """
    CREATE TEMP TABLE touched_runs (uid TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TEMP TABLE touched_requests (id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TEMP TABLE new_energy (
        request_id TEXT, attempt INTEGER, device TEXT, quality TEXT, component TEXT,
        prefill_uj INTEGER, decode_uj INTEGER, low_uj INTEGER, high_uj INTEGER,
        PRIMARY KEY (request_id, attempt, device, quality)
    ) WITHOUT ROWID;
"""
# Takes what was touched out of the totals (sign -1) or puts it in (sign 1). CROSS JOIN fixes the order of the
# loops: from the few rows that were touched to the many that were not.
_FOLD = (
    TOTAL_RUNS.add(
        """
        SELECT tenant, workflow, state, :sign * count(*),
            :sign * sum(CAST(round((ended - opened) * 1e6) AS INTEGER))
        FROM touched_runs CROSS JOIN runs USING (uid)
        WHERE true GROUP BY tenant, workflow, state
        """
    ),
    TOTAL_REQUESTS.add(
        """
        SELECT tenant, workflow, step, coalesce(outcome, ''), coalesce(saved_quality, ''), :sign * count(*),
            :sign * coalesce(sum(prompt_tokens), 0), :sign * coalesce(sum(cached_tokens), 0),
            :sign * coalesce(sum(output_tokens), 0), :sign * coalesce(sum(saved_uj), 0)
        FROM touched_requests CROSS JOIN requests USING (id) CROSS JOIN runs ON uid = run_uid
        WHERE true GROUP BY tenant, workflow, step, coalesce(outcome, ''), coalesce(saved_quality, '')
        """
    ),
    TOTAL_ENERGY.add(
        f"""
        SELECT tenant, workflow, step, engine, component, quality, {WASTE} AS waste,
            :sign * count(*), :sign * sum(prefill_uj + decode_uj), :sign * sum(low_uj), :sign * sum(high_uj)
        FROM touched_requests AS touched CROSS JOIN energy ON energy.request_id = touched.id
            CROSS JOIN attempts ON attempts.request_id = energy.request_id AND n = attempt
            CROSS JOIN requests ON requests.id = touched.id CROSS JOIN runs ON uid = run_uid
        WHERE true GROUP BY tenant, workflow, step, engine, component, quality, waste
        """
    ),
)


class Ledger:
    """The one writer of a ledger file. A thread at a time may use it; readers (`LedgerReader`) go on meanwhile.

    Opening creates folder and file, brings an older schema up to date and makes every run that an earlier process left
    unfinished `final`: nobody is left to add a joule to it. What was in flight then is `orphaned`; `orphaned_uj` says
    what it had cost, by workflow.

    Raises LedgerError when the file cannot be opened, is not a ledger, is newer than this program, or has a writer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = WriterLock(path)
        self._file: tuple[int, int] | None = None
        self.orphaned_uj: dict[str, int] = {}
        try:
            with explained(path):
                self._open()
        except BaseException:
            self._lock.release()
            raise

    def write(self, batch: Batch) -> None:
        """Write all of a batch or nothing: what is a delta is added, the other records replace what was there.

        Raises LedgerError when it cannot; the ledger is then as before and the same batch may be tried again. That is
        of no use after a LedgerMismatch: a record names a run, request or attempt that is not in this file.
        """
        changed = {request.id for request in batch.requests}.union([attempt.request_id for attempt in batch.attempts])
        with explained(self.path), self._transaction() as db:
            _touch(db, "touched_runs", {run.uid for run in batch.runs})
            _touch(db, "touched_requests", changed)
            with _totals_follow(db):
                for runs in _of_different_runs(batch.runs):
                    _insert(db, _RUN, runs)
                _insert(db, _REQUEST, batch.requests)
                _insert(db, _ATTEMPT, batch.attempts)
            _insert(db, _NEW_ENERGY, batch.energy)
            db.execute(_ADD_TOTAL_ENERGY)
            db.execute(_ADD_ENERGY)
            db.executemany(WINDOWS.add_row, batch.windows)
            db.executemany(TOTAL_WINDOWS.add_row, [(w.device, w.quality, *w[-4:]) for w in batch.windows])
            db.executemany(_DEVICE, batch.devices)
            db.executemany(SPENT.add_row, batch.spent)
            if batch.dropped:
                _write_dropped(db, batch.dropped)

    def forget(self, receipts_before: float, windows_before: float, most: int) -> bool:
        """Roll up to `most` requests of final runs that ended before a time, and as many windows, into their days.

        Then gives what is free back to the file system. Returns whether there is more to do. Raises LedgerError when it
        cannot; nothing is then forgotten.
        """
        with explained(self.path):
            with self._transaction() as db:
                more = retention.roll_requests(db, receipts_before, most)
                more |= retention.roll_windows(db, windows_before, most)
            return more or retention.shrink(self._db, most)

    def draining(self) -> None:
        """Say to whoever wants to write next that it only has to wait."""
        self._lock.draining()

    def close(self) -> None:
        """Close the file and let another writer have it."""
        self._db.close()
        self._lock.release()

    def _open(self) -> None:
        """Open the file that is there now, or begin one."""
        known = self._file is not None and identity(self.path) == self._file
        self._sound = False
        self._db = sqlite3.connect(self.path, BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
            if not known:  # in a file of ours the unfinished runs are our own
                self.orphaned_uj = _finish_runs(self._db)
        except BaseException:
            self._db.close()
            raise
        self._file, self._sound = identity(self.path), True

    def _prepare(self) -> None:
        version = schema_version(self._db, self.path)
        if version == 0:
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise LedgerError(f"{self.path}: this file system cannot hold the ledger (no WAL); choose a local disk")
        self._db.executescript("PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8192;")
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
            self._db.executescript(f"BEGIN IMMEDIATE; {script}; {stamp} COMMIT;")
        self._db.executescript(_OF_A_BATCH)
        self._db.execute("PRAGMA foreign_keys = ON")  # only now: a migration may replace a table that others refer to

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. After a fault, and when another file lies at our path, what is there is opened anew."""
        if not self._sound or identity(self.path) != self._file:
            with suppress(sqlite3.Error):  # a file that was moved away is to have all that was written to it
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()
            self._open()
        try:
            with _whole(self._db) as db:
                yield db
        except sqlite3.IntegrityError:  # the fault is in the batch
            raise
        except BaseException:
            self._sound = False
            raise


@contextmanager
def _whole(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All that is written inside, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("DELETE FROM touched_runs")
        db.execute("DELETE FROM touched_requests")
        db.execute("DELETE FROM new_energy")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def _totals_follow(db: sqlite3.Connection) -> Iterator[None]:
    """Totals stay the sums of the detail whatever is written inside to the touched runs and requests."""
    for statement in _FOLD:
        db.execute(statement, {"sign": -1})
    yield
    for statement in _FOLD:
        db.execute(statement, {"sign": 1})


_ORPHANED = """
    SELECT workflow, sum(prefill_uj + decode_uj)
    FROM touched_requests AS touched CROSS JOIN attempts ON attempts.request_id = touched.id
        CROSS JOIN energy ON energy.request_id = touched.id AND attempt = n
        CROSS JOIN requests ON requests.id = touched.id CROSS JOIN runs ON uid = run_uid
    WHERE attempts.outcome = 'orphaned' GROUP BY workflow
"""


def _finish_runs(db: sqlite3.Connection) -> dict[str, int]:
    """Let nothing be unfinished; returns the microjoules of what nobody ended, by workflow."""
    with _whole(db):
        db.execute("INSERT INTO touched_runs SELECT uid FROM runs WHERE state <> 'final'")
        db.execute(
            "INSERT INTO touched_requests"
            " SELECT id FROM touched_runs CROSS JOIN requests ON run_uid = uid WHERE outcome IS NULL"
        )
        with _totals_follow(db):
            db.execute("UPDATE runs SET state = 'final' WHERE state <> 'final'")
            db.execute("UPDATE requests SET outcome = 'orphaned' WHERE id IN (SELECT id FROM touched_requests)")
            db.execute(
                "UPDATE attempts SET outcome = 'orphaned'"
                " WHERE outcome IS NULL AND request_id IN (SELECT id FROM touched_requests)"
            )
        return dict(db.execute(_ORPHANED).fetchall())


def _touch(db: sqlite3.Connection, table: str, keys: set[str]) -> None:
    db.execute(f"INSERT INTO {table} SELECT value FROM json_each(?)", (orjson.dumps(list(keys)).decode(),))


def _of_different_runs(segments: Sequence[RunRecord]) -> Iterator[list[RunRecord]]:
    """The segments in lists of which each has one of a run at most, in their order."""
    while segments:
        first: dict[tuple[str, str], RunRecord] = {}
        others = [one for one in segments if first.setdefault((one.run, one.tenant), one) is not one]
        yield list(first.values())
        segments = others


_ROWS = (256, 64, 16, 4, 1)  # a statement


def _insert(db: sqlite3.Connection, statement: str, rows: Sequence[tuple[str | float | None, ...]]) -> None:
    """Insert rows, many a step: around every step Python lets go of its lock and has to fight for it again.

    The statements are always the same few, which SQLite then has ready.
    """
    if not rows:
        return
    columns, start = len(rows[0]), 0
    most = db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // columns
    for size in _ROWS:
        if size <= most:
            several = statement.format(", ".join([f"({', '.join('?' * columns)})"] * size))
            while len(rows) - start >= size:
                db.execute(several, list(chain.from_iterable(rows[start : start + size])))
                start += size


def _write_dropped(db: sqlite3.Connection, dropped: Dropped) -> None:
    """Sums by day, and the same in the totals, and how much of it there was."""
    db.executemany(DAY_RUNS.add_row, dropped.runs)
    db.executemany(TOTAL_RUNS.add_row, [(one.tenant, one.workflow, "final", *one[-2:]) for one in dropped.runs])
    for day, total, rows in (
        (DAY_REQUESTS, TOTAL_REQUESTS, dropped.requests),
        (DAY_ENERGY, TOTAL_ENERGY, dropped.energy),
    ):
        db.executemany(day.add_row, rows)
        db.executemany(total.add_row, [row[1:] for row in rows])
    db.executemany(DROPPED.add_row, [(one.day, one.requests, 0) for one in dropped.requests])
    db.executemany(DROPPED.add_row, [(one.day, 0, one.uj) for one in dropped.energy])
