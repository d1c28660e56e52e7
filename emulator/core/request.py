"""Requests as the engine knows them, and how they ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from emulator.core.prompt import Prompt

Ended = Literal["length", "abort"]
Refusal = Literal["queue_full", "too_long"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `max_tokens` are generated, unless the model's context ends before or it is cancelled.

    `id` is unique over all time: a generated block is known by it. Where prompts are token ids, `output_ids` may say
    which ids will be generated (at least `max_tokens` of them), so that a later prompt which repeats them finds them
    cached. A lower `priority` goes first, where the policy is priority.
    """

    id: str
    prompt: Prompt
    max_tokens: int
    priority: int = 0
    cache_salt: str | None = None
    output_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is at least 1, not {self.max_tokens}")
        if self.output_ids is not None and len(self.output_ids) < self.max_tokens:
            raise ValueError(f"output_ids are {len(self.output_ids)}, but {self.max_tokens} may be generated")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens; `cached` of the prompt's were found in the cache when the request first ran."""

    prompt: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True)
class Started:
    """The request was scheduled for the first time."""

    request_id: str
    at: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """`count` more tokens, the last of them at `at`."""

    request_id: str
    count: int
    at: float


@dataclass(frozen=True, slots=True)
class Preempted:
    """The request lost its blocks to others; it goes on later, and what it had is computed again."""

    request_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Finished:
    """All tokens are there, or it was cancelled. Times are seconds of the machine's clock; None: never came to that."""

    request_id: str
    at: float
    reason: Ended
    usage: Usage
    arrived_at: float
    started_at: float | None
    first_token_at: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """`queue_full`: the engine has as many requests as it may (vLLM's 503). `too_long`: the prompt leaves no room."""

    request_id: str
    at: float
    reason: Refusal


Event = Started | Tokens | Preempted | Finished | Refused
