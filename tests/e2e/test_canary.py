"""What people say to a model is nobody's business: marked words pass through the gateway and are looked for after."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from stage import Engine, Gateway, chat_body, until

STREAM = {"stream": True, "max_tokens": 3}
ENDS = {
    "whole": ({"max_tokens": 3}, 200),
    "stream": (STREAM, 200),
    "with energy": ({**STREAM, "energy": True}, 200),
    "refused": ({"stub": {"refuse": 400}}, 400),
    "failed": ({"stub": {"refuse": 500}}, 500),
    "refused in its stream": ({**STREAM, "stub": {"refuse_in_stream": 400}}, 200),
    "died": ({"stub": {"die_at_once": True}}, 502),
    "died midway": ({**STREAM, "stub": {"die_after": 1}}, 200),
    "unknown model": ({"model": "none"}, 404),
    "bad model": ({"model": 7}, 400),
}


@pytest.fixture
def gateway(make_gateway: Callable[..., Gateway], make_engine: Callable[..., Engine], tmp_path: Path) -> Gateway:
    """One that tells everything it has to tell: two engines to retry on, and the log as loud as it gets."""
    engines = []
    for name in ("e1", "e2"):
        engine = make_engine("stub-7b")
        engine.script(echo=True)
        engines.append({"name": name, "kind": "vllm", "url": engine.url})
    config = {"engines": engines, "energy": {"record": "trace.jsonl"}}
    return make_gateway(config, flags=("--verbose",))


def marked(canary: Callable[[str], str], **more: Any) -> dict[str, Any]:
    """A request with a word of its own in every place where content may be."""
    body = chat_body(content=canary("user"))
    body["messages"].insert(0, {"role": "system", "content": canary("system")})
    body["messages"].append({"role": "user", "content": [{"type": "image_url", "image_url": {"url": canary("image")}}]})
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": canary("arguments")}}
    body["messages"].append({"role": "assistant", "tool_calls": [call], "content": ""})
    body["messages"].append({"role": "tool", "tool_call_id": "c", "content": canary("tool")})
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"title": canary("schema")}}}
    return {**body, "stop": canary("stop"), "user": canary("end_user"), "response_format": schema, **more}


def test_content_leaves_no_trace(gateway: Gateway) -> None:
    mark = uuid4().hex

    def canary(place: str) -> str:
        return f"{place}-{mark}"

    headers = {
        "authorization": f"Bearer {canary('key')}",
        "user-agent": canary("agent"),
        "x-else": canary("header"),
        "x-workflow-id": "the-run",
    }
    path = f"/v1/chat/completions?q={canary('query')}"
    for body, status in ENDS.values():
        asked = {**headers, **({"x-energy-report": "1"} if "energy" in body else {})}
        reply = gateway.http.post(path, json=marked(canary, **body), headers=asked)
        assert reply.status_code == status, reply.text
    assert mark in gateway.http.post(path, json=marked(canary, **STREAM), headers=headers).text, "it does echo"
    for broken in (b'{"a": "%s"', b'["%s"]', b'{"model": "%s\x00"}', b'{"model": "stub-7b", "prompt": "%s\\ud800"}'):
        reply = gateway.http.post("/v1/completions", content=broken % mark.encode(), headers=headers)
        assert reply.status_code == 400 and mark not in reply.text
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nbad header %s\r\n\r\n" % mark.encode())
        assert b" 400 " in sock.recv(65536)
    leave_midway(gateway, json.dumps(marked(canary, stream=True, response_format=None, stub={"stall_after": 1})))
    run = until(lambda: found if (found := gateway.run("the-run"))["settled"] else None)
    assert {one["outcome"] for one in run["requests"]} >= {"ok", "error", "failed", "refused"}
    assert until(lambda: gateway.metric("joulegate_requests_total", outcome="cancelled"))
    public = [
        *(json.dumps(gateway.get(f"/energy/{what}")) for what in ("workflows", "runs", "runs/the-run", "engines")),
        *(gateway.http.get("/metrics", headers={"accept": f"{kind}"}).text for kind in ("*/*", OPENMETRICS)),
        json.dumps(gateway.ledger()),
    ]
    assert not [text for text in public if mark in text]
    gateway.stop()
    kept = [file for file in gateway.folder.rglob("*") if file.is_file()]
    assert {file.name for file in kept} >= {"ledger.sqlite", "err.txt", "out.txt", "trace.jsonl"}
    assert '"kind":"request"' in (gateway.folder / "trace.jsonl").read_text()
    assert not [file for file in kept if mark.encode() in file.read_bytes()]


OPENMETRICS = "application/openmetrics-text"


def leave_midway(gateway: Gateway, body: str) -> None:
    with gateway.http.stream("POST", "/v1/chat/completions", content=body) as reply:
        assert reply.status_code == 200, reply.read()
        next(reply.iter_bytes())


@pytest.mark.scripted
def test_a_fault_of_our_own_is_logged_without_what_it_stumbled_over(tmp_path: Path) -> None:
    """The last resort: whatever an exception says, only its kind and place are written down."""
    mark = uuid4().hex
    done = joulegate_with_a_fault(mark, tmp_path)
    assert "ValueError" in done and "Traceback" in done and "failed inside the gateway" in done
    assert mark not in done


def joulegate_with_a_fault(mark: str, tmp_path: Path) -> str:
    import asyncio
    import io
    import logging
    from typing import cast

    from proxy.config import parse
    from proxy.forward import Forward
    from proxy.keys import Keys
    from proxy.route import Router

    class Faulty(Router):
        def candidates(self, model: str | None, now: float = 0.0, trait: Any = ()) -> Any:
            raise ValueError(f"no {mark}")

    config = parse({"engines": [{"name": "e1", "kind": "openai", "url": "http://127.0.0.1:9"}]})
    forward = Forward(config, Faulty([], {}), Keys([]), *cast(Any, (None,) * 4))
    scope = {"type": "http", "method": "POST", "path": "/tokenize", "headers": [], "query_string": b""}
    inbox = [{"type": "http.request", "body": json.dumps({"prompt": mark}).encode()}]
    sent: list[Any] = []

    async def receive() -> Any:
        return inbox.pop() if inbox else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("joulegate.forward")
    log.addHandler(handler)
    try:
        asyncio.run(forward(scope, receive, send))
    finally:
        log.removeHandler(handler)
    assert sent[0]["status"] == 500 and mark.encode() not in sent[1]["body"]
    return stream.getvalue()
