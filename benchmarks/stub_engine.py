"""A bare OpenAI-compatible engine: what a gateway costs is what it adds to this.

`python -m benchmarks.stub_engine PORT` serves it as lean as uvicorn can: one worker, uvloop, httptools. A request may
ask for its number of tokens (`max_tokens`) and, in its prompt, for a pace (`itl_ms=20`): the prompt is the one thing
that every proxy passes on untouched. Otherwise STUB_TOKENS (64) and STUB_ITL_MS (0) hold.
"""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MODEL = os.environ.get("STUB_MODEL", "stub")
TOKENS = int(os.environ.get("STUB_TOKENS", "64"))
ITL_MS = float(os.environ.get("STUB_ITL_MS", "0"))
PROMPT_TOKENS = 200
_PACE = re.compile(rb"itl_ms=([0-9.]+)")

JSON = [(b"content-type", b"application/json")]
TEXT = [(b"content-type", b"text/plain; charset=utf-8")]
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


def _frame(choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": MODEL}
    return b"data: " + orjson.dumps({**chunk, "choices": choices, **more}) + b"\n\n"


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}


OPENING = _frame([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
TOKEN = _frame([{"index": 0, "delta": {"content": "hello "}, "logprobs": None, "finish_reason": None}])
CLOSING = _frame([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}])
DONE = b"data: [DONE]\n\n"
MODELS = orjson.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "stub"}]})


@dataclass(slots=True)
class Counters:
    """What vLLM counts of itself, for gateways that poll it."""

    running: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0

    def exposition(self) -> bytes:
        return (
            f"vllm:num_requests_running {self.running}\n"
            f"vllm:num_requests_waiting 0\n"
            f"vllm:prompt_tokens_total {self.prompt_tokens}\n"
            f"vllm:generation_tokens_total {self.output_tokens}\n"
            f"vllm:iteration_tokens_total_count {self.steps}\n"
        ).encode()


COUNTERS = Counters()


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """The engine as an ASGI application."""
    path = scope["path"]
    if path == "/v1/chat/completions":
        await _chat(receive, send)
    elif path == "/v1/models":
        await _reply(send, JSON, MODELS)
    elif path == "/metrics":
        await _reply(send, TEXT, COUNTERS.exposition())
    else:  # /health, and whatever else a router may call it
        await _reply(send, JSON, b"{}")


async def _chat(receive: Receive, send: Send) -> None:
    raw = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        raw += message.get("body", b"")
        if not message.get("more_body"):
            break
    body = orjson.loads(raw)
    tokens = body.get("max_tokens") or TOKENS
    paced = _PACE.search(raw)
    itl_s = (float(paced[1]) if paced else ITL_MS) / 1000
    COUNTERS.running += 1
    COUNTERS.prompt_tokens += PROMPT_TOKENS
    try:
        if body.get("stream"):
            await _stream(send, tokens, itl_s, bool((body.get("stream_options") or {}).get("include_usage")))
        else:
            if itl_s:
                await asyncio.sleep(itl_s * tokens)
            COUNTERS.output_tokens += tokens
            COUNTERS.steps += tokens
            await _reply(send, JSON, _whole(tokens))
    finally:
        COUNTERS.running -= 1


def _whole(tokens: int) -> bytes:
    message = {"role": "assistant", "content": "hello " * tokens}
    choices = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    reply = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": MODEL}
    return orjson.dumps({**reply, "choices": choices, "usage": _usage(tokens)})


async def _stream(send: Send, tokens: int, itl_s: float, usage: bool) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": STREAM})
    await send({"type": "http.response.body", "body": OPENING, "more_body": True})
    # Each stream keeps to its own timetable, so that a late wake-up does not delay every token after it.
    now = asyncio.get_running_loop().time
    due = now()
    for _ in range(tokens):
        if itl_s:
            due += itl_s
            await asyncio.sleep(max(0.0, due - now()))
        COUNTERS.output_tokens += 1
        COUNTERS.steps += 1
        await send({"type": "http.response.body", "body": TOKEN, "more_body": True})
    await send({"type": "http.response.body", "body": CLOSING, "more_body": True})
    if usage:
        await send({"type": "http.response.body", "body": _frame([], usage=_usage(tokens)), "more_body": True})
    await send({"type": "http.response.body", "body": DONE})


async def _reply(send: Send, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def main(port: int) -> None:
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
