"""A request's identity: which run, workflow, step and node it belongs to, from what the client sends.

Each field is taken from the first place that gives it, in the order of `_LEVELS`; which place it was is kept. Ids are
untrusted: our own headers are refused when they are no good, other tools' are ignored and counted.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

MAX_LENGTH = 200
UNGROUPED = "ungrouped"
UNNAMED = "unnamed"

_OWN = (
    (b"x-workflow-id", "x-workflow-id", "run"),
    (b"x-workflow-name", "x-workflow-name", "workflow"),
    (b"x-workflow-step", "x-workflow-step", "step"),
    (b"x-workflow-node", "x-workflow-node", "node"),
    (b"x-workflow-parent", "x-workflow-parent", "parents"),
)
# Headers that other tools already send, in the order in which they are believed.
_TOOLS = {
    b"x-session-id": "run",
    b"x-parent-session-id": "parents",
    b"session-id": "run",
    b"x-session-affinity": "run",
    b"x-dynamo-session-id": "run",
    b"x-dynamo-parent-session-id": "parents",
    b"x-claude-code-session-id": "run",
    b"x-claude-code-agent-id": "node",
    b"x-claude-code-parent-agent-id": "parents",
    b"x-litellm-trace-id": "run",
    b"x-litellm-session-id": "run",
    b"helicone-session-id": "run",
    b"helicone-session-name": "workflow",
    b"helicone-session-path": "step",
    b"agent-session-id": "run",
    b"x-thread-id": "run",
    b"x-run-id": "run",
}
_FINAL = frozenset((b"x-workflow-final", b"x-dynamo-session-final"))
_CARRIERS = frozenset((*_TOOLS, b"baggage", b"traceparent"))
_TRUE = (b"true", b"1")
_METADATA = {
    "workflow_id": "run",
    "workflow_name": "workflow",
    "workflow_step": "step",
    "session_id": "run",
    "thread_id": "run",
}
_BAGGAGE = {
    "workflow.id": "run",
    "workflow.name": "workflow",
    "session.id": "run",
    "gen_ai.conversation.id": "run",
    "gen_ai.workflow.name": "workflow",
    "langfuse_session_id": "run",
    "langfuse_trace_name": "workflow",
}
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")


class BadIdentity(ValueError):
    """One of our own headers holds what cannot be an id."""


class Identity(NamedTuple):
    """Whose a request is. `alone` marks a request that is a run of its own."""

    run: str
    workflow: str
    step: str
    node: str | None
    parents: tuple[str, ...]
    final: bool
    alone: bool
    sources: dict[str, str]  # field -> the header, body field or baggage key that gave it
    ignored: int  # ids of other tools that were no good


def identify(headers: Mapping[bytes, bytes], body: Mapping[str, Any] | None, request_id: str) -> Identity:
    """Read a request's identity from its headers (names in lower case) and its parsed body.

    Raises BadIdentity, with a message for the client, for one of our own headers that is over 200 characters or not
    printable ASCII.
    """
    found: dict[str, str] = {}
    sources: dict[str, str] = {}
    ignored = 0
    for header, name, field in _OWN:
        if raw := headers.get(header):
            text = raw.decode("latin-1").strip()
            if not (_good(text) if field != "parents" else all(map(_good, _split(field, text)))):
                raise BadIdentity(f"{name} must be 1 to {MAX_LENGTH} characters of printable ASCII")
            found[field], sources[field] = text, name
    for place, field, value in _others(headers, body) if _may_carry(headers, body) else ():
        if field in found:
            continue
        if all(_good(part) for part in _split(field, value)):
            found[field], sources[field] = value, place
        else:
            ignored += 1
    run = found.get("run")
    return Identity(
        run=run or request_id,
        workflow=found.get("workflow") or (UNNAMED if run else UNGROUPED),
        step=found.get("step") or UNNAMED,
        node=found.get("node"),
        parents=tuple(_split("parents", found["parents"])) if "parents" in found else (),
        final=not _FINAL.isdisjoint(headers) and any(headers.get(name, b"").lower() in _TRUE for name in _FINAL),
        alone=run is None,
        sources=sources,
        ignored=ignored,
    )


def _split(field: str, text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if field == "parents" else [text]


def _good(text: str) -> bool:
    return 0 < len(text) <= MAX_LENGTH and text.isascii() and text.isprintable()


def _may_carry(headers: Mapping[bytes, bytes], body: Mapping[str, Any] | None) -> bool:
    """Whether there can be anything below our own headers: most requests that have these have nothing else."""
    return bool(body and ("metadata" in body or "session_id" in body)) or not _CARRIERS.isdisjoint(headers)


def _others(headers: Mapping[bytes, bytes], body: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    """(place, field, value) of everything below our own headers, the most trusted first."""
    for header, field in _TOOLS.items():
        if raw := headers.get(header):
            value = raw.decode("latin-1").strip()
            # A Helicone path names every level of the trace; the last one is what this call does.
            last = header == b"helicone-session-path"
            yield header.decode(), field, value.rstrip("/").rpartition("/")[2] if last else value
    if body:
        metadata = body.get("metadata")
        if isinstance(metadata, dict):
            for key, field in _METADATA.items():
                if isinstance(value := metadata.get(key), str):
                    yield f"metadata.{key}", field, value
        if isinstance(value := body.get("session_id"), str):
            yield "session_id", "run", value
    if raw := headers.get(b"baggage"):
        carried = dict(_baggage(raw.decode("latin-1")))
        for key, field in _BAGGAGE.items():
            if key in carried:
                yield f"baggage {key}", field, carried[key]
    if raw := headers.get(b"traceparent"):
        match = _TRACEPARENT.fullmatch(raw.decode("latin-1").strip())
        if match and match[1] != "0" * 32:
            yield "traceparent", "run", match[1]


def _baggage(text: str) -> Iterator[tuple[str, str]]:
    """The members of a W3C baggage header, without their properties (https://www.w3.org/TR/baggage/)."""
    for member in text.split(","):
        key, equals, value = member.partition(";")[0].partition("=")
        if equals:
            yield key.strip(), unquote(value.strip())
