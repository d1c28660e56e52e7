"""An engine that computes nothing: it speaks OpenAI HTTP and vLLM's metrics, fails when told to, and keeps a log.

`python stub_engine.py MODEL STEP_MS [PORT]` prints its port. One step gives every request in its batch one token, as in
a real engine. How a request is served can be scripted: for all with `POST /stub`, for one with `stub` in its body.
"""

import asyncio
import base64
import json
import struct
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

from aiohttp import web

WORD = "joule "


@dataclass(frozen=True)
class Script:
    """How requests are served. A null is: not at all."""

    refuse: int | None = None  # answer with this status
    refuse_in_stream: int | None = None  # 200, and an error object with this code as the first frame
    silent: bool = False  # take the request and never say anything
    die_at_once: bool = False  # close the socket instead of an answer
    die_after: int | None = None  # close the socket after so many tokens
    stall_after: int | None = None  # go quiet after so many tokens
    usage: bool = True
    cached: int = 0  # prompt tokens said to have been cached
    echo: bool = False  # every token, and every refusal, repeats the whole request


@dataclass
class Served:
    """One request as it arrived, and what became of it. Times are Unix seconds."""

    path: str
    headers: dict[str, str]
    body: Any
    began: float
    ended: float | None = None
    end: str = "open"  # then "done", "refused", "died" or "closed" (the client left)
    tokens: int = 0


@dataclass
class Engine:
    model: str
    step_s: float
    script: dict[str, Any] = field(default_factory=dict)
    log: list[Served] = field(default_factory=list)
    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    running: int = 0  # requests in the batch
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def step_forever(self) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            if self.running:
                self.steps += 1
                self.moved.set()
                self.moved = asyncio.Event()

    async def token(self, served: Served) -> str:
        await self.moved.wait()
        self.output_tokens += 1
        served.tokens += 1
        return WORD

    def metrics(self) -> str:
        label = f'{{model_name="{self.model}"}}'
        figures = {
            "vllm:iteration_tokens_total_count": self.steps,
            "vllm:prompt_tokens_total": self.prompt_tokens,
            "vllm:generation_tokens_total": self.output_tokens,
            "vllm:num_requests_running": self.running,
            "vllm:num_requests_waiting": 0,
        }
        return "".join(f"{name}{label} {value}\n" for name, value in figures.items())


class Died(Exception):
    """The script says that the engine breaks off here."""


class Answer:
    """One request being served; a kind of endpoint says in which words."""

    def __init__(self, engine: Engine, request: web.Request, served: Served) -> None:
        self.engine, self.request, self.served = engine, request, served
        self.body: dict[str, Any] = served.body
        self.script = Script(**{**engine.script, **self.body.get("stub", {})})
        asked = self.body.get("max_completion_tokens") or self.body.get("max_tokens")
        self.wanted = int(asked or self.body.get("max_output_tokens") or 8)
        self.prompt = prompt_tokens(self.body)

    async def serve(self) -> web.StreamResponse:
        if self.script.refuse:
            self.served.end = "refused"
            said = json.dumps(self.body) if self.script.echo else ""
            return web.json_response(error(self.script.refuse, said), status=self.script.refuse)
        if self.script.refuse_in_stream and self.body.get("stream"):
            return await self.refuse_in_stream(self.script.refuse_in_stream)
        self.engine.running += 1
        try:
            if self.script.die_at_once:
                raise Died
            if self.script.silent:
                await asyncio.Event().wait()
            self.engine.prompt_tokens += self.prompt
            if self.body.get("stream"):
                return await self.stream()
            text = "".join([text async for text in self.tokens()])
            self.served.end = "done"
            return web.json_response(self.whole(text), headers={"x-stub": "whole"})
        except Died:
            self.served.end = "died"
            assert self.request.transport
            self.request.transport.abort()
            return web.Response()
        finally:
            self.engine.running -= 1

    async def tokens(self) -> AsyncIterator[str]:
        for n in range(self.wanted):
            if n == self.script.die_after:
                raise Died
            if n == self.script.stall_after:
                await asyncio.Event().wait()
            word = await self.engine.token(self.served)
            yield json.dumps(self.body) if self.script.echo else word

    async def started(self) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", "x-stub": "stream"})
        await response.prepare(self.request)
        return response

    async def refuse_in_stream(self, code: int) -> web.StreamResponse:
        """In two pieces, as a network may deliver it."""
        frame = sse(error(code))
        response = await self.started()
        await response.write(frame[:15])
        await asyncio.sleep(0.05)
        await response.write(frame[15:])
        await response.write(b"data: [DONE]\n\n")
        self.served.end = "refused"
        return response

    async def stream(self) -> web.StreamResponse:
        response = await self.started()
        for frame in self.opening():
            await response.write(frame)
        async for text in self.tokens():
            await response.write(self.delta(text))
        self.served.end = "done"
        for frame in self.closing():
            await response.write(frame)
        return response

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.served.tokens,
            "total_tokens": self.prompt + self.served.tokens,
            "prompt_tokens_details": {"cached_tokens": self.script.cached},
        }

    @property
    def asked_usage(self) -> bool:
        return self.script.usage and bool((self.body.get("stream_options") or {}).get("include_usage"))

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": "stub-1", "object": kind, "created": 1, "model": self.body.get("model")}

    def whole(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self) -> list[bytes]:
        return []

    def delta(self, text: str) -> bytes:
        raise NotImplementedError

    def closing(self) -> list[bytes]:
        raise NotImplementedError


