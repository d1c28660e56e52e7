"""An engine's stream, gathered into one answer as it comes: Parrot wants text whole. Sans-I/O."""

import re
from typing import Any

import orjson

from proxy.frames import Frames
from proxy.parrot.answer import Said

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_BESIDE = ("reasoning_content", "reasoning", "refusal")  # an engine may say its reasoning under both names at once
_ENVELOPE = ("id", "object", "created", "model", "choices", "usage")


class Gather:
    """The engine's bytes go in; `frames` counts them, `said` is the answer so far."""

    def __init__(self) -> None:
        self.frames = Frames()
        self.said = Said("", "", 0, finish=None)
        self._tail = b""
        self._text: list[str] = []
        self._beside: dict[str, list[str]] = {}

    def feed(self, data: bytes) -> None:
        self.frames.feed(data)
        *whole, self._tail = _BLANK_LINE.split(self._tail + data)
        for frame in whole:
            self._read(frame)

    def finish(self) -> Said | None:
        """The stream has ended: the whole answer, None where it broke off before it was complete."""
        self.frames.finish()
        if self._tail:
            self._read(self._tail)
        self.said.text = "".join(self._text)
        self.said.beside = {name: "".join(parts) for name, parts in self._beside.items()}
        return self.said if self.frames.complete and self.frames.error is None else None

    def _read(self, frame: bytes) -> None:
        data = b"".join(line[5:] for line in frame.splitlines() if line.startswith(b"data:")).strip()
        if not data or data == b"[DONE]":
            return
        try:
            chunk: Any = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if not isinstance(chunk, dict):
            return
        said = self.said
        if not said.id:
            said.id, said.model = str(chunk.get("id", "")), str(chunk.get("model", ""))
            said.created = chunk["created"] if isinstance(chunk.get("created"), int) else 0
            said.more = {name: value for name, value in chunk.items() if name not in _ENVELOPE}
        if isinstance(chunk.get("usage"), dict):
            said.usage = chunk["usage"]
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        delta = choice.get("delta")
        holder = delta if isinstance(delta, dict) else choice
        for name in ("content", "text"):
            if isinstance(holder.get(name), str):
                self._text.append(holder[name])
        for name in _BESIDE:
            if isinstance(part := holder.get(name), str) and part:
                self._beside.setdefault(name, []).append(part)
        if isinstance(choice.get("finish_reason"), str):
            said.finish = choice["finish_reason"]
