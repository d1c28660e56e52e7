"""The bodies of requests, as vLLM 0.32 reads them: what it checks, in its order and words.

Fields that vLLM does not know are ignored, as it does. A field that it honours and an emulated engine cannot (log
probabilities, constrained output) is refused: see `refuse_what_is_not_emulated`.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emulator.server.refusal import Refusal, invalid, malformed, not_emulated

_INT64 = 2**63
_MOST_CHOICES = 16384
_MOST_PROMPTS = 1024
_SALT_CHARACTERS = 128

Int64 = Annotated[int, Field(ge=-_INT64, le=_INT64 - 1)]
Token = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Sampled(Body):
    """What chat and completions have in common."""

    seed: Int64 | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=_INT64 - 1)] | None = None
    priority: Int64 = 0
    request_id: str | None = None
    cache_salt: str | None = None

    @property
    def choices(self) -> int:
        raise NotImplementedError

    @property
    def limit(self) -> tuple[str, int | None]:
        """The field that bounds the answer, and its value."""
        raise NotImplementedError

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_usage_always(self) -> bool:
        return self.wants_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionRequest(Sampled):
    prompt: list[Token] | list[list[Token]] | str | list[str] | None = None
    echo: bool | None = False
    max_tokens: int | None = 16
    n: int = 1
    suffix: str | None = None
    add_special_tokens: bool = True

    @property
    def choices(self) -> int:
        return self.n

    @property
    def limit(self) -> tuple[str, int | None]:
        return "max_tokens", self.max_tokens


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(Sampled):
    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = 1
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    echo: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @property
    def choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def limit(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens


class TokenizeRequest(Body):
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = False


class DetokenizeRequest(Body):
    tokens: list[Token]


AnyBody = TypeVar("AnyBody", bound=Body)


def parse(kind: type[AnyBody], content_type: str, raw: bytes) -> AnyBody:
    """The body as `kind`. Raises Refusal."""
    if content_type.split(";", 1)[0].strip().lower() != "application/json":
        raise malformed(["Unsupported Media Type: Only 'application/json' is allowed"])
    if not raw:
        raise malformed([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        place = ("body", error.pos)
        reason = {"type": "json_invalid", "loc": place, "msg": "JSON decode error", "input": {}}
        raise malformed([{**reason, "ctx": {"error": error.msg}}]) from None
    if isinstance(data, dict):
        if issubclass(kind, Sampled):
            _check_together(kind, data)
        if kind is TokenizeRequest and data.get("prompt") is None and data.get("messages") is None:
            raise malformed([{"type": "missing", "loc": ("body", "prompt"), "msg": "Field required", "input": data}])
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise malformed([{**each, "loc": ("body", *each["loc"])} for each in errors]) from None


def _check_together(kind: type[Sampled], data: dict[str, Any]) -> None:
    """What vLLM looks at before it looks at single fields."""
    refuse_what_is_not_emulated(data)
    salt = data.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise invalid("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    if salt is not None and (len(salt) > _SALT_CHARACTERS or any(character in "@/\\\x00" for character in salt)):
        message = "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\\\', or NUL."
        raise invalid(message, "cache_salt")
    if data.get("stream_options") and not data.get("stream"):
        raise invalid("Stream options can only be defined when `stream=True`.", "stream_options")
    if kind is CompletionRequest:
        _check_prompt(data)
    else:
        _check_tools(data)
        if data.get("continue_final_message") and data.get("add_generation_prompt"):
            raise invalid("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")


def _check_prompt(data: dict[str, Any]) -> None:
    if "max_tokens" in data and data["max_tokens"] is None:
        del data["max_tokens"]  # the default holds
    prompt = data.get("prompt")
    if prompt is None or prompt == "":
        raise invalid("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    of_tokens = isinstance(prompt, list) and all(isinstance(each, int) for each in prompt)
    if isinstance(prompt, list) and not of_tokens and len(prompt) > _MOST_PROMPTS:
        message = f"prompt list length {len(prompt)} exceeds the maximum allowed count of {_MOST_PROMPTS}."
        raise invalid(message, "prompt")


def _check_tools(data: dict[str, Any]) -> None:
    tools, choice = data.get("tools"), data.get("tool_choice", "auto" if data.get("tools") else "none")
    if tools == []:
        message = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        raise invalid(message, "tools")
    if choice in (None, "none"):
        return
    if tools is None:
        raise invalid("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if choice == "auto":
        message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        raise Refusal(message)
    name = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    wanted = f'function "{name}"' if name else f'"{choice}"'
    raise Refusal(f"tool_choice={wanted} requires --tool-call-parser to be set")


def check_sampling(request: Sampled, max_tokens: int) -> None:
    """The ranges of vLLM's sampling parameters. Raises Refusal for the first that is out of its own."""
    number = request.choices
    if number < 1:
        raise invalid(f"n must be at least 1, got {number}.")
    if number > _MOST_CHOICES:
        raise invalid(
            f"n must be at most {_MOST_CHOICES}, got {number}. "
            "To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."
        )
    for name in ("presence_penalty", "frequency_penalty"):
        penalty = getattr(request, name)
        if penalty is not None and not -2 <= penalty <= 2:
            raise invalid(f"{name} must be in [-2, 2], got {penalty}.")
    if (repetition := request.repetition_penalty) is not None:
        if not math.isfinite(repetition):
            raise invalid(f"repetition_penalty must be a finite number, got {repetition}.")
        if repetition <= 0:
            raise invalid(f"repetition_penalty must be greater than zero, got {repetition}.")
    temperature = 1.0 if request.temperature is None else request.temperature
    if not math.isfinite(temperature):
        raise invalid(f"temperature must be a finite number, got {temperature}.", "temperature", temperature)
    if temperature < 0:
        raise invalid(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if temperature > 2:
        raise invalid(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise invalid(f"top_p must be in (0, 1], got {request.top_p}.", "top_p", request.top_p)
    if request.top_k is not None and request.top_k < -1:
        raise invalid(f"top_k must be 0 (disable), or at least 1, got {request.top_k}.")
    if request.min_p is not None and not 0 <= request.min_p <= 1:
        raise invalid(f"min_p must be in [0, 1], got {request.min_p}.")
    if max_tokens < 1:
        raise invalid(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens)
    if request.min_tokens < 0:
        raise invalid(f"min_tokens must be greater than or equal to 0, got {request.min_tokens}.")
    if request.min_tokens > max_tokens:
        least = request.min_tokens
        raise invalid(f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {least}.")
    if any(not string for string in request.stop_strings):
        raise invalid("stop cannot contain an empty string.")
    if temperature < 1e-5 and number > 1:
        raise invalid(f"n must be 1 when using greedy sampling, got {number}.")


_NO_PROBABILITIES = "the answer is filler, and nothing has a probability"
_NO_CHOICE = "the answer is filler, and no word of it can be asked for"
_NOT_EMULATED = {
    "logprobs": _NO_PROBABILITIES,
    "top_logprobs": _NO_PROBABILITIES,
    "prompt_logprobs": _NO_PROBABILITIES,
    "logprob_token_ids": _NO_PROBABILITIES,
    "logit_bias": _NO_CHOICE,
    "allowed_token_ids": _NO_CHOICE,
    "bad_words": _NO_CHOICE,
    "structured_outputs": _NO_CHOICE,
    "use_beam_search": _NO_CHOICE,
    "prompt_embeds": "there is no model that they would mean something to",
    "return_token_ids": "ask /tokenize",
    "return_prompt_text": "ask /tokenize and /detokenize",
}


def refuse_what_is_not_emulated(data: Mapping[str, Any]) -> None:
    """Raise Refusal for a field that would change what the caller gets, were it a real engine."""
    for name, why in _NOT_EMULATED.items():
        value = data.get(name)
        if value or (name == "logprobs" and value is not None and value is not False):  # completions: 0 asks for one
            raise not_emulated(name, why)
    form = data.get("response_format")
    if isinstance(form, Mapping) and form.get("type") != "text":
        raise not_emulated("response_format", _NO_CHOICE)
