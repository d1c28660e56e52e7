"""From an OpenAI request to a semantic call: its text, its sampling, and a clear no to what cannot pass. Sans-I/O.

Parrot carries text and nothing else. Behind an egress the engine gets the client's own request, so what shapes the text
(`seed`, `logit_bias`, an engine's own keys) passes; what makes more of an answer than one text does not. Parrot's
`builtin` engine gets what its sampling configuration has a place for, and every other key is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PATHS = (CHAT, COMPLETIONS)
_COOLEST = 0.01  # Parrot's sampler divides by the temperature, and its engine ends of a zero
MOST_TOKENS = 512  # of an answer whose length nobody bounds, on the `builtin` engine: Parrot's own default

_ENDLESS = 10**9  # as long as anybody can mean, and no longer than JSON can say

_BUILTIN = frozenset(
    (
        *("model", "messages", "prompt", "stream", "stream_options", "temperature", "top_p"),
        *("max_tokens", "max_completion_tokens", "stop", "stop_token_ids", "ignore_eos", "presence_penalty"),
        *("frequency_penalty", "n", "best_of", "user", "metadata", "session_id", "store", "logprobs"),
        *("top_logprobs", "response_format", "modalities", "tools", "tool_choice"),
    )
)
_STRUCTURED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")
_MORE_THAN_TEXT = (
    *("audio", "web_search_options", "functions", "function_call", "echo", "suffix", *_STRUCTURED),
    *("return_token_ids", "return_tokens_as_token_ids"),
)


class Unspeakable(ValueError):
    """A request that cannot pass Parrot; `param` is the part of it that cannot."""

    def __init__(self, message: str, param: str | None, code: str = "unsupported_by_parrot") -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True, slots=True)
class Stop:
    """Where an answer ends; Parrot's engines cannot be told, so its text is cut afterwards."""

    strings: tuple[str, ...]

    def cut(self, text: str) -> str:
        ends = [at for string in self.strings if (at := text.find(string)) >= 0]
        return text[: min(ends)] if ends else text


def check(path: str, body: Mapping[str, Any], builtin: bool) -> None:
    """Raises Unspeakable for what Parrot would lose, or could not do."""
    if path not in PATHS:
        raise Unspeakable(f"{path} cannot pass Parrot, which carries text alone; use {CHAT} or {COMPLETIONS}", None)
    if body.get("tools") and body.get("tool_choice") != "none":
        raise Unspeakable("tools cannot pass Parrot, which carries text alone", "tools")
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise Unspeakable(f"{name} must be 1 on Parrot: a semantic call has one output", name)
    for name, none in (("logprobs", False), ("top_logprobs", 0), ("prompt_logprobs", None)):
        value = body.get(name)
        if value is not None and (value != none or type(value) is not type(none)):  # 0 logprobs are the token's own
            raise Unspeakable(f"{name} cannot pass Parrot, which carries text alone", name)
    form = body.get("response_format")
    if form is not None and form != {"type": "text"}:
        raise Unspeakable(
            "structured output cannot pass Parrot; response_format must be {'type': 'text'}", "response_format"
        )
    if body.get("modalities") not in (None, ["text"]):
        raise Unspeakable("modalities must be ['text'] on Parrot", "modalities")
    for name in _MORE_THAN_TEXT:
        if body.get(name):
            raise Unspeakable(f"{name} cannot pass Parrot, which carries text alone", name)
    if builtin and (unknown := sorted(body.keys() - _BUILTIN)):
        raise Unspeakable(f"{unknown[0]} is nothing that Parrot's builtin engine knows", unknown[0])


def texts(path: str, body: Mapping[str, Any], builtin: bool = False) -> list[str]:
    """What the request says, as the texts of one prompt: a message each, with its role, or the prompt as it is.

    A prompt of token ids is shown to Parrot as their numbers: the engine behind an egress gets the ids themselves.
    Raises Unspeakable for what is no text.
    """
    if path == COMPLETIONS:
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, list) and prompt and not builtin and all(isinstance(one, int) for one in prompt):
            return [" ".join(map(str, prompt))]
        if not isinstance(prompt, str) or not prompt:
            raise Unspeakable("prompt must be one text on Parrot: a semantic call has one output", "prompt")
        return [prompt]
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Unspeakable("messages must be a list of at least one message", "messages", "invalid_value")
    return [_said(message, n) for n, message in enumerate(messages)] + ["assistant: "]


def sampling(body: Mapping[str, Any], stop: Sequence[str] = ()) -> dict[str, Any]:
    """Parrot's words for how to sample; `stop` is what its engine is to be told as the ends of an answer.

    Raises Unspeakable for what is no number where Parrot needs one: its engine would end of it.
    """
    key = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    said: dict[str, Any] = {"max_gen_length": min(max(1, int(_number(key, body.get(key) or MOST_TOKENS))), _ENDLESS)}
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        if body.get(name) is not None:
            said[name] = float(_number(name, body[name]))
    if stop:
        said["stop_str"] = list(stop)
    return said


def builtin_sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same for Parrot's own engine, which samples by it. Raises Unspeakable."""
    said = sampling(body)
    said["temperature"] = max(_COOLEST, said.get("temperature", 1.0))
    if body.get("ignore_eos"):
        said["ignore_tokenizer_eos"] = True
    ids = body.get("stop_token_ids") or []
    if not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
        raise Unspeakable("stop_token_ids must be a list of numbers", "stop_token_ids", "invalid_value")
    if ids:
        said["stop_token_ids"] = ids
    return said


def stop_of(body: Mapping[str, Any]) -> Stop:
    stop = body.get("stop")
    strings = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return Stop(tuple(string for string in strings if isinstance(string, str) and string))


def _number(name: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unspeakable(f"{name} must be a number", name, "invalid_value")
    return value


def _said(message: Any, n: int) -> str:
    where = f"messages[{n}]"
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(role, str):
        raise Unspeakable(f"{where} must be an object with a role", "messages", "invalid_value")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise Unspeakable(f"{where}: tools cannot pass Parrot, which carries text alone", "messages")
    return f"{role}: {_content(message.get('content'), where)}\n\n"


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    said: list[str] = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise Unspeakable(f"{where}: only text can pass Parrot, not {str(kind)[:40]}", "messages")
        said.append(part["text"])
    return "".join(said)
