"""The durable record of runs, requests, attempts and windows: SQLite, one transaction a batch.

In WAL mode with synchronous=NORMAL a committed batch survives `kill -9` of the gateway; a loss of power may take the
last seconds, which the next start books as `gap`, but never leaves half a batch.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import orjson

from proxy.energy.records import Batch
from proxy.energy.schema import APPLICATION_ID, MIGRATIONS, WASTE


class LedgerError(Exception):
    """The ledger cannot be used; the message is one line that names the file and what would help."""


class LedgerDraining(LedgerError):
    """Its writer takes no more requests, and will let go of it when its last one has ended."""


_RUN = """
    INSERT INTO runs (uid, tenant, run, segment, workflow, opened, ended, state)
    VALUES (?1, ?2, ?3, (SELECT coalesce(max(segment), 0) + 1 FROM runs WHERE run = ?3 AND tenant = ?2), ?4, ?5, ?6, ?7)
    ON CONFLICT (uid) DO UPDATE SET ended = excluded.ended, state = excluded.state
"""
_REQUEST = """
    INSERT INTO requests VALUES {} ON CONFLICT (id) DO UPDATE SET
        model = excluded.model, stream = excluded.stream, ended = excluded.ended, code = excluded.code,
        outcome = excluded.outcome, prompt_tokens = excluded.prompt_tokens, cached_tokens = excluded.cached_tokens,
        output_tokens = excluded.output_tokens, usage = excluded.usage
"""
_ATTEMPT = """
    INSERT INTO attempts VALUES {} ON CONFLICT (request_id, n) DO UPDATE SET
        engine = excluded.engine, queued = excluded.queued, dispatched = excluded.dispatched, first = excluded.first,
        ended = excluded.ended, code = excluded.code, outcome = excluded.outcome
"""
_ENERGY = """
    INSERT INTO energy VALUES {} ON CONFLICT (request_id, attempt, device, quality) DO UPDATE SET
        prefill_uj = prefill_uj + excluded.prefill_uj, decode_uj = decode_uj + excluded.decode_uj,
        low_uj = low_uj + excluded.low_uj, high_uj = high_uj + excluded.high_uj
"""
_ADD_PARTS = """
    DO UPDATE SET workflow_uj = workflow_uj + excluded.workflow_uj, idle_uj = idle_uj + excluded.idle_uj,
        foreign_uj = foreign_uj + excluded.foreign_uj, gap_uj = gap_uj + excluded.gap_uj
"""
_WINDOW = f"INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, second, quality) {_ADD_PARTS}"
_TOTAL_WINDOW = f"INSERT INTO total_windows VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (device, quality) {_ADD_PARTS}"
_DEVICE = """
    INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (device) DO UPDATE SET
        component = excluded.component, model = excluded.model, quality = excluded.quality,
        counter_uj = excluded.counter_uj, raw_uj = excluded.raw_uj, t = excluded.t
"""
_SAVING = "INSERT INTO savings VALUES {}"
_TOTAL_SAVING = """
    INSERT INTO total_savings
    SELECT tenant, workflow, engine, quality, count(*), sum(uj)
    FROM (
            SELECT json_extract(value, '$[0]') AS request_id, json_extract(value, '$[1]') AS n,
                json_extract(value, '$[2]') AS quality, json_extract(value, '$[3]') AS uj
            FROM json_each(?)
        ) AS new
        CROSS JOIN attempts USING (request_id, n) CROSS JOIN requests ON id = new.request_id
        CROSS JOIN runs ON uid = run_uid
    WHERE true GROUP BY tenant, workflow, engine, quality
    ON CONFLICT (tenant, workflow, engine, quality) DO UPDATE SET
        records = records + excluded.records, uj = uj + excluded.uj
"""
_SPENT = "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT (tenant, hour) DO UPDATE SET uj = uj + excluded.uj"

_ORPHANED = """
    SELECT workflow, sum(prefill_uj + decode_uj)
    FROM touched_requests AS touched CROSS JOIN attempts ON attempts.request_id = touched.id
        CROSS JOIN energy ON energy.request_id = touched.id AND attempt = n
        CROSS JOIN requests ON requests.id = touched.id CROSS JOIN runs ON uid = run_uid
    WHERE attempts.outcome = 'orphaned' GROUP BY workflow
