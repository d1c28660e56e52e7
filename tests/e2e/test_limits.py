"""What is too large, too deep, too slow, or has a name that is no good."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from nameless_engine import NamelessEngine
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from stage import Engine, Gateway, chat_body, until


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def connected(gateway: Gateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def raw(gateway: Gateway, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back for these bytes until the gateway ends the connection."""
    answer = b""
    with connected(gateway) as sock:
        for part in parts:
            sock.sendall(part)
            time.sleep(pause_s)
        while data := sock.recv(65536):
            answer += data
    return answer


def sent_until_refused(gateway: Gateway, begin: bytes, more: bytes) -> int:
    """How many bytes the gateway took before it ended the connection; an endless sender would send 64 MiB."""
    sent = 0
    with connected(gateway) as sock:
        try:
            sock.sendall(begin)
            while sent < 64 * 2**20:
                sock.sendall(more)
                sent += len(more)
        except ConnectionError:
            pass
    return sent


def test_headers_that_are_too_large(gateway: Gateway) -> None:
    for headers in ({"x-long": "x" * 40_000}, {f"x-{n}": "" for n in range(1000)}):
        for path in ("/v1/models", "/energy/runs", "/healthz"):
            assert code(gateway.http.get(path, headers=headers)) == (431, "headers_too_large")
    assert gateway.http.get("/healthz", headers={"x-long": "x" * 8000}).status_code == 200
    assert code(gateway.http.get("/energy/runs", params={"workflow": "x" * 40_000})) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /healthz HTTP/1.1\r\nx-endless: ",
        b"GET /",
        b"GET /healthz HTTP/1.1\r\na: b\r\n",
        b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-t: ",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2;",
    ],
    ids=["a header", "a path", "headers", "nothing", "a trailer", "a chunk's extension"],
)
def test_what_has_no_end_is_ended(gateway: Gateway, begin: bytes) -> None:
    more = {b"\r\n": b"\r\n"}.get(begin, b"a: b\r\n" if b"a: b" in begin else b"x") * 4000
    assert sent_until_refused(gateway, begin, more) < 16 * 2**20, "less than the buffers between us hold"
    assert gateway.http.get("/healthz").status_code == 200


def test_an_endless_head_is_told_why(gateway: Gateway) -> None:
    answer = raw(gateway, b"GET /healthz HTTP/1.1\r\nx: " + b"x" * 20_000, b"x" * 20_000, pause_s=0.2)
    assert answer.startswith(b"HTTP/1.1 431 ") and b'"headers_too_large"' in answer


def test_a_head_that_takes_too_long(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
    gateway = make_gateway({"engines": engines, "limits": {"header_seconds": 0.3}})
    assert raw(gateway, b"GET /healthz HT").startswith(b"HTTP/1.1 408 ")
    assert raw(gateway) == b"", "a connection that was made in advance is closed without a word"
    answer = raw(gateway, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /", pause_s=0.1)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in answer
    slow_body = chat_body(stream=True, max_tokens=200)
    assert gateway.http.post("/v1/chat/completions", json=slow_body).text.endswith("data: [DONE]\n\n")


@pytest.mark.scripted
@pytest.mark.parametrize("stream", [True, False])
def test_json_that_is_nested_too_deep(gateway: Gateway, stream: bool) -> None:
    for depth, status in ((62, 200), (63, 400), (300, 400), (1100, 400)):
        deep = json.loads("[" * depth + "]" * depth) if depth < 500 else None
        text = json.dumps(chat_body(stream=stream, max_tokens=1, metadata={"deep": "@"}))
        body = text.replace('"@"', "[" * depth + "]" * depth)
        assert deep is None or json.loads(body)["metadata"]["deep"] == deep
        assert gateway.http.post("/v1/chat/completions", content=body).status_code == status


def test_an_upgrade_writes_no_log(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway({"engines": [{"name": "e1", "kind": "openai", "url": engine.url}]})
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "a", "sec-websocket-version": "13"}
    for path in ("/v1/models", "/healthz"):
        assert gateway.http.get(path, headers=upgrade).status_code == 200
    assert "pgrade" not in gateway.log()


# Names that are no good ---------------------------------------------------------------------------------------------

HOSTILE = [
    'quote" and \\ backslash',
    "'; DROP TABLE runs; --",
    '"} 1\njoulegate_forged_total{x="y',
    "line\r\nbreak: header",
    "\x1b[31mred\x1b[0m",
    "nul\x00nul",
    "\u2028\u202e\u0085",
    "{{7*7}}${jndi:ldap://x}%s%n",
    "[bold red]markup[/]",
    "../../etc/passwd",
    "x" * 200,
    "émoji 🔥",
]


def test_hostile_names_are_data_everywhere(make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """An engine that names no models takes every model's name; runs, workflows and steps come as headers and bodies."""
    with NamelessEngine() as url:
        gateway = make_gateway({"engines": [{"name": "e1", "kind": "openai", "url": url}]})
        seen = 0
        for name in HOSTILE:
            identity = {"workflow_id": name, "workflow_name": name, "workflow_step": name}
            replies = [gateway.chat(model=name), gateway.chat(metadata=identity)]
            if name.isascii() and name.isprintable():
                own = {f"x-workflow-{field}": name for field in ("id", "name", "step", "node", "parent")}
                replies.append(gateway.chat(own))
            assert [reply.status_code for reply in replies[:2]] == [200 if name.isprintable() else 400, 200], name
            assert {reply.status_code for reply in replies[2:]} <= {200}, name
            seen += sum(reply.status_code == 200 for reply in replies)
        ledger = until(lambda: gateway.ledger() if settled(gateway) == seen else None)
        for accept in ("text/plain", "application/openmetrics-text"):
            parse = openmetrics.text_string_to_metric_families if "open" in accept else text_string_to_metric_families
            families = list(parse(gateway.http.get("/metrics", headers={"accept": accept}).text))
            assert len(families) > 20 and not [family.name for family in families if "forged" in family.name]
        assert {'quote" and \\ backslash', "'; DROP TABLE runs; --"} <= {one["workflow"] for one in ledger["workflows"]}
        for name in HOSTILE:
            if name.isascii() and name.isprintable():
                found = gateway.http.get("/energy/runs", params={"workflow": name}).json()["runs"]
                assert {run["workflow"] for run in found} == {name}
        log = gateway.log() + gateway.said()
        assert not [name for name in HOSTILE if name in log]
        assert not any(mark in log for mark in ("\x1b[31m", "\x00", "forged"))


def settled(gateway: Gateway) -> int:
    return sum(flow["requests"] for flow in gateway.get("/energy/workflows")["workflows"])
