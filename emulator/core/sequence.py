"""One request inside the engine, from arrival to end."""

from enum import Enum, auto

from emulator.core.cache import Block
from emulator.core.prompt import chain, output_of
from emulator.core.request import Request, Usage


class State(Enum):
    ARRIVING = auto()  # the HTTP server has it
    WAITING = auto()  # queued for the first time, or again after a preemption
    PREFILLING = auto()  # running; not all of its known tokens are in the cache
    DECODING = auto()  # running; one token a step
    ENDED = auto()


class Sequence:
    """Known tokens are the prompt and what was generated before the last admission; `computed` of them are cached.

    A decoding sequence is not touched step by step: the token that ended its prefill counts as generated, and one more
    for each tick of the scheduler's clock since `joined`.
    """

    __slots__ = (
        "arrived_at",
        "cached",
        "chain",
        "computed",
        "ends",
        "first_token_at",
        "generated",
        "joined",
        "last",
        "limit",
        "named",
        "prompt_tokens",
        "rank",
        "reported",
        "request",
        "started_at",
        "state",
    )

    def __init__(self, request: Request, at: float, rank: tuple[float, ...], block_size: int) -> None:
        self.request = request
        self.arrived_at = at
        self.rank = rank  # who goes first has the lower one
        self.chain = chain(request.prompt, block_size, request.cache_salt)
        self.prompt_tokens = self.chain.tokens
        self.limit = request.max_tokens
        self.state = State.ARRIVING
        self.generated = 0  # output tokens among the known ones
        self.computed = 0
        self.last: Block | None = None  # the chain of blocks with known content
        self.named = 0  # their number
        self.joined = self.ends = -1  # the clock when decoding began and when it is to end
        self.reported = 0  # output tokens that events have told of
        self.cached: int | None = None
        self.started_at: float | None = None
        self.first_token_at: float | None = None

    def outputs(self, clock: int) -> int:
        """Output tokens so far."""
        return self.generated + 1 + clock - self.joined if self.state is State.DECODING else self.generated

    def in_cache(self, clock: int) -> int:
        """Tokens whose keys and values are in the cache."""
        return self.computed + clock - self.joined if self.state is State.DECODING else self.computed

    def generated_hashes(self, clock: int) -> list[int]:
        """The hashes of the blocks that filled up while it decoded."""
        tokens = self.generated + self.in_cache(clock) - self.computed
        ids = self.request.output_ids
        more = output_of(self.request.id, tokens) if ids is None else ids[:tokens]
        return self.chain.beyond(more, self.generated)[0]

    def learn(self, outputs: int) -> None:
        """Make what was generated so far known tokens, to be computed again."""
        if outputs > self.generated:
            ids = self.request.output_ids
            more = output_of(self.request.id, outputs) if ids is None else ids[:outputs]
            self.chain = self.chain.then(more, self.generated)
            self.generated = outputs

    def usage(self, clock: int) -> Usage:
        return Usage(self.prompt_tokens, self.cached or 0, self.outputs(clock))
