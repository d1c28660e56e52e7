"""Reading an answer of an OpenAI endpoint, whole or as it streams: text, and the usage at its end. No I/O here."""

from dataclasses import dataclass
from typing import Any

import orjson


class AnswerError(Exception):
    """An answer that is an error, or no answer at all; the message is one line."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by the engine's own count; null where it does not say."""

    prompt: int | None = None
    cached: int | None = None
    output: int | None = None


class StreamedAnswer:
    """The text of a completion, of a chat or of plain text, that arrives as server-sent events."""

    def __init__(self) -> None:
        self.pieces: list[str] = []  # every event that brought text
        self.usage = Usage()
        self.done = False
        self._rest = b""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def feed(self, data: bytes) -> None:
        """Take what has come, whole lines or not. Raises AnswerError for an error event and for what is no chunk."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):  # blank lines, comments and other fields say nothing
                self._take(line[5:].strip())

    def close(self) -> str:
        """The whole text. Raises AnswerError when the stream was cut."""
        if not self.done:
            raise AnswerError("the stream ended without [DONE]")
        return self.text

    def _take(self, value: bytes) -> None:
        if value == b"[DONE]":
            self.done = True
            return
        chunk = _parse(value)
        for choice in _choices(chunk):
            if text := choice.get("text") or (choice.get("delta") or {}).get("content"):
                self.pieces.append(text)
        if usage := chunk.get("usage"):
            self.usage = _usage(usage)


def whole_answer(body: bytes) -> tuple[str, Usage]:
    """The text of a completion sent in one piece. Raises AnswerError for anything else."""
    parsed = _parse(body)
    choices = _choices(parsed)
    if not choices:
        raise AnswerError("a completion without choices")
    text = choices[0].get("text") or (choices[0].get("message") or {}).get("content") or ""
    return text, _usage(parsed.get("usage") or {})


def refusal(status: int, body: bytes) -> AnswerError:
    """What a reply with an error status says, as one line."""
    try:
        _choices(_parse(body))
    except AnswerError as error:
        return AnswerError(f"HTTP {status}: {error}")
    return AnswerError(f"HTTP {status}")


def model_ids(body: bytes) -> list[str]:
    """The ids in a reply of `/v1/models`. Raises AnswerError for anything else."""
    try:
        return [str(model["id"]) for model in _parse(body)["data"]]
    except (KeyError, TypeError):
        raise AnswerError("not a list of models") from None


def _parse(body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except ValueError:
        raise AnswerError(f"not JSON: {body[:80]!r}") from None
    if not isinstance(parsed, dict):
        raise AnswerError(f"not a JSON object: {body[:80]!r}")
    return parsed


def _choices(parsed: dict[str, Any]) -> list[dict[str, Any]]:
    if error := parsed.get("error"):
        message = error.get("message") if isinstance(error, dict) else error
        raise AnswerError(str(message or "an error without a message").splitlines()[0])
    return parsed.get("choices") or []


def _usage(fields: dict[str, Any]) -> Usage:
    details = fields.get("prompt_tokens_details") or {}
    return Usage(fields.get("prompt_tokens"), details.get("cached_tokens"), fields.get("completion_tokens"))
