"""`joulegate export`: the ledger as files, a table each, written row by row."""

import csv
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.ledger_tables import TABLES, Selection, Table, Value

ROWS_AT_ONCE = 10_000

Write = Callable[[list[tuple[Value, ...]]], Any]


class ExportError(ValueError):
    """Nothing can be exported like that; the message is one line that says why."""


def moment(text: str) -> float:
    """Unix seconds of an ISO date or time (UTC without a zone), or of such seconds. Raises ExportError for another."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ExportError(f"{text!r} is no time; give a date, as in 2026-01-31, an ISO time or Unix seconds") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def export(reader: LedgerReader, folder: Path, kind: str, selection: Selection) -> dict[Path, int]:
    """Write every table into a folder, as `csv` or `parquet`; returns how many rows each file has.

    Raises ExportError when that cannot be, LedgerError when the ledger cannot be read. A file that is there is whole.
    """
    open_file = {"csv": _csv, "parquet": _parquet}.get(kind)
    if open_file is None:
        raise ExportError(f"there is no format {kind!r}; give csv or parquet")
    files = {table: folder / f"{table.name}.{kind}" for table in TABLES}
    if there := next((file for file in files.values() if file.exists()), None):
        raise ExportError(f"{there} is there already; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {file: _write(table, reader, selection, file, open_file) for table, file in files.items()}
    except OSError as error:
        raise ExportError(f"{folder}: the export cannot be written: {error.strerror or error}") from error


def _write(table: Table, reader: LedgerReader, selection: Selection, file: Path, open_file: Any) -> int:
    part, count = file.with_name(f".{file.name}.part"), 0
    try:
        with table.rows(reader, selection) as rows, open_file(table, part) as write:
            while some := list(islice(rows, ROWS_AT_ONCE)):
                write(some)
                count += len(some)
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
    return count


@contextmanager
def _csv(table: Table, file: Path) -> Iterator[Write]:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(table.columns)
        yield writer.writerows


@contextmanager
def _parquet(table: Table, file: Path) -> Iterator[Write]:
    try:
        pa: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ExportError("parquet needs pyarrow: pip install 'joulegate[parquet]', or take csv") from None
    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in table.columns.items()])
    with parquet.ParquetWriter(file, schema) as writer:

        def write(rows: list[tuple[Value, ...]]) -> None:
            columns = zip(*rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

        yield write
