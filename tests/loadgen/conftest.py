"""A tiny OpenAI-like server, so that real Locust has something real to talk to."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
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
    """Answers each call with `answer of <node>`; a step in `refused` gets a 500, one in `broken` half a stream.

    With `books` it keeps them as a gateway does: a joule a request, settled when they are asked for the second time.
    """

    models: list[str] = field(default_factory=lambda: ["first-model", "second-model"])
    delay_s: float = 0.0
    refused: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    books: bool = False
    tokenizes: bool = True
    detokenizes: bool = True
    asked: list[str] = field(default_factory=list)
    two_runs: asyncio.Event = field(default_factory=asyncio.Event)  # have come
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
        if len(self.runs()) == 2:
            self.two_runs.set()
        await asyncio.sleep(self.delay_s)
        step = request.headers["X-Workflow-Step"]
        if step in self.refused:
            return web.json_response({"error": {"message": "the stub refuses", "type": "server_error"}}, status=500)
        words = ["answer ", "of ", node]
        prompt = body.get("prompt") or " ".join(message["content"] for message in body["messages"]).split()
        details = {"cached_tokens": len(prompt) // 2}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 3, "prompt_tokens_details": details}
        if not body["stream"]:
            answered.add(node)
            choices = [{"message": {"role": "assistant", "content": "".join(words)}}]
            return web.json_response({"choices": choices, "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b": a comment\n\n" + _event({"choices": [{"delta": {"role": "assistant"}}]}))
        for word in words:
            choice = {"text": word} if "prompt" in body else {"delta": {"content": word}}
            await response.write(_event({"choices": [choice]}))
            if step in self.broken:
                assert request.transport is not None
                request.transport.close()
                return response
        await response.write(_event({"choices": [], "usage": usage}))
        answered.add(node)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def tokenize(self, request: web.Request) -> web.Response:
        """A token a word."""
        if not self.tokenizes:
            return web.json_response({"error": {"message": "no tokenizer"}}, status=404)
        text = (await request.json())["prompt"]
        return web.json_response({"tokens": [len(word) for word in text.split()]})

    async def detokenize(self, request: web.Request) -> web.Response:
        if not self.detokenizes:
            return web.json_response({"error": {"message": "no tokenizer"}}, status=404)
        ids = (await request.json())["tokens"]
        return web.json_response({"prompt": " ".join("x" * length for length in ids)})

    async def balance(self, _request: web.Request) -> web.Response:
        if not self.books:
            raise web.HTTPNotFound
        counter = {"counter_j": 100.0 + len(self.arrivals), "quality": "emulated"}
        return web.json_response({"h/gpu:0": counter, "h/cpu:0": counter})

    async def run(self, request: web.Request) -> web.Response:
        run = request.match_info["run"]
        self.asked.append(run)
        energy = {"joules": 1.0, "joules_low": 0.5, "joules_high": 2.0, "quality": "emulated", "active_joules": None}
        requests = [
            {"id": f"req-{arrival.node}", "node": arrival.node, "by_component": {"gpu": 1.0}, **energy}
            for arrival in self.runs()[run]
        ]
        return web.json_response({"settled": self.asked.count(run) > 1, "requests": requests})

    async def serve(self) -> TestServer:
        app = web.Application()
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.chat)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/detokenize", self.detokenize)
        app.router.add_get("/energy/balance", self.balance)
        app.router.add_get("/energy/runs/{run}", self.run)
        server = TestServer(app, host="127.0.0.1")
        await server.start_server()
        self.url = f"http://127.0.0.1:{server.port}"
        return server


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    stub = Stub()
    server = await stub.serve()
    yield stub
    await server.close()


@pytest.fixture
def served() -> Iterator[Stub]:
    """A stub in a thread of its own, for a driver that keeps this one."""
    stub, loop = Stub(), asyncio.new_event_loop()
    server = loop.run_until_complete(stub.serve())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield stub
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
