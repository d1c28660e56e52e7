"""An engine that computes nothing: it speaks OpenAI HTTP and vLLM's metrics, fails when told to, and keeps a log.

`python stub_engine.py MODEL STEP_MS [PORT]` prints its port. One step gives every request in its batch one token, as in
a real engine. How a request is served can be scripted: for all with `POST /stub`, for one with `stub` in its body.
Offered tools, it calls every one of them; asked for JSON of a schema, it says some that fits.
"""

import asyncio
import base64
import json
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from aiohttp import web

WORD = "joule "
PIECE = 5  # characters of JSON in a token


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

    async def token(self, served: Served) -> None:
        await self.moved.wait()
        self.output_tokens += 1
        served.tokens += 1

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


class Call(NamedTuple):
    """A tool that is called, its arguments as JSON."""

    name: str
    arguments: str


class Token(NamedTuple):
    """One token of the answer, or of the arguments of its call number `item`; the first or last of them."""

    text: str
    item: int
    first: bool
    last: bool


class Answer:
    """One request being served; a kind of endpoint says in which words."""

    def __init__(self, engine: Engine, request: web.Request, served: Served) -> None:
        self.engine, self.request, self.served = engine, request, served
        self.body: dict[str, Any] = served.body
        self.script = Script(**{**engine.script, **self.body.get("stub", {})})
        asked = self.body.get("max_completion_tokens") or self.body.get("max_tokens")
        self.wanted = int(asked or self.body.get("max_output_tokens") or 8)
        self.prompt = prompt_tokens(self.body)
        self.calls = calls(self.body)
        self.json = structured(self.body)

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
            text = "".join([token.text async for token in self.tokens()])
            self.served.end = "done"
            return web.json_response(self.whole(text), headers={"x-stub": "whole"})
        except Died:
            self.served.end = "died"
            assert self.request.transport
            self.request.transport.abort()
            return web.Response()
        finally:
            self.engine.running -= 1

    async def tokens(self) -> AsyncIterator[Token]:
        for n, token in enumerate(self.said()):
            if n == self.script.die_after:
                raise Died
            if n == self.script.stall_after:
                await asyncio.Event().wait()
            await self.engine.token(self.served)
            yield token._replace(text=json.dumps(self.body)) if self.script.echo else token

    def said(self) -> Iterator[Token]:
        """What is to be said in all; calls and JSON are said to their end, whatever the length asked for."""
        whole = [call.arguments for call in self.calls] or ([self.json] if self.json else [])
        for item, text in enumerate(whole):
            for at in range(0, len(text), PIECE):
                yield Token(text[at : at + PIECE], item, at == 0, at + PIECE >= len(text))
        if not whole:
            for n in range(self.wanted):
                yield Token(WORD, 0, n == 0, n == self.wanted - 1)

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
        async for token in self.tokens():
            await response.write(self.delta(token))
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

    def delta(self, token: Token) -> bytes:
        raise NotImplementedError

    def closing(self) -> list[bytes]:
        raise NotImplementedError