"""

_TOUCHED = """
    CREATE TEMP TABLE touched_runs (uid TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TEMP TABLE touched_requests (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
# Takes what was touched out of the totals (sign -1) or puts it in (sign 1). CROSS JOIN fixes the order of the
# loops: from the few rows that were touched to the many that were not.
_FOLD = (
    """
    INSERT INTO total_runs
    SELECT tenant, workflow, state, :sign * count(*),
        :sign * sum(CAST(round((ended - opened) * 1e6) AS INTEGER))
    FROM touched_runs CROSS JOIN runs USING (uid)
    WHERE true GROUP BY tenant, workflow, state
    ON CONFLICT (tenant, workflow, state) DO UPDATE SET
        runs = runs + excluded.runs, duration_us = duration_us + excluded.duration_us
    """,
    """
    INSERT INTO total_requests
    SELECT tenant, workflow, step, coalesce(outcome, ''), :sign * count(*), :sign * coalesce(sum(prompt_tokens), 0),
        :sign * coalesce(sum(cached_tokens), 0), :sign * coalesce(sum(output_tokens), 0)
    FROM touched_requests CROSS JOIN requests USING (id) CROSS JOIN runs ON uid = run_uid
    WHERE true GROUP BY tenant, workflow, step, coalesce(outcome, '')
    ON CONFLICT (tenant, workflow, step, outcome) DO UPDATE SET
        requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        cached_tokens = cached_tokens + excluded.cached_tokens, output_tokens = output_tokens + excluded.output_tokens
    """,
    f"""
    INSERT INTO total_energy
    SELECT tenant, workflow, step, engine, component, quality, {WASTE} AS waste,
        :sign * count(*), :sign * sum(prefill_uj + decode_uj), :sign * sum(low_uj), :sign * sum(high_uj)
    FROM touched_requests AS touched CROSS JOIN energy ON energy.request_id = touched.id
        CROSS JOIN attempts ON attempts.request_id = energy.request_id AND n = attempt
        CROSS JOIN requests ON requests.id = touched.id CROSS JOIN runs ON uid = run_uid
    WHERE true GROUP BY tenant, workflow, step, engine, component, quality, waste
    ON CONFLICT (tenant, workflow, step, engine, component, quality, waste) DO UPDATE SET
        records = records + excluded.records, uj = uj + excluded.uj,
        low_uj = low_uj + excluded.low_uj, high_uj = high_uj + excluded.high_uj
    """,
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
        self._lock = _lock(path)
        try:
            with explained(path):
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                try:
                    self._prepare()
                except BaseException:
                    self._db.close()
                    raise
        except BaseException:
            os.close(self._lock)
            raise

    def write(self, batch: Batch) -> None:
        """Write all of a batch or nothing: energy and windows are added, the other records replace what was there.

        Raises LedgerError when it cannot, or when a record names a run, request or attempt that was never written; the
        ledger is then as before and the same batch may be tried again.
        """
        with explained(self.path), self._transaction() as db:
            _touch(db, "touched_runs", {run.uid for run in batch.runs})
            of_request = {record.request_id for record in (*batch.attempts, *batch.energy)}
            _touch(db, "touched_requests", of_request.union([request.id for request in batch.requests]))
            with self._totals_follow():
                db.executemany(_RUN, batch.runs)
                _insert(db, _REQUEST, batch.requests)
                _insert(db, _ATTEMPT, batch.attempts)
                _insert(db, _ENERGY, batch.energy)
            db.executemany(_WINDOW, batch.windows)
            db.executemany(_TOTAL_WINDOW, [(w.device, w.quality, *w[-4:]) for w in batch.windows])
            db.executemany(_DEVICE, batch.devices)
            if batch.savings:
                _insert(db, _SAVING, batch.savings)
                db.execute(_TOTAL_SAVING, (orjson.dumps([tuple(one) for one in batch.savings]).decode(),))
            db.executemany(_SPENT, batch.spent)

    def draining(self) -> None:
        """Say to whoever wants to write next that it only has to wait."""
        os.pwrite(self._lock, _DRAINING, 0)

    def close(self) -> None:
        """Close the file and let another writer have it."""
        self._db.close()
        os.close(self._lock)

    def _prepare(self) -> None:
        version = schema_version(self._db, self.path)
        if self._db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise LedgerError(f"{self.path}: this file system cannot hold the ledger (no WAL); choose a local disk")
        self._db.executescript(
            "PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -32768;" + _TOUCHED
        )
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
            self._db.executescript(f"BEGIN IMMEDIATE; {script}; {stamp} COMMIT;")
        self._db.execute("PRAGMA foreign_keys = ON")  # only now: a migration may replace a table that others refer to
        with self._transaction() as db:
            db.execute("INSERT INTO touched_runs SELECT uid FROM runs WHERE state <> 'final'")
            db.execute(
                "INSERT INTO touched_requests"
                " SELECT id FROM touched_runs CROSS JOIN requests ON run_uid = uid WHERE outcome IS NULL"
            )
            with self._totals_follow():
                db.execute("UPDATE runs SET state = 'final' WHERE state <> 'final'")
                db.execute("UPDATE requests SET outcome = 'orphaned' WHERE id IN (SELECT id FROM touched_requests)")
                db.execute(
                    "UPDATE attempts SET outcome = 'orphaned'"
                    " WHERE outcome IS NULL AND request_id IN (SELECT id FROM touched_requests)"
                )
            self.orphaned_uj: dict[str, int] = dict(db.execute(_ORPHANED))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("DELETE FROM touched_runs")
            self._db.execute("DELETE FROM touched_requests")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _totals_follow(self) -> Iterator[None]:
        """Totals stay the sums of the detail whatever is written inside to the touched runs and requests."""
        for statement in _FOLD:
            self._db.execute(statement, {"sign": -1})
        yield
        for statement in _FOLD:
            self._db.execute(statement, {"sign": 1})


def schema_version(db: sqlite3.Connection, path: Path) -> int:
    """The file's schema version, 0 for an empty file. Raises LedgerError for a newer ledger and for foreign files."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    mark = db.execute("PRAGMA application_id").fetchone()[0]
    empty = db.execute("SELECT NOT EXISTS (SELECT 1 FROM sqlite_master)").fetchone()[0]
    if mark != APPLICATION_ID and not (empty and version == mark == 0):
        raise LedgerError(f"{path}: this is a database of another program; choose another ledger.path")
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"{path}: written by a newer Joulegate (schema {version}, this one knows {len(MIGRATIONS)}); "
            "upgrade Joulegate or choose another ledger.path"
        )
    return version


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite raises inside becomes a LedgerError that names the file."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise LedgerError(
            f"{path}: a record names a run, request or attempt that was never written: {error}"
        ) from error
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: the ledger cannot be used: {error}") from error


_DRAINING = b"draining"


def _lock(path: Path) -> int:
    """Hold the lock file beside the ledger: two gateways on one ledger would end each other's runs."""
    beside = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be created: {error.strerror}; set ledger.path") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        draining = os.pread(lock, len(_DRAINING), 0) == _DRAINING
        os.close(lock)
        if draining:
            raise LedgerDraining(f"{path}: a gateway that drains still writes this ledger; wait for its end") from error
        raise LedgerError(f"{path}: another gateway writes this ledger; stop it or set ledger.path") from error
    os.ftruncate(lock, 0)
    return lock


def _touch(db: sqlite3.Connection, table: str, keys: set[str]) -> None:
    db.execute(f"INSERT INTO {table} SELECT value FROM json_each(?)", (orjson.dumps(list(keys)).decode(),))


_ROWS = 50  # a statement; SQLite takes 999 parameters everywhere


def _insert(db: sqlite3.Connection, statement: str, rows: Sequence[tuple[str | float | None, ...]]) -> None:
    """Insert rows, `_ROWS` a step: around every step Python lets go of its lock and has to fight for it again."""
    if not rows:
        return
    one = f"({', '.join('?' * len(rows[0]))})"
    several = statement.format(", ".join([one] * _ROWS))
    full = len(rows) - len(rows) % _ROWS
    for start in range(0, full, _ROWS):
        db.execute(several, list(chain.from_iterable(rows[start : start + _ROWS])))
    db.executemany(statement.format(one), rows[full:])
