"""A tiny OpenAI-like server, so that real Locust has something real to talk to."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer


@dataclass
class Arrival:
    """A request as it came, and which nodes of its run had been answered by then."""

    headers: dict[str, str]
    body: dict[str, Any]
    answered: frozenset[str]

    @property
    def run(self) -> str:
        return self.headers["X-Workflow-Id"]

    @property
    def node(self) -> str:
        return self.headers["X-Workflow-Node"]


@dataclass
class Stub:
    """Answers each call with `answer of <node>`; a step in `refused` gets a 500, one in `broken` half a stream."""

    models: list[str] = field(default_factory=lambda: ["first-model", "second-model"])
    delay_s: float = 0.0
    refused: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    arrivals: list[Arrival] = field(default_factory=list)
    answered: dict[str, set[str]] = field(default_factory=dict)
    url: str = ""

    def runs(self) -> dict[str, list[Arrival]]:
        runs: dict[str, list[Arrival]] = {}
        for arrival in self.arrivals:
            runs.setdefault(arrival.run, []).append(arrival)
        return runs

    async def list_models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": model} for model in self.models]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        run, node = request.headers["X-Workflow-Id"], request.headers["X-Workflow-Node"]
        answered = self.answered.setdefault(run, set())
        body = await request.json()
        self.arrivals.append(Arrival(dict(request.headers), body, frozenset(answered)))
        await asyncio.sleep(self.delay_s)
        step = request.headers["X-Workflow-Step"]
        if step in self.refused:
            return web.json_response({"error": {"message": "the stub refuses", "type": "server_error"}}, status=500)
        words = ["answer ", "of ", node]
        if not body["stream"]:
            answered.add(node)
            return web.json_response({"choices": [{"message": {"role": "assistant", "content": "".join(words)}}]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b": a comment\n\n" + _event({"choices": [{"delta": {"role": "assistant"}}]}))
        for word in words:
            await response.write(_event({"choices": [{"delta": {"content": word}}]}))
            if step in self.broken:
                assert request.transport is not None
                request.transport.close()
                return response
        await response.write(_event({"choices": [], "usage": {"completion_tokens": 3}}))
        answered.add(node)
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    stub = Stub()
    app = web.Application()
    app.router.add_get("/v1/models", stub.list_models)
    app.router.add_post("/v1/chat/completions", stub.chat)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    stub.url = f"http://127.0.0.1:{server.port}"
    yield stub
    await server.close()
