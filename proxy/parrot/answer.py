"""What a client gets in the end: an OpenAI reply, whole, or as the stream that it asked for. Sans-I/O.

Parrot gives an answer when all of it is there, so a stream is one chunk with all of the text: `x-joulegate-stream:
emulated` says so. Where nobody counted tokens they are estimated, and `x-joulegate-usage: estimated` says that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.parrot.translate import CHAT
from proxy.upstream import Header

JSON: tuple[Header, ...] = ((b"content-type", b"application/json"),)
STREAM: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-joulegate-stream", b"emulated"),
)
ESTIMATED: Header = (b"x-joulegate-usage", b"estimated")
_BYTES_A_TOKEN = 4  # the usual rule of thumb for English, as elsewhere in the gateway where nobody has counted


@dataclass(slots=True)
class Said:
    """One answer, as far as its stream told it or we know it."""

    id: str
    model: str
    created: int
    text: str = ""
    finish: str | None = "stop"
    usage: dict[str, Any] | None = None
    beside: dict[str, str] = field(default_factory=dict)  # what its message holds that is no text: reasoning, a refusal
    more: dict[str, Any] = field(default_factory=dict)  # `system_fingerprint` and its like

    def whole(self, path: str) -> dict[str, Any]:
        """As the reply to a request without a stream."""
        return self._envelope(path, "chat.completion", self._message("message")) | {"usage": self.usage}

    def stream(self, path: str) -> bytes:
        """As a stream with one chunk that has content; the gateway asks every stream for its usage."""
        frames = [
            self._envelope(path, "chat.completion.chunk", self._message("delta") | {"finish_reason": None}),
            self._envelope(path, "chat.completion.chunk", {"delta": {}}),
        ]
        if path != CHAT:
            frames[1]["choices"][0]["text"] = ""
        if self.usage is not None:
            frames.append(frames[1] | {"choices": [], "usage": self.usage})
        return b"".join(b"data: " + orjson.dumps(frame) + b"\n\n" for frame in frames) + b"data: [DONE]\n\n"

    def _message(self, name: str) -> dict[str, Any]:
        return {name: {"role": "assistant", **self.beside, "content": self.text}}

    def _envelope(self, path: str, kind: str, choice: Mapping[str, Any]) -> dict[str, Any]:
        if path == CHAT:
            one = {"index": 0, "finish_reason": self.finish, **choice}
        else:
            finish = choice.get("finish_reason", self.finish)
            kind, one = "text_completion", {"index": 0, "text": self.text, "logprobs": None, "finish_reason": finish}
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": [one],
            **self.more,
        }


def estimate(prompt: str, text: str, most: int) -> dict[str, Any]:
    """A usage where nobody counted: by the length of the texts."""
    prompt_tokens, output = _tokens(prompt), min(_tokens(text), most)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": output, "total_tokens": prompt_tokens + output}


def _tokens(text: str) -> int:
    return -(-len(text.encode(errors="replace")) // _BYTES_A_TOKEN)
