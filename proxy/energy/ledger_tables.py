"""The ledger as flat tables, row by row, for whoever wants to work on it elsewhere.

Joules are the stored microjoules divided by a million; what no counter saw is null. Times are Unix seconds.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.records import Quality

COMPONENTS = ("gpu", "soc", "cpu", "dram")

Value = str | int | float | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows: from `since` on and before `until` (Unix seconds), of one workflow, of one tenant; null for all."""

    since: float | None = None
    until: float | None = None
    workflow: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table of the export. `select` may be followed by WHERE and `group`; `time` and `whose` are what WHERE is about.

    A day is in a selection when it begins in it.
    """

    name: str
    columns: Mapping[str, type]
    select: str
    time: str
    whose: bool = True  # it has tenants and workflows
    by_day: bool = False
    group: str = ""

    @contextmanager
    def rows(self, reader: LedgerReader, selection: Selection) -> Iterator[Iterator[tuple[Value, ...]]]:
        """The rows, of one commit, read as they are asked for. Raises LedgerError when the ledger cannot be read."""
        bounds = [(f"{self.time} >= ?", selection.since), (f"{self.time} < ?", selection.until)]
        if self.by_day:
            bounds = [(clause, None if t is None else _day(t)) for clause, t in bounds]
        if self.whose:
            bounds += [("workflow = ?", selection.workflow), ("tenant = ?", selection.tenant)]
        given = [(clause, value) for clause, value in bounds if value is not None]
        where = f"WHERE {' AND '.join(clause for clause, _ in given)}" if given else ""
        with reader.read() as db:
            db.row_factory = None
            cursor: sqlite3.Cursor = db.execute(f"{self.select} {where} {self.group}", [value for _, value in given])
            cursor.arraysize = 1000
            yield cursor


def _day(t: float) -> str:
    """The first day that begins at a time or later."""
    return (datetime.fromtimestamp(t, UTC) + timedelta(days=1, microseconds=-1)).strftime("%Y-%m-%d")


_BAND = dict.fromkeys(("joules", "joules_low", "joules_high"), float)
_PARTS = dict.fromkeys(("workflow_joules", "idle_joules", "foreign_joules", "gap_joules"), float)
_SPLIT = dict.fromkeys(("prefill_joules", "decode_joules", *(f"{one}_joules" for one in COMPONENTS)), float)
_TOKENS = dict.fromkeys(("prompt_tokens", "cached_tokens", "output_tokens"), int)
_RANK = " ".join(f"WHEN '{quality}' THEN {rank}" for rank, quality in enumerate(Quality))
_NAME = " ".join(f"WHEN {rank} THEN '{quality}'" for rank, quality in enumerate(Quality))
_RANKED = f"CASE quality {_RANK} END"  # the higher, the worse
_PARTS_J = "workflow_uj / 1e6, idle_uj / 1e6, foreign_uj / 1e6, gap_uj / 1e6"
_LAST = "FROM attempts WHERE request_id = requests.id ORDER BY n DESC LIMIT 1"
_OF_REQUEST = "FROM energy WHERE request_id = requests.id"

REQUESTS = Table(
    "requests",
    {
        **dict.fromkeys(("id", "tenant", "workflow", "run"), str),
        "segment": int,
        **dict.fromkeys(("step", "node", "parents", "model", "path"), str),
        "stream": int,
        "engine": str,
        "attempts": int,
        "outcome": str,
        "code": int,
        **dict.fromkeys(("received", "duration_s", "ttft_s"), float),
        **_TOKENS,
        "usage": str,
        **_BAND,
        "quality": str,
        **_SPLIT,
        "saved_joules": float,
        "saved_quality": str,
    },
    f"""
    SELECT requests.id, tenant, workflow, run, segment, step, node, parents, model, path, stream,
        (SELECT engine {_LAST}), (SELECT count(*) FROM attempts WHERE request_id = requests.id), outcome, code,
        received, requests.ended - received, (SELECT first {_LAST}) - received,
        prompt_tokens, cached_tokens, output_tokens, usage,
        sum(prefill_uj + decode_uj) / 1e6, sum(low_uj) / 1e6, sum(high_uj) / 1e6,
        CASE max({_RANKED}) {_NAME} END, sum(prefill_uj) / 1e6, sum(decode_uj) / 1e6,
        {", ".join(f"sum(CASE component WHEN '{one}' THEN prefill_uj + decode_uj END) / 1e6" for one in COMPONENTS)},
        saved_uj / 1e6, saved_quality
    FROM requests JOIN runs ON uid = run_uid LEFT JOIN energy ON request_id = requests.id
    """,
    time="received",
    group="GROUP BY requests.id",
)

RUNS = Table(
    "runs",
    {
        **dict.fromkeys(("tenant", "workflow", "run"), str),
        "segment": int,
        "state": str,
        **dict.fromkeys(("opened", "duration_s"), float),
        "requests": int,
        **_TOKENS,
        **_BAND,
        "quality": str,
    },
    f"""
    SELECT tenant, workflow, run, segment, state, opened, runs.ended - opened, count(requests.id),
        coalesce(sum(prompt_tokens), 0), coalesce(sum(cached_tokens), 0), coalesce(sum(output_tokens), 0),
        sum((SELECT sum(prefill_uj + decode_uj) {_OF_REQUEST})) / 1e6, sum((SELECT sum(low_uj) {_OF_REQUEST})) / 1e6,
        sum((SELECT sum(high_uj) {_OF_REQUEST})) / 1e6, CASE max((SELECT max({_RANKED}) {_OF_REQUEST})) {_NAME} END
    FROM runs LEFT JOIN requests ON run_uid = uid
    """,
    time="opened",
    group="GROUP BY uid",
)

WINDOWS = Table(
    "windows",
    {"device": str, "second": int, "quality": str, **_PARTS},
    f"SELECT device, second, quality, {_PARTS_J} FROM windows",
    time="second",
    whose=False,
)

DAY_RUNS = Table(
    "day_runs",
    {**dict.fromkeys(("day", "tenant", "workflow"), str), "runs": int, "duration_s": float},
    "SELECT day, tenant, workflow, runs, duration_us / 1e6 FROM day_runs",
    time="day",
    by_day=True,
)

DAY_REQUESTS = Table(
    "day_requests",
    {
        **dict.fromkeys(("day", "tenant", "workflow", "step", "outcome", "saved_quality"), str),
        "requests": int,
        **_TOKENS,
        "saved_joules": float,
    },
    """
    SELECT day, tenant, workflow, step, outcome, saved_quality, requests, prompt_tokens, cached_tokens, output_tokens,
        saved_uj / 1e6
    FROM day_requests
    """,
    time="day",
    by_day=True,
)

DAY_ENERGY = Table(
    "day_energy",
    {
        **dict.fromkeys(("day", "tenant", "workflow", "step", "engine", "component", "quality", "waste"), str),
        **_BAND,
    },
    """
    SELECT day, tenant, workflow, step, engine, component, quality, waste, uj / 1e6, low_uj / 1e6, high_uj / 1e6
    FROM day_energy
    """,
    time="day",
    by_day=True,
)

DAY_WINDOWS = Table(
    "day_windows",
    {**dict.fromkeys(("day", "device", "quality"), str), **_PARTS},
    f"SELECT day, device, quality, {_PARTS_J} FROM day_windows",
    time="day",
    whose=False,
    by_day=True,
)

TABLES = (REQUESTS, RUNS, WINDOWS, DAY_RUNS, DAY_REQUESTS, DAY_ENERGY, DAY_WINDOWS)
