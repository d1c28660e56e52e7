"""Whatever a client sends: no 5xx that is not the engine's, no traceback, and afterwards nothing is held.

`make fuzz` sends 10,000 requests instead of some hundreds (JOULEGATE_FUZZ is their number).
"""

import json
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from stage import Engine, Gateway, chat_body, residual_uj, running, until

REQUESTS = int(os.environ.get("JOULEGATE_FUZZ", "300"))
KEY, ADMIN = {"authorization": "Bearer sk-acme"}, {"authorization": "Bearer sk-admin"}
SLOTS = 2
LONG = pytest.mark.timeout(120 + REQUESTS // 5)


def fuzz(share: float) -> settings:
    """So many examples of the whole number; each run takes other ones, and what fails is shrunk and printed."""
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    phases = [Phase.generate, Phase.shrink]
    return settings(
        max_examples=max(1, int(REQUESTS * share)),
        deadline=None,
        suppress_health_check=health,
        phases=phases,
        database=None,
        print_blob=True,
    )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a key that has two slots and an admin's, before a quick engine."""
    engine = Engine("stub-7b", step_ms=0.5)
    config = {
        "engines": [{"name": "e1", "kind": "openai", "url": engine.url}],
        "keys": [{"tenant": "acme", "key": "sk-acme", "in_flight": SLOTS}],
        "admin": {"key": "sk-admin"},
        "limits": {"body_bytes": 20_000},
        "breaker": {"failures": 1_000_000},  # the engine fails at much of this, and is to be asked all the same
    }
    gateway = Gateway(config, tmp_path_factory.mktemp("fuzz"))
    with running(gateway):
        gateway.http.headers.update(ADMIN)
        assert gateway.chat(KEY).status_code == 200
        yield gateway
    engine.close()


@pytest.fixture(scope="module")
def nothing_is_held(gateway: Gateway) -> Iterator[None]:
    """Whatever the tests do: at their end slots, receipts and sockets are as they were before."""
    held = psutil.Process(gateway.process.pid)
    until(gateway.idle)
    before = held.num_fds()
    yield
    assert gateway.process.poll() is None and "Traceback" not in gateway.log(), gateway.log()
    until(gateway.idle)
    until(lambda: unsettled(gateway.folder / "ledger.sqlite") == 0, 30)
    assert {residual_uj(books) for books in gateway.balance().values()} <= {0}
    until(lambda: held.num_fds() <= before, 30)
    replies = [gateway.http.send(stalled(gateway), stream=True) for _ in range(SLOTS)]
    assert [reply.status_code for reply in replies] == [200] * SLOTS, "every slot of the key is free"
    for reply in replies:
        reply.close()
    until(gateway.idle)


def unsettled(ledger: Path) -> int:
    """Requests that have not ended, or are a run of their own that waits for joules."""
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as db:
        waiting = "outcome IS NULL OR run = id AND state <> 'final'"
        return db.execute(f"SELECT count(*) FROM requests JOIN runs ON uid = run_uid WHERE {waiting}").fetchone()[0]


def stalled(gateway: Gateway) -> httpx.Request:
    body = chat_body(stream=True, stub={"stall_after": 1})
    return gateway.http.build_request("POST", "/v1/chat/completions", json=body, headers=KEY)


# The data plane -----------------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1.5, 1e308, 2**31, 2**63, 2**64, 10**40])
    | st.text(max_size=20)
    | st.sampled_from(["stub-7b", "user", "\x00", "\u2028", "x" * 300, "%s", "true"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
few = st.integers(-3, 6) | st.sampled_from(["3", "x", None, 2.5, [], {}, True])
fields = {
    "model": st.sampled_from(["stub-7b", "stub-7b", "none", "", None]) | values,
    "messages": st.lists(st.fixed_dictionaries({"role": values, "content": values}), max_size=3) | values,
    "prompt": values,
    "input": values,
    "stream": st.booleans() | values,
    "stream_options": st.fixed_dictionaries({"include_usage": values}) | values,
    "metadata": st.dictionaries(st.sampled_from(["workflow_id", "workflow_name", "session_id"]), values) | values,
    "session_id": values,
    "usage": values,
    "tools": values,
    "n": few,
    "max_tokens": few,
    "max_completion_tokens": few,
    "max_output_tokens": few,
}
objects = st.fixed_dictionaries({"model": fields["model"]}, optional={k: v for k, v in fields.items() if k != "model"})


def deep(depth: int, closed: bool) -> bytes:
    return (
        b'{"model":"stub-7b","stream":true,"prompt":'
        + b'[{"a":' * depth
        + (b"1" + b"}]" * depth + b"}" if closed else b"")
    )


def cut(parts: tuple[bytes, int]) -> bytes:
    body, at = parts
    return body[: at % (len(body) + 1)]


whole = objects.map(lambda body: json.dumps(body).encode())
bodies = (
    whole
    | whole
    | st.tuples(whole, st.integers(0, 10**6)).map(cut)
    | st.tuples(whole, st.integers(0, 10**6), st.binary(min_size=1, max_size=3)).map(lambda p: cut(p[:2]) + p[2] + p[0])
    | values.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=100)
    | st.builds(deep, st.sampled_from([10, 40, 200, 1000]), st.booleans())
    | st.just(b'{"model":"stub-7b","prompt":"' + b"x" * 30_000 + b'"}')
)
paths = st.sampled_from(
    (
        *["/v1/chat/completions"] * 4,
        *["/v1/completions"] * 2,
        *("/v1/responses", "/v1/embeddings", "/tokenize", "/v1/models", "/v1/models/stub-7b", "/v1/models/%00"),
        *("/v1/", "/v1//", "/v1/%2e%2e/metrics", "/v1/chat%2fcompletions"),
    )
) | st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: f"/v1/{text}")
names = st.sampled_from(
    (
        *(f"x-workflow-{field}" for field in ("id", "name", "step", "node", "parent", "final")),
        *("helicone-session-path", "baggage", "traceparent", "x-session-id", "x-energy-report", "x-request-id"),
        *("connection", "content-type", "accept", "accept-encoding", "expect", "cookie", "x-api-key", "te", "upgrade"),
    )
)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40) | (
    st.sampled_from(["1", "true", "a,b,,c", "x" * 201, "workflow.id=%00%ff", "../../x", "/", "'; DROP TABLE runs; --"])
)
headers = st.dictionaries(names, texts.map(str.strip), max_size=4)
keys = st.sampled_from([*[KEY] * 6, ADMIN, {}, {"authorization": "Bearer x"}, {"authorization": "\xff"}])
methods = st.sampled_from([*["POST"] * 12, "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
queries = st.sampled_from([""] * 6 + ["?a=b", "?%00=%ff", "?" + "x" * 3000, "?a=b#c", "?=&&="])


@LONG
@pytest.mark.usefixtures("nothing_is_held")
def test_any_request_to_the_data_plane(gateway: Gateway) -> None:
    statuses: set[int] = set()
    with httpx.Client(base_url=gateway.url, timeout=30) as client:

        @fuzz(0.8)
        @given(method=methods, path=paths, query=queries, headers=headers, key=keys, body=bodies)
        def send(method: str, path: str, query: str, headers: dict[str, str], key: dict[str, str], body: bytes) -> None:
            sent = [(name.encode(), text.encode("latin-1")) for name, text in {**headers, **key}.items()]
            try:
                reply = client.request(method, f"{path}{query}", headers=sent, content=body)
            except (httpx.InvalidURL, httpx.LocalProtocolError):
                return  # httpx does not send it
            statuses.add(reply.status_code)
            assert reply.status_code < 500 or is_the_stubs(reply), reply.text
            assert reply.status_code < 400 or is_the_stubs(reply) or says_why(reply, method), reply.text

        send()
    assert statuses >= {200, 400, 401, 404}


def is_the_stubs(reply: httpx.Response) -> bool:
    """The stub is no better than its code: what it stumbles over, aiohttp answers in its own words."""
    return reply.text.startswith(("500 Internal Server Error", "400: Bad Request", "400 Bad Request"))


def says_why(reply: httpx.Response, method: str) -> bool:
    return method == "HEAD" or bool(reply.json()["error"]["message"])


# Bytes that are hardly HTTP -----------------------------------------------------------------------------------------

starts = st.sampled_from(
    [
        b"POST /v1/chat/completions HTTP/1.1\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer sk-acme\r\n",
        b"GET /v1/models HTTP/1.0\r\n",
        b"GET /energy/runs HTTP/9.9\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://elsewhere/v1/models HTTP/1.1\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"GET /v1/\xff\xfe HTTP/1.1\r\n",
        b"GET * HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"",
    ]
)
lines = st.lists(
    st.sampled_from(
        [
            b"host: x\r\n",
            b"content-length: 10\r\n",
            b"content-length: -1\r\n",
            b"content-length: 99999999999999999999\r\n",
            b"content-length: 2\r\ncontent-length: 3\r\n",
            b"transfer-encoding: chunked\r\n",
            b"transfer-encoding: x, chunked\r\n",
            b"expect: 100-continue\r\n",
            b"connection: close, authorization\r\n",
            b"upgrade: websocket\r\nconnection: upgrade\r\n",
            b"upgrade: h2c\r\nconnection: upgrade\r\n",
            b" folded\r\n",
            b"no colon\r\n",
            b"a\x00b: c\r\n",
            b"x-workflow-id: \xff\x80\r\n",
            b"x: " + b"y" * 40_000 + b"\r\n",
        ]
    ),
    max_size=4,
).map(b"".join)
ends = st.sampled_from([b"\r\n", b"\r\n", b"\n", b""])
rests = bodies | st.sampled_from(
    [b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"-5\r\n", b"2;x=y\r\n{}\r\n0\r\na: b\r\n\r\n", b"{}"]
)


@LONG
@pytest.mark.usefixtures("nothing_is_held")
def test_any_bytes_at_all(gateway: Gateway) -> None:
    parts = urlsplit(gateway.url)

    @fuzz(0.2)
    @given(start=starts, lines=lines, end=ends, rest=rests, reads=st.booleans())
    def send(start: bytes, lines: bytes, end: bytes, rest: bytes, reads: bool) -> None:
        answer = b""
        address = (parts.hostname or "", parts.port or 0)
        # It may be refused before all of it was sent.
        with suppress(ConnectionError), socket.create_connection(address, timeout=20) as sock:
            sock.sendall(start + lines + end + rest)
            if reads:
                with suppress(OSError):  # it may be gone already
                    sock.shutdown(socket.SHUT_WR)
                while data := sock.recv(65536):
                    answer += data
        status = answer[9:12]
        assert not status.startswith(b"5") or b"Server got itself in trouble" in answer, answer

    send()


# The control API ----------------------------------------------------------------------------------------------------


@LONG
@pytest.mark.usefixtures("nothing_is_held")
def test_the_control_api_against_its_own_description(gateway: Gateway) -> None:
    """Every path of openapi.json, with values that fit it and values that do not."""
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json", headers=ADMIN)
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert {operation.path for operation in operations} >= {"/energy/runs", "/energy/runs/{run_id}/close", "/metrics"}
    for operation in operations:

        @fuzz(0.2 / len(operations))
        @given(case=operation.as_strategy() | negative(operation), key=st.sampled_from([ADMIN, ADMIN, KEY, {}]))
        def send(case: Any, key: dict[str, str]) -> None:
            reply = case.call(headers=key)
            case.validate_response(reply, checks=[not_a_server_error])
            assert reply.status_code < 400 or reply.json()["error"]["message"]

        send()


def negative(operation: Any) -> st.SearchStrategy[Any]:
    mode = schemathesis.GenerationMode.NEGATIVE
    return operation.as_strategy(generation_mode=mode)
