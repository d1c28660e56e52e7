"""Recorded workflows, to be replayed: read from a gateway's ledger, the record of a load, or JSON lines.

A line of JSON lines is one call: `run` and `output_tokens` (or `max_tokens`); `prompt_tokens`, or the prompt itself as
`messages` or `prompt`; and what else is known of `workflow`, `step`, `node`, `parents` (nodes of the run),
`cached_tokens`, `started` and `ended` (seconds, of any clock). A ledger has lengths and times alone, never a prompt.

What a call waited for are its parents; without any it is the call of its run that had ended last when it began. The
time between is its pause. Where no times are known, a call without parents waits for the one in the line before.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
from pydantic import TypeAdapter, ValidationError

from loadgen import record


class RecordedError(ValueError):
    """A recording that cannot be used: one line that names the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One call as it was. Of its prompt the length is known, or the text."""

    run: str
    output_tokens: int
    workflow: str = "replay"
    step: str = "call"
    node: str = ""
    parents: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    messages: tuple[dict[str, str], ...] = ()
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A call in its run: what it waited for, and how long after that it came."""

    call: RecordedCall
    waits_for: tuple[str, ...]
    pause_s: float


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """`at_s` is from the beginning of the recording; 0 for all runs where it has no times."""

    workflow: str
    at_s: float
    calls: tuple[Placed, ...]


@cache
def recorded_runs(path: str) -> tuple[RecordedRun, ...]:
    """The runs in a file, in the order of their beginnings. Raises RecordedError."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            head = opened.read(16)
        calls = _of_ledger(file) if head.startswith(b"SQLite format 3") else _of_lines(file)
    except OSError as error:
        raise RecordedError(f"{path} cannot be read: {error}") from None
    runs: dict[str, list[RecordedCall]] = {}
    for call in calls:
        runs.setdefault(call.run, []).append(call)
    if not runs:
        raise RecordedError(f"{path} has no call that was answered")
    began = min((call.started for call in calls if call.started is not None), default=0.0)
    return tuple(sorted((_run(calls, began, path) for calls in runs.values()), key=lambda run: run.at_s))


def _run(calls: Sequence[RecordedCall], began: float, path: str) -> RecordedRun:
    named = [call if call.node else replace(call, node=f"call-{n}") for n, call in enumerate(calls, start=1)]
    if all(call.started is not None for call in named):
        named.sort(key=lambda call: call.started or 0.0)
    at = named[0].started
    placed: list[Placed] = []
    for call in named:
        before = [one.call for one in placed]
        if any(one.node == call.node for one in before):
            raise RecordedError(f"{path}: run {call.run!r} has two calls that are called {call.node!r}")
        placed.append(_place(call, before, at))
    return RecordedRun(named[0].workflow, 0.0 if at is None else at - began, tuple(placed))


def _place(call: RecordedCall, before: Sequence[RecordedCall], at: float | None) -> Placed:
    known = {one.node: one for one in before}
    parents = tuple(node for node in call.parents if node in known)
    if call.started is None:
        return Placed(call, parents or tuple(one.node for one in before[-1:]), 0.0)
    ended = [one for one in before if one.ended is not None and one.ended <= call.started]
    if parents:
        waited = [known[node] for node in parents]
    else:
        waited = [max(ended, key=lambda one: one.ended or 0.0)] if ended else []
    since = max((one.ended for one in waited if one.ended is not None), default=at or call.started)
    return Placed(call, tuple(one.node for one in waited), max(0.0, call.started - since))


def _of_ledger(file: Path) -> list[RecordedCall]:
    query = (
        "SELECT uid, workflow, id, step, node, parents, received, requests.ended AS ended,"
        " prompt_tokens, cached_tokens, output_tokens FROM requests JOIN runs ON uid = run_uid"
        " WHERE outcome = 'ok' AND prompt_tokens > 0 AND output_tokens > 0 ORDER BY received"
    )
    try:
        db = sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro", uri=True)
        db.row_factory = sqlite3.Row
        try:
            rows = db.execute(query).fetchall()
        finally:
            db.close()
    except sqlite3.Error as error:
        raise RecordedError(f"{file} is no ledger of Joulegate that can be read: {error}") from None
    nodes = {row["id"]: row["node"] or row["id"] for row in rows}  # parents may be named by their request's id
    return [
        RecordedCall(
            run=row["uid"],
            workflow=row["workflow"],
            step=row["step"],
            node=nodes[row["id"]],
            parents=tuple(nodes.get(parent, parent) for parent in orjson.loads(row["parents"])),
            prompt_tokens=row["prompt_tokens"],
            cached_tokens=row["cached_tokens"] or 0,
            output_tokens=row["output_tokens"],
            started=row["received"],
            ended=row["ended"],
        )
        for row in rows
    ]


def _of_lines(file: Path) -> list[RecordedCall]:
    data = file.read_bytes()
    if data.startswith(b'{"kind":"load"'):
        try:
            result = record.of_bytes(data, str(file))
        except record.RecordError as error:
            raise RecordedError(str(error)) from None
        return [_of_record(request) for request in result.requests if request.outcome == "ok" and request.output_tokens]
    return [
        _of_line(line, f"{file}, line {number}")
        for number, line in enumerate(data.splitlines(), start=1)
        if line.strip()
    ]


def _of_record(request: record.RequestRecord) -> RecordedCall:
    return RecordedCall(
        run=request.run,
        workflow=request.workflow,
        step=request.step,
        node=request.node,
        parents=request.parents or request.after,
        prompt_tokens=request.prompt_tokens or 1,
        cached_tokens=request.cached_tokens or 0,
        output_tokens=request.output_tokens or 1,
        started=request.intended_s,
        ended=request.ended_s,
    )


def _of_line(line: bytes, place: str) -> RecordedCall:
    try:
        fields: dict[str, Any] = orjson.loads(line)
        prompt, limit = fields.pop("prompt", None), fields.pop("max_tokens", None)
        if prompt is not None:
            fields["messages"] = [{"role": "user", "content": prompt}]
        fields.setdefault("output_tokens", limit)
        call = _CALL.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordedError(f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, AttributeError, TypeError):
        raise RecordedError(f"{place} is not a JSON object") from None
    if call.output_tokens < 1 or not (call.messages or (call.prompt_tokens or 0) > 0):
        raise RecordedError(f"{place} needs output_tokens, and prompt_tokens or messages or prompt")
    return call


_CALL: TypeAdapter[RecordedCall] = TypeAdapter(RecordedCall)
