"""The text of an answer, as the calls that name its node are given it: that of the first choice, from a whole reply
or from a stream, in the words of each OpenAI API.

Reasoning, refusals and calls of tools are no text.
"""

from collections.abc import Callable
from typing import Any

import orjson

from proxy.frames import Frames

_OTHERS = ("tool_calls", "function_call", "refusal", "reasoning_content", "reasoning")
_ENDS = ("response.completed", "response.incomplete")
_WHOLE = ("completed", "incomplete", None)  # states of a response; one that works in the background has no text yet


class Answer:
    """Collects `text` from what an engine sends."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._begun = False
        self._other = False  # it holds something that is no text
        self.ended = False  # of a stream: the first choice came to its end

    @property
    def text(self) -> str | None:
        """The text so far: empty for an answer that holds nothing, None for one that holds something else alone."""
        if self._parts:
            return "".join(self._parts)
        return None if self._other or not self._begun else ""

    def whole(self, reply: Any) -> None:
        """Take a reply that is not a stream."""
        if not isinstance(reply, dict):
            return
        if isinstance(output := reply.get("output"), list):
            self._begun = True
            for item in output if reply.get("status") in _WHOLE else [None]:
                self._item(item)
        else:
            self._choice(reply, "message")

    def frame(self, frame: bytes) -> None:
        """Take one frame of a stream."""
        data = b"".join(line[5:] for line in frame.splitlines() if line.startswith(b"data:"))
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:  # a comment, `[DONE]`, or what was broken off
            return
        if not isinstance(event, dict):
            return
        kind = event.get("type")
        if not (isinstance(kind, str) and kind.startswith("response.")):
            self._choice(event, "delta")
            return
        self._begun = True
        if kind == "response.output_text.delta":
            self._say(event.get("delta"))
        elif kind == "response.refusal.delta":
            self._other = True
        elif kind == "response.output_item.added" and isinstance(item := event.get("item"), dict):
            self._other = self._other or item.get("type") != "message"
        elif kind in _ENDS:
            self.ended = True

    def _choice(self, reply: dict[str, Any], message: str) -> None:
        """What the first choice says: a text of its own, or that of its message."""
        choices = reply.get("choices")
        found = (one for one in choices if isinstance(one, dict)) if isinstance(choices, list) else ()
        first = next((one for one in found if one.get("index", 0) == 0), None)
        if first is None:
            return
        self._begun = True
        self.ended = self.ended or isinstance(first.get("finish_reason"), str)
        said = first.get(message)
        if isinstance(said, dict):
            self._other = self._other or any(said.get(kind) for kind in _OTHERS)
            said = said.get("content")
        if isinstance(said, list):
            self._say_parts(said)
        else:
            self._say(first.get("text") if said is None else said)

    def _item(self, item: Any) -> None:
        """One item of a Responses API's output."""
        if not isinstance(item, dict):
            self._other = True
            return
        content = item.get("content")
        if item.get("type") != "message" or not isinstance(content, list):
            self._other = True
        else:
            self._say_parts(content)

    def _say_parts(self, parts: list[Any]) -> None:
        for part in parts:
            if isinstance(part, dict) and part.get("type") in ("text", "output_text"):
                self._say(part.get("text"))
            else:
                self._other = True

    def _say(self, text: Any) -> None:
        if isinstance(text, str) and text:
            self._parts.append(text)


class HeardFrames(Frames):
    """Frames whose text is collected too: a class of its own, so that others pay nothing for it."""

    def __init__(self, hide_usage: bool, comment: Callable[[], bytes] | None, answer: Answer) -> None:
        super().__init__(hide_usage, comment)
        self._answer = answer

    @property
    def complete(self) -> bool:
        """A text that others are to be given must be whole: of several choices one that ended is not enough."""
        return super().complete and (self.done or self._answer.ended)

    def _frame(self, frame: bytes) -> bytes:
        self._answer.frame(frame)
        return super()._frame(frame)
