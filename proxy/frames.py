"""What passes in a streamed reply: frames counted, usage read, and nothing else touched.

Sans-I/O: the engine's bytes go in as they come, the client's come out. Only two things ever differ: the usage frame
that the gateway asked for is kept back, and an energy comment may be put before `[DONE]`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_TAIL_LIMIT = 8 * 2**20
_MOST_TOKENS = 10**9  # more than that is no count, and more than the ledger can hold would stop it
# A text that is not empty, or a call. A quote inside of a text is escaped, so it cannot look like this.
_OUTPUT = re.compile(
    rb'"(?:content|text|reasoning_content|reasoning|refusal)": ?"[^"]|"(?:tool_calls": ?\[|function_call": ?) ?\{'
)
# A token without a text of its own (part of a character, a special token) in the middle of an answer.
_SILENT = re.compile(rb'(?:"text"|"delta": ?\{"content"): ?""(?=.*"finish_reason": ?null)')
_FINISHED = re.compile(rb'"finish_reason": ?"|response\.(?:completed|incomplete|failed)"')


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the engine states them; `prompt` includes `cached`, None when the engine does not say."""

    prompt: int
    output: int
    cached: int | None


def read_usage(reply: Any) -> Usage | None:
    """The usage in a reply or a frame, in the words of either OpenAI API; None when there is none."""
    if not isinstance(reply, dict):
        return None
    usage = reply.get("usage")
    if usage is None and isinstance(reply.get("response"), dict):
        usage = reply["response"].get("usage")
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    output = usage.get("completion_tokens", usage.get("output_tokens", 0))
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    if not isinstance(prompt, int) or not isinstance(output, int) or max(prompt, output) > _MOST_TOKENS:
        return None
    prompt = max(0, prompt)
    return Usage(prompt, max(0, output), min(prompt, max(0, cached)) if isinstance(cached, int) else None)


class Frames:
    """One stream. `hide_usage`: keep the usage frame from the client; `comment`: what to say before the end."""

    def __init__(self, hide_usage: bool = False, comment: Callable[[], bytes] | None = None) -> None:
        self._hide_usage = hide_usage
        self._comment = comment
        self._edits = hide_usage or comment is not None
        self._tail = b""
        self._closing = False  # a closing usage frame was seen
        self._last = b""  # the last frame of an answer
        self.content = 0  # frames that carry output
        self.usage: Usage | None = None
        self.done = False
        self.error: bytes | None = None  # an error object that came as a frame, the last of them
        self.started = False

    def feed(self, data: bytes) -> bytes:
        """Bytes from the engine in, bytes for the client out."""
        if not self._tail and data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
            shown = self._frame(data)  # one whole frame, as most reads are
            return shown if self._edits else data
        buffer = self._tail + data if self._tail else data
        out: list[bytes] = []
        begin = 0
        for blank in _BLANK_LINE.finditer(buffer):
            end = blank.end()
            out.append(self._frame(buffer[begin:end]))
            begin = end
        self._tail = buffer[begin:]
        if not self._edits:
            if len(self._tail) > _TAIL_LIMIT:
                self._tail = b""
            return data
        if len(self._tail) > _TAIL_LIMIT:  # not a frame that we asked for
            out.append(self._tail)
            self._tail = b""
        return b"".join(out)

    def finish(self) -> bytes:
        """The engine's stream has ended; returns what is still owed to the client."""
        tail, self._tail = self._tail, b""
        if tail:
            tail = self._frame(tail)
        owed = tail if self._edits else b""
        if self._comment is not None:
            apart = b"\n\n" if owed.strip() else b""  # the engine broke off inside a frame
            owed += apart + self._comment()
            self._comment = None
        return owed

    def _frame(self, frame: bytes) -> bytes:
        at = frame.find(b"data:")
        if at < 0:
            return frame
        if b'"usage"' in frame and b'"usage":null' not in frame and b'"usage": null' not in frame:
            return self._usage_frame(frame, at)
        if frame.startswith((b"[DONE]", b" [DONE]"), at + 5):
            self.done = True
            if self._comment is not None:
                frame = self._comment() + frame
                self._comment = None
            return frame
        self.started = True
        self._last = frame
        if _carries_output(frame):
            self.content += 1
        elif b'"error"' in frame[at : at + 24] or b"response.failed" in frame[: at + 40]:
            self.error = frame[at + 5 :].strip()
        return frame

    @property
    def complete(self) -> bool:
        """Whether the answer came to its end: with `[DONE]`, a reason to finish, or a whole response."""
        return self.done or _FINISHED.search(self._last) is not None

    def _usage_frame(self, frame: bytes, at: int) -> bytes:
        try:
            reply = orjson.loads(b"".join(line[5:] for line in frame[at:].splitlines() if line.startswith(b"data:")))
        except orjson.JSONDecodeError:
            reply = None
        usage = read_usage(reply)
        if isinstance(reply, dict):
            self.started = True
            if reply.get("choices") == [] and usage is not None:
                self._total(usage)
                return b"" if self._hide_usage else frame
            self._last = frame
            if usage is not None:
                self.usage = usage  # a running total, as of now
            if _carries_output(frame):
                self.content += 1
        return frame

    def _total(self, usage: Usage) -> None:
        """Take a closing frame's usage: llama.cpp sends one for each choice, with the same prompt."""
        before = self.usage.output if self._closing and self.usage is not None else 0
        self._closing = True
        self.usage = Usage(usage.prompt, before + usage.output, usage.cached)


def _carries_output(frame: bytes) -> bool:
    """Whether a frame holds output: not the opening frame with the role alone, nor the closing one with the reason."""
    if b'"response.' in frame:  # the Responses API names its events, and repeats in later ones what it has said
        return b'.delta"' in frame
    at = frame.find(b'"content":"')
    if at >= 0 and frame[at + 11 : at + 12] not in (b'"', b""):  # the usual chunk, without the cost of the pattern
        return True
    return _OUTPUT.search(frame) is not None or _SILENT.search(frame) is not None