class Chat(Answer):
    def whole(self, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        reply = self.head("chat.completion")
        reply["choices"] = [{"index": 0, "message": message, "finish_reason": "length"}]
        return {**reply, "usage": self.usage} if self.script.usage else reply

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        chunk = self.head("chat.completion.chunk")
        chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return sse({**chunk, "usage": None} if self.asked_usage else chunk)

    def opening(self) -> list[bytes]:
        return [self.chunk({"role": "assistant", "content": ""})]

    def delta(self, text: str) -> bytes:
        return self.chunk({"content": text})

    def closing(self) -> list[bytes]:
        usage = [sse({**self.head("chat.completion.chunk"), "choices": [], "usage": self.usage})]
        return [self.chunk({}, "length"), *(usage if self.asked_usage else []), b"data: [DONE]\n\n"]


class Completion(Answer):
    def whole(self, text: str) -> dict[str, Any]:
        reply = self.head("text_completion")
        reply["choices"] = [{"index": 0, "text": text, "finish_reason": "length"}]
        return {**reply, "usage": self.usage}

    def delta(self, text: str) -> bytes:
        choice = {"index": 0, "text": text, "finish_reason": None}
        return sse({**self.head("text_completion"), "choices": [choice]})

    def closing(self) -> list[bytes]:
        usage = [sse({**self.head("text_completion"), "choices": [], "usage": self.usage})]
        return [*(usage if self.asked_usage else []), b"data: [DONE]\n\n"]


class Response(Answer):
    """The Responses API: named events, usage in the last one, no `[DONE]`."""

    def response(self, status: str, text: str) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {"id": "msg-1", "type": "message", "role": "assistant", "status": status, "content": [part]}
        usage = {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.script.cached},
            "output_tokens": self.served.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + self.served.tokens,
        }
        whole = {"id": "resp-1", "object": "response", "created_at": 1, "model": self.body.get("model")}
        settings = {"status": status, "parallel_tool_calls": False, "tool_choice": "auto", "tools": []}
        done = {"output": [message], "usage": usage} if status == "completed" else {"output": [], "usage": None}
        return {**whole, **settings, **done}

    def whole(self, text: str) -> dict[str, Any]:
        return self.response("completed", text)

    def event(self, kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\n".encode() + sse({"type": kind, "sequence_number": 0, **fields})

    def opening(self) -> list[bytes]:
        return [self.event("response.created", response=self.response("in_progress", ""))]

    def delta(self, text: str) -> bytes:
        place = {"item_id": "msg-1", "output_index": 0, "content_index": 0, "logprobs": []}
        return self.event("response.output_text.delta", delta=text, **place)

    def closing(self) -> list[bytes]:
        return [self.event("response.completed", response=self.response("completed", WORD * self.served.tokens))]


def sse(content: Any) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def error(code: int, said: str = "") -> dict[str, Any]:
    return {"error": {"message": f"the stub says {code}{said}", "type": "stub_error", "param": None, "code": code}}


def prompt_tokens(body: dict[str, Any]) -> int:
    """A word is a token."""
    prompt = body.get("prompt") or body.get("input") or [m["content"] for m in body.get("messages", ())]
    return len((prompt if isinstance(prompt, str) else " ".join(map(str, prompt))).split())


def embedding(body: dict[str, Any]) -> dict[str, Any]:
    numbers = (0.25, -0.5, 1.0)
    packed = base64.b64encode(struct.pack("<3f", *numbers)).decode()
    vector = packed if body.get("encoding_format") == "base64" else list(numbers)
    n = prompt_tokens(body)
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    usage = {"prompt_tokens": n, "total_tokens": n}
    return {"object": "list", "model": body.get("model"), "data": data, "usage": usage}


def application(engine: Engine) -> web.Application:
    answers = {"/v1/chat/completions": Chat, "/v1/completions": Completion, "/v1/responses": Response}

    async def inference(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        served = Served(request.path, {k.lower(): v for k, v in request.headers.items()}, body, time.time())
        engine.log.append(served)
        try:
            if request.path in answers:
                return await answers[request.path](engine, request, served).serve()
            served.end = "done"
            if request.path == "/v1/embeddings":
                return web.json_response(embedding(body))
            return web.json_response({"count": prompt_tokens(body), "tokens": list(range(prompt_tokens(body)))})
        except (asyncio.CancelledError, ConnectionError):
            served.end = "closed"
            raise
        finally:
            served.ended = time.time()

    async def models(_: web.Request) -> web.Response:
        entry = {"id": engine.model, "object": "model", "created": 1, "owned_by": "stub"}
        return web.json_response({"object": "list", "data": [entry]})

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=engine.metrics())

    async def write_script(request: web.Request) -> web.Response:
        engine.script = await request.json()
        Script(**engine.script)
        return web.Response()

    async def read_log(_: web.Request) -> web.Response:
        return web.json_response([asdict(served) for served in engine.log])

    async def begin(_: web.Application) -> None:
        stepping.append(asyncio.create_task(engine.step_forever()))

    stepping: list[asyncio.Task[None]] = []
    app = web.Application(client_max_size=2**26)
    app.on_startup.append(begin)
    for path in (*answers, "/v1/embeddings", "/tokenize"):
        app.router.add_post(path, inference)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/stub", write_script)
    app.router.add_get("/stub", read_log)
    return app


async def main(model: str, step_ms: float, port: int) -> None:
    app = application(Engine(model, step_ms / 1000))
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, max_field_size=2**16)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 0))
