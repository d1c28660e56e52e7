"""Reading an answer of an OpenAI chat endpoint, whole or line by line as it streams. No I/O here."""

import json
from typing import Any


class AnswerError(Exception):
    """An answer that is an error, or no answer at all; the message is one line."""


class StreamedAnswer:
    """The text of a chat completion that arrives as server-sent events."""

    def __init__(self) -> None:
        self.text = ""
        self.done = False

    def feed(self, line: bytes) -> None:
        """Take one line of the stream. Raises AnswerError for an error event and for what is not a chat chunk."""
        field, _, value = line.strip().partition(b":")
        if field != b"data":  # blank lines, comments and other fields
            return
        if value.strip() == b"[DONE]":
            self.done = True
            return
        for choice in _choices(_parse(value)):
            self.text += (choice.get("delta") or {}).get("content") or ""

    def close(self) -> str:
        """The whole text. Raises AnswerError when the stream was cut."""
        if not self.done:
            raise AnswerError("the stream ended without [DONE]")
        return self.text


def whole_answer(body: bytes) -> str:
    """The text of a chat completion sent in one piece. Raises AnswerError for anything else."""
    choices = _choices(_parse(body))
    if not choices:
        raise AnswerError("a chat completion without choices")
    return (choices[0].get("message") or {}).get("content") or ""


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
        parsed = json.loads(body)
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
