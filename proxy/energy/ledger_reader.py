"""What the ledger knows, as plain figures: joules, seconds, tokens.

Joules are the stored microjoules divided by a million and nothing else, so that they still add up; rounding to what the
quality permits is for whoever prints them for people. What no counter saw has no quality, and its joules are null,
never 0.
"""

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from proxy.energy.dag import Call, dag
from proxy.energy.ledger_file import LedgerError, explained, schema_version
from proxy.energy.records import DeviceRecord, Outcome, Phase, Quality, waste_of
from proxy.energy.schema import MIGRATIONS
from proxy.energy.sums import WASTE

_ORDER = list(Quality)
_FAILED = (Outcome.ERROR, Outcome.FAILED)
_TOKENS = ("prompt_tokens", "cached_tokens", "output_tokens")


class Parts(NamedTuple):
    """What became of a device's counter so far; the committed part of it, in microjoules."""

    workflow_uj: int = 0
    idle_uj: int = 0
    foreign_uj: int = 0
    gap_uj: int = 0


def worst(qualities: Iterable[str]) -> str | None:
    """The quality of a sum: that of its worst part, null for a sum of nothing."""
    return max(qualities, key=lambda quality: _ORDER.index(Quality(quality)), default=None)


@dataclass(slots=True)
class _Energy:
    """A sum of energy rows with its band."""

    uj: int = 0
    low_uj: int = 0
    high_uj: int = 0
    qualities: set[str] = field(default_factory=set)
    wasted_uj: dict[str, int] = field(default_factory=dict)  # by reason
    saved_uj: int = 0
    saved_qualities: set[str] = field(default_factory=set)

    def add(self, row: sqlite3.Row, waste: str | None = None) -> None:
        self.uj += row["uj"]
        self.low_uj += row["low_uj"]
        self.high_uj += row["high_uj"]
        self.qualities.add(row["quality"])
        if waste:
            _count(self.wasted_uj, waste, row["uj"])

    def save(self, row: sqlite3.Row) -> None:
        """Add what a request, or a sum of some, did not cost."""
        if row["saved_quality"]:
            self.saved_uj += row["saved_uj"]
            self.saved_qualities.add(row["saved_quality"])

    @property
    def known(self) -> bool:
        """Whether a counter, or an estimate, stands behind any part; else the sum says nothing, not 0."""
        return bool(self.qualities)

    def joules(self, uj: int | None = None) -> float | None:
        """The sum, or a part of it, in joules; null where nothing is known."""
        return (self.uj if uj is None else uj) / 1e6 if self.known else None

    def figures(self) -> dict[str, Any]:
        return {
            "joules": self.joules(),
            "joules_low": self.joules(self.low_uj),
            "joules_high": self.joules(self.high_uj),
            "quality": worst(self.qualities),
        }

    def worth(self) -> dict[str, Any]:
        """Which part of the joules bought nothing, and what was saved besides; null where nothing is known."""
        return {
            "joules_wasted": self.joules(sum(self.wasted_uj.values())),
            "wasted_by_reason": _joules(self.wasted_uj),
            "saved_joules": self.saved_uj / 1e6 if self.known or self.saved_qualities else None,
            "saved_quality": worst(self.saved_qualities),
        }


