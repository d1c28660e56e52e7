"""Answers in bytes, as vLLM 0.32 puts them: the frames of a stream, and whole ones.

What the frames of one stream have in common is rendered once; a token then costs one short JSON string.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from emulator.server.refusal import Refusal
from emulator.server.tokens import decode

DONE = b"data: [DONE]\n\n"
VERSION = "0.32.0+emulated"
FINGERPRINT = "vllm-0.32.0-emulated"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a prompt and of its answers. `cached_tokens` is None where they are not to be told."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    created_cache_tokens: int | None = None

    def told(self, with_nulls: bool = False) -> dict[str, Any]:
        details: dict[str, Any] | None = None
        if self.cached_tokens is not None:
            details = {"cached_tokens": self.cached_tokens}
            if with_nulls or self.created_cache_tokens is not None:
                details["created_cache_tokens"] = self.created_cache_tokens
            if with_nulls:
                details["multimodal_tokens"] = None
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
        }
        if with_nulls or details is not None:
            usage["prompt_tokens_details"] = details
        return usage | {"completion_tokens_details": None} if with_nulls else usage


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished answer."""

    text: str
    finish_reason: str
    stop_reason: str | int | None


class Frames(Protocol):
    """What an endpoint says. `usage` is there only where the client wants it in every frame."""

    def opening(self, index: int, usage: Usage | None) -> bytes: ...
    def delta(self, index: int, text: str, usage: Usage | None) -> bytes: ...
    def last(self, index: int, choice: Choice, usage: Usage | None, sealed: bool) -> bytes:
        """The frame that ends an answer, with the last of its text; `sealed` puts the fingerprint into it."""
        ...

    def usage(self, usage: Usage) -> bytes: ...
    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes: ...


def error(refusal: Refusal) -> bytes:
    """A refusal as the first and only frame of a stream."""
    return b"data: " + refusal.body() + b"\n\n"


class ChatFrames:
    """Frames of /v1/chat/completions. `echo` is the text that the answer continues."""

    def __init__(self, request_id: str, created: int, model: str, role: str, echo: str = "") -> None:
        self._id, self._created, self._model, self._role, self._echo = request_id, created, model, role, echo
        head = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = orjson.dumps(head)[:-1] + b',"choices":['

    def opening(self, index: int, usage: Usage | None) -> bytes:
        delta = orjson.dumps({"role": self._role, "content": ""})
        frame = b'{"index":%d,"delta":%b,"logprobs":null,"finish_reason":null}]' % (index, delta)
        frame = (
            b"data: " + self._head + frame + _of(usage, chat=True) + b',"prompt_token_ids":null,"prompt_text":null}\n\n'
        )
        if self._echo:
            frame += self._content(index, self._echo) + b"}]" + _of(usage, chat=True) + b"}\n\n"
        return frame

    def delta(self, index: int, text: str, usage: Usage | None) -> bytes:
        return self._content(index, text) + b',"token_ids":null}]' + _of(usage, chat=True) + b"}\n\n"

    def last(self, index: int, choice: Choice, usage: Usage | None, sealed: bool) -> bytes:
        delta, reasons = orjson.dumps(choice.text), orjson.dumps([choice.finish_reason, choice.stop_reason])[1:-1]
        finish, stop = reasons.split(b",", 1)
        seal = b',"system_fingerprint":"%b"' % FINGERPRINT.encode() if sealed else b""
        return b"".join((
            b'data: %b{"index":%d,"delta":{"content":%b},"logprobs":null' % (self._head, index, delta),
            b',"finish_reason":%b,"stop_reason":%b,"token_ids":null}]' % (finish, stop),
            _of(usage, chat=True),
            seal,
            b"}\n\n",
        ))  # fmt: skip

    def usage(self, usage: Usage) -> bytes:
        told = orjson.dumps(usage.told())
        seal = FINGERPRINT.encode()
        return b'data: %b],"usage":%b,"system_fingerprint":"%b"}\n\n' % (self._head, told, seal)

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        silent = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
        answer = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [
                {
                    "index": index,
                    "message": {"role": self._role, "content": self._echo + choice.text, **silent},
                    "logprobs": None,
                    "finish_reason": choice.finish_reason,
                    "stop_reason": choice.stop_reason,
                    "token_ids": None,
                    "routed_experts": None,
                }
                for index, choice in enumerate(choices)
            ],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage.told(with_nulls=True),
        }
        more = ("prompt_logprobs", "prompt_token_ids", "prompt_text")
        return orjson.dumps(answer | dict.fromkeys((*more, *_TRANSFER)))

    def _content(self, index: int, text: str) -> bytes:
        content = orjson.dumps(text)
        return b'data: %b{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null' % (
            self._head,
            index,
            content,
        )


class CompletionFrames:
    """Frames of /v1/completions. `echoes` are the prompts, by choice, that the answers are to begin with; the tokens of
    a prompt stand in the frame that echoes it."""

    def __init__(self, request_id: str, created: int, model: str, echoes: Sequence[list[int]] = ()) -> None:
        self._id, self._created, self._model = request_id, created, model
        self._echoes = dict(enumerate(echoes))
        head = {"id": request_id, "object": "text_completion", "created": created, "model": model}
        self._head = orjson.dumps(head)[:-1] + b',"choices":['

    def opening(self, index: int, usage: Usage | None) -> bytes:
        return b""

    def delta(self, index: int, text: str, usage: Usage | None) -> bytes:
        echo = self._echoes.pop(index, None)
        text = text if echo is None else decode(echo) + text
        return b"".join((
            b'data: %b{"index":%d,"text":%b' % (self._head, index, orjson.dumps(text)),
            b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":%b' % orjson.dumps(echo),
            b',"token_ids":null}]',
            _of(usage, chat=False),
            b"}\n\n",
        ))  # fmt: skip

    def last(self, index: int, choice: Choice, usage: Usage | None, sealed: bool) -> bytes:
        echo = self._echoes.pop(index, None)
        text = decode(echo or ()) + choice.text
        answer = {"index": index, "text": text, "logprobs": None, "finish_reason": choice.finish_reason}
        answer |= {"stop_reason": choice.stop_reason, "prompt_token_ids": echo, "token_ids": None}
        seal = b',"system_fingerprint":"%b"' % FINGERPRINT.encode() if sealed else b""
        return b"data: %b%b]%b%b}\n\n" % (self._head, orjson.dumps(answer), _of(usage, chat=False), seal)

    def usage(self, usage: Usage) -> bytes:
        told, seal = orjson.dumps(usage.told()), FINGERPRINT.encode()
        return b'data: %b],"usage":%b,"system_fingerprint":"%b"}\n\n' % (self._head, told, seal)

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        silent = dict.fromkeys(("token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts"))
        answer = {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [
                {
                    "index": index,
                    "text": decode(self._echoes.pop(index, ())) + choice.text,
                    "logprobs": None,
                    "finish_reason": choice.finish_reason,
                    "stop_reason": choice.stop_reason,
                    **silent,
                }
                for index, choice in enumerate(choices)
            ],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage.told(with_nulls=True),
        }
        return orjson.dumps(answer | dict.fromkeys(_TRANSFER))


_TRANSFER = ("kv_transfer_params", "ec_transfer_params", "metrics")


def _of(usage: Usage | None, chat: bool) -> bytes:
    """The usage in a frame that is not the last: chat's has a null more."""
    if usage is None:
        return b""
    told = orjson.dumps(usage.told())
    return b',"usage":' + (told[:-1] + b',"completion_tokens_details":null}' if chat else told)
