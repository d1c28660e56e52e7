"""The emulated engine as an ASGI application: vLLM's routes, and under /emulator what an emulator has besides."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from emulator.server import prompt as prompts
from emulator.server import tokens
from emulator.server.exchange import JSON, STREAM, Exchange, Message, Receive, Send
from emulator.server.faults import Faults
from emulator.server.filler import Answer, Stops, seed_of
from emulator.server.frames import DONE, VERSION, ChatFrames, CompletionFrames, Frames, error
from emulator.server.metrics import Choices
from emulator.server.refusal import Refusal, malformed, unknown_model
from emulator.server.requests import (
    AnyBody,
    Body,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Sampled,
    TokenizeRequest,
    check_sampling,
    parse,
)
from emulator.server.shell import EngineShell, Feed
from emulator.server.shell import Sequence as EngineSequence

RESET = "joulegate.emulator.reset"  # the scope's extension that resets the connection
_TEXT = [(b"content-type", CONTENT_TYPE_PLAIN_0_0_4.encode())]


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and how. `seed` decides what the filler says; the model goes by any of `names`."""

    names: Sequence[str]
    root: str
    max_model_len: int
    block_size: int
    prompt_tokens_details: bool = True
    seed: int = 0


class App:
    """`engine` is made by `start`, inside the event loop that will run it."""

    def __init__(self, served: Served, engine: EngineShell, faults: Faults) -> None:
        self._served, self._engine, self._faults = served, engine, faults
        self._started_s = int(time.time())
        self._numbers = itertools.count()
        self._routes: dict[tuple[str, str], Callable[[Message, Receive, Send], Awaitable[None]]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completion,
            ("GET", "/v1/models"): self._models,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("POST", "/ping"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/emulator/faults"): self._show_faults,
            ("POST", "/emulator/faults"): self._inject,
            ("DELETE", "/emulator/faults"): self._mend,
            ("GET", "/emulator/limits"): self._limits,
            ("POST", "/emulator/limits"): self._limit,
        }
        self._methods: dict[str, list[str]] = {}
        for method, path in self._routes:
            self._methods.setdefault(path, []).append(method)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"]))
        try:
            if route is None:
                await self._no_route(scope, send)
            else:
                await route(scope, receive, send)
        except Refusal as refusal:
            await _reply(send, refusal.body(), status=refusal.status)
        except ConnectionError:  # gone before its request was there
            return

    async def _no_route(self, scope: Message, send: Send) -> None:
        """What the framework under vLLM answers; it is no error object."""
        methods = self._methods.get(scope["path"])
        status = HTTPStatus.METHOD_NOT_ALLOWED if methods else HTTPStatus.NOT_FOUND
        allowed = [(b"allow", ", ".join(methods).encode())] if methods else []
        await _reply(send, orjson.dumps({"detail": status.phrase}), [*JSON, *allowed], status)

    # Generation -------------------------------------------------------------------------------------------------------

    async def _chat(self, scope: Message, receive: Receive, send: Send) -> None:
        request = await self._asked(ChatRequest, scope, receive, send)
        if request is None:
            return
        tokens_of_prompt = prompts.of_chat(request)
        role = "assistant" if request.add_generation_prompt else request.messages[-1].role
        echo = ""
        if request.echo and request.messages and request.messages[-1].role == role:
            echo = prompts.text_of(request.messages[-1])
        said = ChatFrames(_id("chatcmpl", scope, request), int(time.time()), self._served.names[0], role, echo)
        await self._generate(request, [tokens_of_prompt], True, said, scope, receive, send)

    async def _completion(self, scope: Message, receive: Receive, send: Send) -> None:
        request = await self._asked(CompletionRequest, scope, receive, send)
        if request is None:
            return
        given = prompts.of_completion(request)
        echoes = [prompt for prompt in given for _ in range(request.n)] if request.echo else []
        said = CompletionFrames(_id("cmpl", scope, request), int(time.time()), self._served.names[0], echoes)
        of_text = isinstance(request.prompt, str) or (bool(request.prompt) and isinstance(request.prompt[0], str))
        await self._generate(request, given, of_text, said, scope, receive, send)

    async def _asked(self, kind: type[Any], scope: Message, receive: Receive, send: Send) -> Any:
        """The request, past what vLLM looks at first; None when a fault has answered it."""
        request = await self._body(kind, scope, receive)
        fault = self._faults.refusal()
        if fault is not None:
            refusal, in_stream = fault
            if not (in_stream and request.stream):
                raise refusal
            await send({"type": "http.response.start", "status": 200, "headers": STREAM})
            await send({"type": "http.response.body", "body": error(refusal) + DONE})
            return None
        self._check_model(request)
        self._engine.check_alive()
        self._engine.check_admission(request.choices)
        return request

    async def _generate(
        self,
        request: Sampled,
        given: list[list[int]],
        of_text: bool,
        said: Frames,
        scope: Message,
        receive: Receive,
        send: Send,
    ) -> None:
        served, feed = self._served, Feed()
        stops = Stops(
            request.stop_strings,
            frozenset(request.stop_token_ids or ()),
            request.include_stop_str_in_output,
            request.ignore_eos,
            request.min_tokens,
        )
        priority = _priority(scope, request)
        sequences: list[EngineSequence] = []
        late: Refusal | None = None
        for prompt in given:
            prompt, limit = prompts.fit(request, prompt, served.max_model_len, of_text)
            check_sampling(request, limit)
            try:
                prompts.check_tokens(prompt)
            except Refusal as refusal:
                late = refusal
                continue
            choices = Choices(request.choices)
            for choice in range(request.choices):
                seed = seed_of(served.seed, request.seed, prompt, choice)
                answer = Answer(seed, limit, stops)
                name = f"{next(self._numbers)}"
                salt = request.cache_salt
                sequences.append(EngineSequence(name, prompt, answer, feed, limit, choices, priority, salt))
        # vLLM looks twice whether its queue is full: those that come together pass the first look together.
        await asyncio.sleep(0)
        exchange = Exchange(
            self._engine,
            request,
            said,
            sequences,
            feed,
            prompt_tokens=sum(len(each.prompt) for each in sequences) // request.choices,
            block_size=served.block_size if isinstance(request, ChatRequest) else None,
            cached_told=served.prompt_tokens_details,
            reset=scope.get("extensions", {}).get(RESET) if request.stream and self._faults.drops() else None,
        )
        if request.stream:
            await exchange.stream(receive, send, late)
        else:
            await exchange.whole(receive, send, late)

    # What else an engine answers --------------------------------------------------------------------------------------

    async def _models(self, scope: Message, receive: Receive, send: Send) -> None:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self._started_s,
                "owned_by": "vllm",
                "root": self._served.root,
                "parent": None,
                "max_model_len": self._served.max_model_len,
                "permission": [_permission(self._started_s)],
            }
            for name in self._served.names
        ]
        await _reply(send, orjson.dumps({"object": "list", "data": cards}))

    async def _tokenize(self, scope: Message, receive: Receive, send: Send) -> None:
        request = await self._body(TokenizeRequest, scope, receive)
        self._check_model(request)
        if request.messages is not None:
            found = prompts.conversation(request.messages, request.add_generation_prompt)
        else:
            found = [tokens.BOS] * request.add_special_tokens + tokens.encode(request.prompt or "")
        texts = [tokens.decode([token]) for token in found] if request.return_token_strs else None
        answer = {"count": len(found), "max_model_len": self._served.max_model_len}
        await _reply(send, orjson.dumps(answer | {"tokens": found, "token_strs": texts}))

    async def _detokenize(self, scope: Message, receive: Receive, send: Send) -> None:
        request = await self._body(DetokenizeRequest, scope, receive)
        self._check_model(request)
        prompts.check_tokens(request.tokens or [0])
        await _reply(send, orjson.dumps({"prompt": tokens.decode(request.tokens)}))

    async def _metrics(self, scope: Message, receive: Receive, send: Send) -> None:
        self._engine.catch_up()
        await _reply(send, self._engine.metrics.render(), _TEXT)

    async def _health(self, scope: Message, receive: Receive, send: Send) -> None:
        await _reply(send, b"", [], 200 if self._engine.failed is None else 503)

    async def _version(self, scope: Message, receive: Receive, send: Send) -> None:
        await _reply(send, orjson.dumps({"version": VERSION}))

    # What only an emulator has ----------------------------------------------------------------------------------------

    async def _show_faults(self, scope: Message, receive: Receive, send: Send) -> None:
        await _reply(send, orjson.dumps({"active": self._faults.active()}))

    async def _inject(self, scope: Message, receive: Receive, send: Send) -> None:
        self._faults.inject(await _json(receive))
        await self._show_faults(scope, receive, send)

    async def _mend(self, scope: Message, receive: Receive, send: Send) -> None:
        self._faults.clear()
        await self._show_faults(scope, receive, send)

    async def _limits(self, scope: Message, receive: Receive, send: Send) -> None:
        await _reply(send, orjson.dumps({"max_num_active_reqs": self._engine.max_num_active_reqs}))

    async def _limit(self, scope: Message, receive: Receive, send: Send) -> None:
        asked = await _json(receive)
        wanted = asked.get("max_num_active_reqs", ...) if isinstance(asked, dict) and len(asked) == 1 else ...
        most = self._engine.max_num_seqs
        if wanted is not None and (type(wanted) is not int or not 1 <= wanted <= most):
            message = f'give {{"max_num_active_reqs": n}} with n from 1 to {most} (max_num_seqs), or null for no limit'
            raise Refusal(message, param="max_num_active_reqs")
        self._engine.max_num_active_reqs = wanted
        await self._limits(scope, receive, send)

    # ------------------------------------------------------------------------------------------------------------------

    async def _body(self, kind: type[AnyBody], scope: Message, receive: Receive) -> AnyBody:
        return parse(kind, _header(scope, b"content-type"), await _read(receive))

    def _check_model(self, request: Body) -> None:
        if request.model and request.model not in self._served.names:
            raise unknown_model(request.model, ", ".join(self._served.names))


async def _read(receive: Receive) -> bytes:
    """The whole body. Raises ConnectionError when the client goes before it is there."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _json(receive: Receive) -> Any:
    try:
        return orjson.loads(await _read(receive))
    except orjson.JSONDecodeError as error:
        raise malformed([f"not JSON: {error.msg} at {error.pos}"]) from None


async def _reply(
    send: Send, body: bytes, headers: Sequence[tuple[bytes, bytes]] = tuple(JSON), status: int = 200
) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def _header(scope: Message, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _id(kind: str, scope: Message, request: Sampled) -> str:
    return f"{kind}-{_header(scope, b'x-request-id') or request.request_id or uuid.uuid4().hex}"


def _priority(scope: Message, request: Sampled) -> int:
    """The header's, where it has a number, or the body's."""
    try:
        return int(_header(scope, b"x-vllm-priority"))
    except ValueError:
        return request.priority


def _permission(created_s: int) -> dict[str, Any]:
    allowed = {"allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True}
    allowed |= {"allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False}
    about = {"id": f"modelperm-{uuid.uuid4().hex}", "object": "model_permission", "created": created_s}
    return about | allowed | {"organization": "*", "group": None, "is_blocking": False}