class LedgerReader:
    """Reads a ledger file while the gateway writes it, or when none runs; any thread may call it.

    Every call opens its own read-only connection (a fraction of a millisecond) and sees one commit, whole. `tenant`
    null means all tenants. Raises LedgerError when the file is missing, unreadable or of another schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def workflows(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """Totals of every workflow, per tenant, the one with the most joules first.

        `runs` counts segments; `mean_duration_s` is over the ended ones; `joules_wasted` went into attempts that
        bought nothing. `saved_joules` were not spent, and are in none of the others.
        """
        where, values = _matching(tenant=tenant)
        with self.read() as db:
            runs = db.execute(f"SELECT * FROM total_runs {where}", values).fetchall()
            requests = db.execute(f"SELECT * FROM total_requests {where}", values).fetchall()
            energy = db.execute(f"SELECT * FROM total_energy {where}", values).fetchall()
        groups: dict[tuple[str, str], tuple[list[sqlite3.Row], ...]] = defaultdict(lambda: ([], [], []))
        for kind, (rows, count) in enumerate([(runs, "runs"), (requests, "requests"), (energy, "records")]):
            for row in rows:
                if row[count]:  # a total from which everything moved away says nothing
                    groups[row["tenant"], row["workflow"]][kind].append(row)
        figures = [_workflow(*key, *rows) for key, rows in groups.items()]
        return sorted(figures, key=lambda row: (-(row["joules"] or 0.0), row["tenant"], row["workflow"]))

    def runs(
        self, tenant: str | None = None, workflow: str | None = None, since: float | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Runs (segments) opened at `since` (Unix seconds) or later, newest first, without their requests."""
        where, values = _matching(tenant=tenant, workflow=workflow)
        if since is not None:
            where, values = f"{where} {'AND' if where else 'WHERE'} opened >= ?", (*values, since)
        with self.read() as db:
            rows = db.execute(f"SELECT * FROM runs {where} ORDER BY opened DESC LIMIT ?", (*values, limit)).fetchall()
            uids = (json.dumps([row["uid"] for row in rows]),)
            requests = db.execute(
                "SELECT run_uid, count(*) AS requests, sum(prompt_tokens) AS prompt_tokens,"
                " sum(cached_tokens) AS cached_tokens, sum(output_tokens) AS output_tokens"
                " FROM requests WHERE run_uid IN (SELECT value FROM json_each(?)) GROUP BY run_uid",
                uids,
            ).fetchall()
            energy = db.execute(
                f"SELECT run_uid, quality, {WASTE} AS waste, sum(prefill_uj + decode_uj) AS uj, sum(low_uj) AS low_uj,"
                " sum(high_uj) AS high_uj FROM requests CROSS JOIN energy ON energy.request_id = id"
                " CROSS JOIN attempts ON attempts.request_id = id AND n = attempt"
                " WHERE run_uid IN (SELECT value FROM json_each(?)) GROUP BY run_uid, quality, waste",
                uids,
            ).fetchall()
            savings = db.execute(
                "SELECT run_uid, saved_quality, sum(saved_uj) AS saved_uj FROM requests WHERE saved_uj IS NOT NULL"
                " AND run_uid IN (SELECT value FROM json_each(?)) GROUP BY run_uid, saved_quality",
                uids,
            ).fetchall()
        counts = {row["run_uid"]: row for row in requests}
        sums: dict[str, _Energy] = defaultdict(_Energy)
        for row in energy:
            sums[row["run_uid"]].add(row, row["waste"])
        for row in savings:
            sums[row["run_uid"]].save(row)
        return [
            {
                **_run(row),
                "requests": counts[row["uid"]]["requests"] if row["uid"] in counts else 0,
                **_tokens([counts[row["uid"]]] if row["uid"] in counts else []),
                **sums[row["uid"]].figures(),
                **sums[row["uid"]].worth(),
            }
            for row in rows
        ]

    def run(self, tenant: str | None, run_id: str) -> dict[str, Any] | None:
        """The newest segment of a run with its requests, null for an unknown one. Of several tenants' the newest."""
        where, values = _matching(run=run_id, tenant=tenant)
        with self.read() as db:
            # The unary plus keeps the planner from walking the runs by time until it meets this one.
            newest = "ORDER BY +opened DESC, +segment DESC LIMIT 1"
            run = db.execute(f"SELECT * FROM runs {where} {newest}", values).fetchone()
            if run is None:
                return None
            found = db.execute("SELECT * FROM requests WHERE run_uid = ? ORDER BY received, id", (run["uid"],))
            requests, total = _requests(db, found.fetchall())
        figures = {**total.figures(), **total.worth(), "by_step": _by_step(requests), "dag": _dag(requests)}
        return {**_run(run), **figures, "requests": requests}

    def request(self, request_id: str) -> dict[str, Any] | None:
        """One request with the run that it belongs to, null for an unknown one."""
        with self.read() as db:
            found = db.execute("SELECT * FROM requests WHERE id = ?", (request_id,)).fetchall()
            if not found:
                return None
            run = db.execute("SELECT * FROM runs WHERE uid = ?", (found[0]["run_uid"],)).fetchone()
            requests, _ = _requests(db, found)
        return {**{key: run[key] for key in ("run", "tenant", "workflow", "segment")}, **requests[0]}

    def engines(self) -> dict[str, dict[str, Any]]:
        """What each engine's requests have cost: joules with band and quality, and joules by component."""
        sums: dict[str, _Energy] = defaultdict(_Energy)
        components: dict[str, dict[str, int]] = defaultdict(dict)
        with self.read() as db:
            for row in db.execute(
                "SELECT engine, component, quality, sum(uj) AS uj, sum(low_uj) AS low_uj, sum(high_uj) AS high_uj"
                " FROM total_energy WHERE records > 0 GROUP BY engine, component, quality"
            ):
                sums[row["engine"]].add(row)
                _count(components[row["engine"]], row["component"], row["uj"])
        return {
            engine: {**total.figures(), "by_component": _joules(components[engine])} for engine, total in sums.items()
        }

    def spent(self, since: int) -> dict[str, dict[int, int]]:
        """Settled microjoules of each tenant by the hour (since 1970), from the hour `since` on."""
        spent: dict[str, dict[int, int]] = defaultdict(dict)
        with self.read() as db:
            for tenant, hour, uj in db.execute("SELECT * FROM spent WHERE hour >= ?", (since,)):
                spent[tenant][hour] = uj
        return dict(spent)

    def run_uj(self, tenant: str, run_id: str, but: Sequence[str] = ()) -> int:
        """Settled microjoules of a run over all its segments, those with the uids `but` left out."""
        with self.read() as db:
            found = db.execute(
                "SELECT sum(prefill_uj + decode_uj) FROM runs CROSS JOIN requests ON run_uid = uid"
                " CROSS JOIN energy ON request_id = id WHERE run = ? AND tenant = ?"
                " AND uid NOT IN (SELECT value FROM json_each(?))",
                (run_id, tenant, json.dumps(list(but))),
            ).fetchone()
        return found[0] or 0

    def devices(self) -> list[DeviceRecord]:
        """The devices as they were last written, with all that their counters have moved (`counter_uj`): where a
        restarted gateway takes the books up again."""
        with self.read() as db:
            return [
                DeviceRecord(**{**dict(row), "quality": Quality(row["quality"])})
                for row in db.execute("SELECT * FROM devices ORDER BY device")
            ]

    def parts(self) -> dict[str, Parts]:
        """What became of each device's joules so far, summed over its windows."""
        with self.read() as db:
            return {
                row["device"]: Parts(*row[1:])
                for row in db.execute(
                    "SELECT device, sum(workflow_uj), sum(idle_uj), sum(foreign_uj), sum(gap_uj)"
                    " FROM total_windows GROUP BY device ORDER BY device"
                ).fetchall()
            }

    def balance(self) -> dict[str, dict[str, Any]]:
        """The committed books of each device: its counter, the parts, and what they leave unexplained (joules)."""
        with self.read() as db:
            devices = db.execute(
                "SELECT devices.device, devices.quality, counter_uj, coalesce(sum(workflow_uj), 0) AS workflow_uj,"
                " coalesce(sum(idle_uj), 0) AS idle_uj, coalesce(sum(foreign_uj), 0) AS foreign_uj,"
                " coalesce(sum(gap_uj), 0) AS gap_uj"
                " FROM devices LEFT JOIN total_windows USING (device) GROUP BY device ORDER BY device"
            ).fetchall()
        shares = ("workflow", "idle", "foreign", "gap")
        return {
            row["device"]: {
                "counter_j": row["counter_uj"] / 1e6,
                **{f"{share}_j": row[f"{share}_uj"] / 1e6 for share in shares},
                "residual_j": (row["counter_uj"] - sum(row[f"{share}_uj"] for share in shares)) / 1e6,
                "quality": row["quality"],
            }
            for row in devices
        }

    def dropped(self) -> tuple[int, int]:
        """How many requests the ledger never had as more than sums, for want of room in memory, and their µJ."""
        with self.read() as db:
            return db.execute("SELECT coalesce(sum(requests), 0), coalesce(sum(uj), 0) FROM dropped").fetchone()[:]

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one commit, whole, as long as it is held; the writer goes on."""
        if not self.path.exists():
            raise LedgerError(f"{self.path}: no ledger here yet; it is made when the gateway starts")
        with explained(self.path):
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
                db.execute("PRAGMA query_only = ON")
                if (version := schema_version(db, self.path)) < len(MIGRATIONS):
                    raise LedgerError(f"{self.path}: schema {version} is an old one; start the gateway to update it")
                db.row_factory = sqlite3.Row
                db.execute("BEGIN")  # all that one call reads belongs to one commit
                yield db


def check_place(path: Path) -> None:
    """Look whether a gateway could keep its ledger there; nothing is made or changed. Raises LedgerError."""
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise LedgerError(f"{path}: the ledger cannot be created: {folder} is not a folder; set ledger.path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LedgerError(f"{path}: the ledger cannot be created: {folder} cannot be written; set ledger.path")
    if path.is_dir():
        raise LedgerError(f"{path}: the ledger cannot be a folder; set ledger.path")
    if os.path.lexists(path):
        with explained(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            schema_version(db, path)
        if not os.access(path, os.W_OK):
            raise LedgerError(f"{path}: the ledger cannot be written; set ledger.path")


def _matching(**values: str | None) -> tuple[str, tuple[str, ...]]:
    """A WHERE clause over columns of ours; what they must equal is passed as parameters."""
    given = {column: value for column, value in values.items() if value is not None}
    clause = " AND ".join(f"{column} = ?" for column in given)
    return (f"WHERE {clause}" if clause else ""), tuple(given.values())


def _workflow(
    tenant: str, workflow: str, runs: list[sqlite3.Row], requests: list[sqlite3.Row], energy: list[sqlite3.Row]
) -> dict[str, Any]:
    total = _Energy()
    components: dict[str, int] = {}
    steps: dict[str, dict[str, Any]] = {}
    for row in energy:
        total.add(row, row["waste"])
        _count(components, row["component"], row["uj"])
    for row in requests:
        total.save(row)
        step = steps.setdefault(row["step"], {"requests": 0, "joules": None, "output_tokens": 0})
        step["requests"] += row["requests"]
        step["output_tokens"] += row["output_tokens"]
        if parts := [part["uj"] for part in energy if part["step"] == row["step"]]:
            step["joules"] = sum(parts) / 1e6
    outcomes = [(row["outcome"], row["requests"]) for row in requests]
    run_count = sum(row["runs"] for row in runs)
    ended = [row for row in runs if row["state"] != "open"]
    ended_count = sum(row["runs"] for row in ended)
    tokens = _tokens(requests)
    joules = total.joules()
    return {
        "tenant": tenant,
        "workflow": workflow,
        "runs": run_count,
        "requests": sum(count for _, count in outcomes),
        "failed": sum(count for outcome, count in outcomes if outcome in _FAILED),
        "cancelled": sum(count for outcome, count in outcomes if outcome == Outcome.CANCELLED),
        "refused": sum(count for outcome, count in outcomes if outcome == Outcome.REFUSED),
        **tokens,
        **total.figures(),
        **total.worth(),
        "joules_per_run": _per(joules, run_count),
        "joules_per_output_token": _per(joules, tokens["output_tokens"]),
        "mean_duration_s": sum(row["duration_us"] for row in ended) / 1e6 / ended_count if ended_count else None,
        "by_component": _joules(components),
        "by_engine": _by_engine(energy),
        "by_step": steps,
    }


def _run(row: sqlite3.Row) -> dict[str, Any]:
    keys = ("run", "tenant", "workflow", "segment", "state", "opened", "ended")
    return {**{key: row[key] for key in keys}, "duration_s": row["ended"] - row["opened"]}


def _requests(db: sqlite3.Connection, rows: list[sqlite3.Row]) -> tuple[list[dict[str, Any]], _Energy]:
    """The requests with their attempts and energy, and the energy of all of them."""
    ids = (json.dumps([row["id"] for row in rows]),)
    of_request = "FROM json_each(?) CROSS JOIN {} ON request_id = value"
    attempts: dict[str, list[sqlite3.Row]] = defaultdict(list)
    for row in db.execute(f"SELECT attempts.* {of_request.format('attempts')} ORDER BY request_id, n", ids):
        attempts[row["request_id"]].append(row)
    energy: dict[str, list[sqlite3.Row]] = defaultdict(list)
    total = _Energy()
    for row in db.execute(f"SELECT energy.*, prefill_uj + decode_uj AS uj {of_request.format('energy')}", ids):
        energy[row["request_id"]].append(row)
    return [_request(row, attempts[row["id"]], energy[row["id"]], total) for row in rows], total


def _request(
    row: sqlite3.Row, attempts: list[sqlite3.Row], energy: list[sqlite3.Row], of_all: _Energy
) -> dict[str, Any]:
    """A request's figures, which are added to those `of_all`; times are the client's, from its arrival on."""
    total = _Energy()
    components: dict[str, int] = {}
    phases = {phase.value: 0 for phase in Phase}
    wastes = {attempt["n"]: waste_of(attempt["outcome"], row["outcome"]) for attempt in attempts}
    for sums in (total, of_all):
        sums.save(row)
        for part in energy:
            sums.add(part, wastes[part["attempt"]])
    for part in energy:
        _count(components, part["component"], part["uj"])
        for phase in Phase:
            _count(phases, phase.value, part[f"{phase}_uj"])
    last = attempts[-1] if attempts else None
    first = last["first"] if last else None
    begun = attempts[0]["queued"] if attempts else row["ended"]
    waits = [(attempt["queued"], attempt["dispatched"]) for attempt in attempts if attempt["dispatched"] is not None]
    keys = ("id", "step", "node", "model", "path", "outcome", "code", "received", *_TOKENS, "usage")
    return {
        **{key: row[key] for key in keys},
        "parents": json.loads(row["parents"]),
        "identified_by": json.loads(row["identified_by"]),
        "engine": last["engine"] if last else None,
        "attempts": len(attempts),
        "stream": bool(row["stream"]),
        "held_s": None if begun is None else begun - row["received"],
        "queued_s": sum(dispatched - queued for queued, dispatched in waits),
        "duration_s": None if row["ended"] is None else row["ended"] - row["received"],
        "ttft_s": None if first is None else first - row["received"],
        **total.figures(),
        **total.worth(),
        "by_component": _joules(components),
        "by_phase": _joules(phases) if total.known else {},
        "by_place": _by_place(energy),
    }


def _by_step(requests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    steps: dict[str, dict[str, Any]] = {}
    for request in requests:
        step = steps.setdefault(request["step"], {"requests": 0, "joules": None, "output_tokens": 0})
        step["requests"] += 1
        if request["joules"] is not None:
            step["joules"] = round((step["joules"] or 0.0) + request["joules"], 6)
        step["output_tokens"] += request["output_tokens"] or 0
    return steps


def _dag(requests: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The graph of a run's calls that have ended, where they say what they follow from."""
    referred = {parent for request in requests for parent in request["parents"]}
    calls = [
        Call(
            *(request["id"], request["node"] or request["id"], request["step"], tuple(request["parents"])),
            *(request["received"] + request["held_s"], request["received"] + request["duration_s"]),
            *(request["joules"], request["outcome"] == Outcome.OK),
        )
        for request in requests
        if request["duration_s"] is not None and (request["node"] or request["parents"] or request["id"] in referred)
    ]
    found = dag(calls) if referred else None
    return None if found is None else asdict(found)


def _by_place(energy: Iterable[sqlite3.Row]) -> dict[tuple[str, str], int]:
    """Microjoules by host and quality, which `views` take."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for row in energy:
        sums[row["device"].partition("/")[0], row["quality"]] += row["uj"]
    return dict(sums)


def _by_engine(energy: Iterable[sqlite3.Row]) -> dict[tuple[str, str], int]:
    """Microjoules by engine and quality, which `views` take."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for row in energy:
        sums[row["engine"], row["quality"]] += row["uj"]
    return dict(sums)


def _per(joules: float | None, count: int) -> float | None:
    return None if joules is None or not count else joules / count


def _tokens(rows: Iterable[sqlite3.Row]) -> dict[str, int]:
    rows = list(rows)
    return {key: sum(row[key] or 0 for row in rows) for key in _TOKENS}


def _count(sums: dict[str, int], key: str, uj: int) -> None:
    sums[key] = sums.get(key, 0) + uj


def _joules(sums_uj: Mapping[str, int]) -> dict[str, float]:
    return {key: uj / 1e6 for key, uj in sums_uj.items()}
