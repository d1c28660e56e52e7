"""The ledger's file: who may write it, which version it has, and what to say when it cannot be used."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxy.energy.schema import APPLICATION_ID, MIGRATIONS


class LedgerError(Exception):
    """The ledger cannot be used; the message is one line that names the file and what would help."""


class LedgerDraining(LedgerError):
    """Its writer takes no more requests, and will let go of it when its last one has ended."""


class LedgerMismatch(LedgerError):
    """The file is well, but it can never take this batch: what that adds to is not in it."""


_MEND = "; move it away, with its -wal and -shm, and a new one is begun (docs/ledger.md says how to save what it has)"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_DRAINING = b"draining"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite raises inside becomes a LedgerError that names the file, and what would help."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise LedgerMismatch(
            f"{path}: a record names a run, request or attempt that was never written: {error}"
        ) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest tells variants apart
        hint = "; make room on its disk" if code == sqlite3.SQLITE_FULL else _MEND if code in _DAMAGED else ""
        raise LedgerError(f"{path}: the ledger cannot be used: {error}{hint}") from error


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


def identity(path: Path) -> tuple[int, int] | None:
    """Which file it is that lies there; null where none is."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


class WriterLock:
    """Held, on a file beside the ledger, by its one writer: two gateways on one ledger would end each other's runs.

    Raises LedgerError where the folder cannot be used or another gateway holds it; LedgerDraining when that one is
    about to let go.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LedgerError(f"{path}: the ledger cannot be created: {error.strerror}; set ledger.path") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            draining = os.pread(self._fd, len(_DRAINING), 0) == _DRAINING
            os.close(self._fd)
            if draining:
                raise LedgerDraining(
                    f"{path}: a gateway that drains still writes this ledger; wait for its end"
                ) from error
            raise LedgerError(f"{path}: another gateway writes this ledger; stop it or set ledger.path") from error
        os.ftruncate(self._fd, 0)

    def draining(self) -> None:
        """Say to whoever wants it next that they only have to wait."""
        os.pwrite(self._fd, _DRAINING, 0)

    def release(self) -> None:
        os.close(self._fd)
