"""A small gateway on a real socket: answers chat completions, keeps what it was sent, and reports on its runs."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


@dataclass(frozen=True)
class Call:
    """One chat completion as it came in: its prompt and its headers, names in lower case."""

    prompt: str
    headers: dict[str, str]

    @property
    def tags(self) -> dict[str, str]:
        prefix = "x-workflow-"
        return {name.removeprefix(prefix): value for name, value in self.headers.items() if name.startswith(prefix)}


@dataclass
class StubGateway:
    """What it was sent, and the knobs of a test. A call costs as many joules as its prompt has characters."""

    url: str
    key: str | None = None
    redirect_to: str | None = None
    unsettled_polls: int = 0
    behind_polls: int = 0
    garbage: bool = False
    unmetered: bool = False
    dag: dict[str, Any] | None = None
    calls: list[Call] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    polls: list[int] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def tags(self, prompt: str) -> dict[str, str]:
        """The tags of the one call that had this prompt."""
        (call,) = [call for call in self.calls if call.prompt == prompt]
        return call.tags

    def report(self, run: str) -> dict[str, Any] | None:
        calls = [call for call in self.calls if call.tags.get("id") == run]
        if not calls:
            return None
        requests, by_step = [], {}
        for number, call in enumerate(calls):
            step, joules = call.tags.get("step", "unnamed"), float(len(call.prompt))
            energy = {"joules": joules, "joules_low": 0.9 * joules, "joules_high": 1.1 * joules}
            tokens = {"prompt_tokens": 7, "cached_tokens": 2, "output_tokens": 3}
            request = {
                "id": f"req-{number}",
                "step": step,
                "node": call.tags.get("node"),
                "engine": "e1",
                "parents": [],
            }
            requests.append({**request, **energy, **tokens, "quality": "estimated", "outcome": "ok", "attempts": 1})
            share = by_step.setdefault(step, {"requests": 0, "joules": 0.0, "output_tokens": 0})
            by_step[step] = {
                "requests": share["requests"] + 1,
                "joules": share["joules"] + joules,
                "output_tokens": share["output_tokens"] + 3,
            }
        total = sum(request["joules"] for request in requests)
        report: dict[str, Any] = {
            "run": run,
            "tenant": "default",
            "workflow": calls[0].tags["name"],
            "segment": 1,
            "state": "final" if run in self.closed else "open",
            "settled": True,
            "duration_s": 0.5,
            "joules": total,
            "joules_low": 0.9 * total,
            "joules_high": 1.1 * total,
            "quality": "estimated",
            "open_joules": 0.0,
            "requests": requests,
            "by_step": by_step,
            "dag": self.dag,
        }
        if self.unmetered:
            unknown: dict[str, Any] = dict.fromkeys(("joules", "joules_low", "joules_high", "quality"))
            for figures in (report, *requests):
                figures.update(unknown)
            for share in by_step.values():
                share["joules"] = None
        return report


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gateway: StubGateway

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if path.endswith("/close"):
            self.gateway.closed.append(unquote(path.split("/")[3]))
            return self._json(200, {})
        if self.gateway.redirect_to:
            return self._json(307, {}, Location=self.gateway.redirect_to + self.path)
        request = json.loads(body)
        prompt = request["messages"][-1]["content"]
        self.gateway.calls.append(Call(prompt, {name.lower(): value for name, value in self.headers.items()}))
        shared = {"id": "c1", "created": 1, "model": request["model"]}
        if not request.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": prompt}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            return self._json(200, {**shared, "object": "chat.completion", "choices": [choice], "usage": usage})
        choices = [{"index": 0, "delta": {"role": "assistant", "content": part}} for part in prompt.split()]
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        frames = [{**shared, "object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
        text = "".join(f"data: {frame}\n\n" for frame in [*map(json.dumps, frames), "[DONE]"])
        return self._reply(200, text.encode(), {"Content-Type": "text/event-stream"})

    def do_GET(self) -> None:
        gateway, parts = self.gateway, urlsplit(self.path)
        if gateway.key and self.headers.get("Authorization") != f"Bearer {gateway.key}":
            return self._json(401, {"error": {"message": "no such key"}})
        gateway.polls.append(int(parse_qs(parts.query)["wait"][0]))
        report = gateway.report(unquote(parts.path.rsplit("/", 1)[1]))
        if report is None or not parts.path.startswith("/energy/runs/"):
            return self._json(404, {"error": {"message": "no such run"}})
        if len(gateway.polls) <= gateway.behind_polls:
            return self._json(503, {"error": {"message": "the ledger is behind"}})
        report["settled"] = len(gateway.polls) > gateway.unsettled_polls
        return self._json(200, {"hello": 1} if gateway.garbage else report)

    def _json(self, status: int, body: dict[str, Any], **headers: str) -> None:
        self._reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[StubGateway]:
    handler = type("BoundHandler", (Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.gateway = StubGateway(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield handler.gateway
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubGateway]:
    """The gateway that JOULEGATE_URL names."""
    with serving() as stub:
        monkeypatch.setenv("JOULEGATE_URL", stub.url)
        monkeypatch.delenv("JOULEGATE_KEY", raising=False)
        yield stub


@pytest.fixture
def other_host() -> Iterator[StubGateway]:
    """An OpenAI endpoint that is not the gateway."""
    with ExitStack() as stack:
        yield stack.enter_context(serving())