class Chat(Answer):
    @property
    def finish(self) -> str:
        return "tool_calls" if self.calls else "stop" if self.json else "length"

    def whole(self, text: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.calls:
            called = [
                {"id": f"call-{n}", "type": "function", "function": c._asdict()} for n, c in enumerate(self.calls)
            ]
            message |= {"content": None, "tool_calls": called}
        reply = self.head("chat.completion")
        reply["choices"] = [{"index": 0, "message": message, "finish_reason": self.finish}]
        return {**reply, "usage": self.usage} if self.script.usage else reply

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        chunk = self.head("chat.completion.chunk")
        chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return sse({**chunk, "usage": None} if self.asked_usage else chunk)

    def opening(self) -> list[bytes]:
        return [self.chunk({"role": "assistant", "content": None if self.calls else ""})]

    def delta(self, token: Token) -> bytes:
        if not self.calls:
            return self.chunk({"content": token.text})
        call, begun = {"index": token.item, "function": {"arguments": token.text}}, b""
        if token.first:
            function = {"name": self.calls[token.item].name, "arguments": ""}
            begin = {"index": token.item, "id": f"call-{token.item}", "type": "function", "function": function}
            begun = self.chunk({"tool_calls": [begin]})
        return begun + self.chunk({"tool_calls": [call]})

    def closing(self) -> list[bytes]:
        usage = [sse({**self.head("chat.completion.chunk"), "choices": [], "usage": self.usage})]
        return [self.chunk({}, self.finish), *(usage if self.asked_usage else []), b"data: [DONE]\n\n"]


class Completion(Answer):
    def whole(self, text: str) -> dict[str, Any]:
        reply = self.head("text_completion")
        reply["choices"] = [{"index": 0, "text": text, "finish_reason": "length"}]
        return {**reply, "usage": self.usage}

    def delta(self, token: Token) -> bytes:
        choice = {"index": 0, "text": token.text, "finish_reason": None}
        return sse({**self.head("text_completion"), "choices": [choice]})

    def closing(self) -> list[bytes]:
        usage = [sse({**self.head("text_completion"), "choices": [], "usage": self.usage})]
        return [*(usage if self.asked_usage else []), b"data: [DONE]\n\n"]


class Response(Answer):
    """The Responses API: numbered events with names, usage in the last one, no `[DONE]`."""

    events = 0

    def items(self, status: str, text: str) -> list[dict[str, Any]]:
        if not self.calls:
            content = [self.part(text)] if status == "completed" else []
            return [{"id": "msg-0", "type": "message", "role": "assistant", "status": status, "content": content}]
        return [
            {"id": f"fc-{n}", "type": "function_call", "call_id": f"call-{n}", "status": status, **call._asdict()}
            for n, call in enumerate(self.calls)
        ]

    def part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def response(self, status: str, text: str) -> dict[str, Any]:
        usage = {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.script.cached},
            "output_tokens": self.served.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + self.served.tokens,
        }
        whole = {"id": "resp-1", "object": "response", "created_at": 1, "model": self.body.get("model")}
        settings = {"status": status, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        completed = {"output": self.items(status, text), "usage": usage}
        return {**whole, **settings, **(completed if status == "completed" else {"output": [], "usage": None})}

    def whole(self, text: str) -> dict[str, Any]:
        return self.response("completed", text)

    def event(self, kind: str, **fields: Any) -> bytes:
        self.events += 1
        return f"event: {kind}\n".encode() + sse({"type": kind, "sequence_number": self.events - 1, **fields})

    def opening(self) -> list[bytes]:
        response = self.response("in_progress", "")
        return [self.event(f"response.{what}", response=response) for what in ("created", "in_progress")]

    def delta(self, token: Token) -> bytes:
        """A token, within what is said before the first and after the last of an item."""
        n = token.item
        place: dict[str, Any] = {"item_id": f"fc-{n}" if self.calls else "msg-0", "output_index": n}
        frames: list[bytes] = []
        if token.first:
            item = self.items("in_progress", "")[n] | ({"arguments": ""} if self.calls else {})
            frames.append(self.event("response.output_item.added", output_index=n, item=item))
        if self.calls:
            frames.append(self.event("response.function_call_arguments.delta", delta=token.text, **place))
        else:
            place["content_index"] = 0
            if token.first:
                frames.append(self.event("response.content_part.added", part=self.part(""), **place))
            frames.append(self.event("response.output_text.delta", delta=token.text, logprobs=[], **place))
        text = "".join(said.text for said in self.said() if said.item == n) if token.last else ""
        if token.last and self.calls:
            name = self.calls[n].name
            frames.append(self.event("response.function_call_arguments.done", arguments=text, name=name, **place))
        elif token.last:
            frames.append(self.event("response.output_text.done", text=text, logprobs=[], **place))
            frames.append(self.event("response.content_part.done", part=self.part(text), **place))
        if token.last:
            item = self.items("completed", text)[n]
            frames.append(self.event("response.output_item.done", output_index=n, item=item))
        return b"".join(frames)

    def closing(self) -> list[bytes]:
        text = "".join(token.text for token in self.said())
        return [self.event("response.completed", response=self.response("completed", text))]


def sse(content: Any) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def error(code: int, said: str = "") -> dict[str, Any]:
    return {"error": {"message": f"the stub says {code}{said}", "type": "stub_error", "param": None, "code": code}}


def prompt_tokens(body: dict[str, Any]) -> int:
    """A word is a token."""
    prompt = body.get("prompt") or body.get("input") or [m.get("content") or "" for m in body.get("messages", ())]
    return len((prompt if isinstance(prompt, str) else " ".join(map(str, prompt))).split())


def calls(body: dict[str, Any]) -> list[Call]:
    """Every tool that is offered, or the one that is asked for; none after a tool's result."""
    said: Any = body.get("messages") or body.get("input")
    last = said[-1] if said and isinstance(said[-1], dict) else {}
    choice = body.get("tool_choice")
    if choice == "none" or last.get("role") == "tool" or last.get("type") == "function_call_output":
        return []
    functions = [tool.get("function", tool) for tool in body.get("tools") or ()]
    asked = choice.get("function", choice).get("name") if isinstance(choice, dict) else None
    return [
        Call(function["name"], json.dumps(fitting(function.get("parameters", {}))))
        for function in functions
        if asked in (None, function["name"])
    ]


def structured(body: dict[str, Any]) -> str | None:
    """JSON of the schema that the answer must have, None when it need not have one."""
    form = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    if form.get("type") != "json_schema":
        return None
    return json.dumps(fitting(form.get("json_schema", form)["schema"]))


def fitting(schema: dict[str, Any], defined: dict[str, Any] | None = None) -> Any:
    """A value that a JSON schema allows."""
    among = schema.get("$defs", {}) if defined is None else defined
    if "$ref" in schema:
        return fitting(among[schema["$ref"].rpartition("/")[2]], among)
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return fitting(schema["anyOf"][0], among)
    if schema.get("type", "object") == "object":
        return {name: fitting(part, among) for name, part in schema.get("properties", {}).items()}
    if schema["type"] == "array":
        return [fitting(schema["items"], among)] * 2
    return {"string": 'a "joule" é\u4e2d', "integer": 7, "number": 2.5, "boolean": True, "null": None}[schema["type"]]


def embedding(body: dict[str, Any]) -> dict[str, Any]:
    """A vector for each input: its number and two more."""
    inputs = body["input"] if isinstance(body.get("input"), list) else [body.get("input")]
    data: list[dict[str, Any]] = []
    for index in range(len(inputs)):
        numbers = (0.25 + index, -0.5, 1.0)
        packed = base64.b64encode(struct.pack("<3f", *numbers)).decode()
        vector = packed if body.get("encoding_format") == "base64" else list(numbers)
        data.append({"object": "embedding", "index": index, "embedding": vector})
    n = prompt_tokens(body)
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
