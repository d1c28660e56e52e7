"""A Parrot as the gateway meets it: a ServeCore of our own, the real egress, and an engine behind that does as told."""

import asyncio
import importlib.util
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiohttp import web

from proxy.config import EngineConfig
from proxy.energy.work import Progress
from proxy.engines.openai import OpenAI
from proxy.engines.parrot import Parrot
from proxy.gate import Gate
from proxy.parrot.upstream import ParrotUpstream
from proxy.route import Lane
from proxy.upstream import Upstream

KEY = "0123456789abcdef0123"


def _load_fake() -> Any:
    path = Path(__file__).parents[2] / "parrot" / "fake_core.py"
    spec = importlib.util.spec_from_file_location("joulegate_tests_fake_core", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # a dataclass looks for its own there
    spec.loader.exec_module(module)
    return module


FAKE = _load_fake()


@dataclass
class Behind:
    """An engine that answers `You said: ...`; `status` and `error` make it refuse, `hold` makes it wait."""

    url: str = ""
    status: int = 200
    error: str = "no"
    break_off: bool = False
    says: str = "content"  # under which name a chat's stream has its words
    hold: asyncio.Event | None = None
    seen: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # somebody went while it worked

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(({name.lower(): value for name, value in request.headers.items()}, body))
        self.came.set()
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        if self.status != 200:
            error = {"error": {"message": self.error, "type": "t", "param": None, "code": self.status}}
            return web.json_response(error, status=self.status)
        text = "You said: " + str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        usage |= {"prompt_tokens_details": {"cached_tokens": 2}}
        chat = request.path.endswith("chat/completions")
        envelope: dict[str, Any] = {"id": "c1", "object": "x", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            part: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choice = {"index": 0, "finish_reason": "stop", **part}
            return web.json_response(envelope | {"choices": [choice], "usage": usage, "mine": 1})
        reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await reply.prepare(request)
        for n, word in enumerate(words := text.split(" ")):
            piece = word if n == 0 else f" {word}"
            part = {"delta": {self.says: piece}} if chat else {"text": piece}
            choice = {"index": 0, "finish_reason": None, **part}
            await reply.write(b"data: " + orjson.dumps(envelope | {"choices": [choice]}) + b"\n\n")
            if self.break_off and n == len(words) // 2:
                assert request.transport
                request.transport.abort()
                return reply
        end = {"delta": {}} if chat else {"text": ""}
        last = envelope | {"choices": [{"index": 0, "finish_reason": "length", **end}]}
        for frame in (last, envelope | {"choices": [], "usage": usage}):
            await reply.write(b"data: " + orjson.dumps(frame) + b"\n\n")
        await reply.write(b"data: [DONE]\n\n")
        return reply


@dataclass
class World:
    """Everything that a test needs; `ask` sends what the data plane would."""

    core: Any
    behind: Behind
    engine: Parrot
    lane: Lane
    upstream: ParrotUpstream
    egress: str
    started: list[Progress]

    def run(self, uid: str = "r1") -> Any:
        return SimpleNamespace(uid=uid, state="open")

    def progress(self, stream: bool = False) -> Progress:
        return Progress("req_1", 1, "e1", 1.0, 10, stream)

    async def ask(
        self,
        path: str = "/v1/chat/completions",
        run: Any = None,
        progress: Progress | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
        **body: Any,
    ) -> Any:
        """The reply, with its body as `content` (parsed where it is JSON)."""
        body = {"model": "parrot/m", **body}
        if path == "/v1/chat/completions":
            body.setdefault("messages", [{"role": "user", "content": "hello"}])
        receipt = SimpleNamespace(run=run or self.run())
        bound = self.upstream.bind(receipt, progress)  # type: ignore[arg-type]
        reply: Any = await bound.send(b"POST", path.encode(), headers or [], orjson.dumps(body))
        content = await reply.rest()
        parsed = orjson.loads(content) if content.startswith(b"{") else content
        return SimpleNamespace(status=reply.status, headers=dict(reply.headers), content=parsed, reply=reply)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


MakeWorld = Callable[..., Any]


@pytest.fixture
async def make_world() -> AsyncIterator[MakeWorld]:
    """`make_world(builtin=False, models=())`."""
    runners: list[web.AppRunner] = []
    worlds: list[World] = []

    async def make(builtin: bool = False, models: tuple[str, ...] = ()) -> World:
        behind = Behind()
        app = web.Application()
        app.router.add_post("/{tail:.*}", behind.serve)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        behind.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        port = free_port()
        egress = f"http://127.0.0.1:{port}/v1"
        core = FAKE.FakeCore() if builtin else FAKE.FakeCore(egress, KEY)
        url = await core.start()
        given: Any = {} if builtin else {"egress": {"engine": "e1", "port": port, "key": KEY}}
        engine = Parrot(EngineConfig(name="parrot", kind="parrot", url=url, models=models, **given))
        real = OpenAI(EngineConfig(name="e1", kind="vllm", url=behind.url, api_key="engines-own"))
        lane = Lane(real, Upstream(behind.url, 5.0), Gate(10), {"m": {"id": "m", "object": "model"}}, up=True)
        await engine.start()
        started: list[Progress] = []
        upstream = engine.take_over(Upstream(url, 5.0), [lane], started.append)
        worlds.append(World(core, behind, engine, lane, upstream, egress, started))
        return worlds[-1]

    yield make
    for world in worlds:
        world.upstream.close()
        await world.engine.stop()
        world.lane.upstream.close()
        await world.core.stop()
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    return await make_world()
