"""Plain requests: one call a run, of a length in and a length out, as energy models and request types need."""

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Self

from loadgen import corpus
from loadgen.prompt import Piece
from loadgen.workload import Call, Run


@dataclass(frozen=True)
class Request:
    """Lengths in tokens. The first `shared_tokens` of a prompt are the same in every run, the rest in none.

    The input whose length is a knob is the whole prompt.
    """

    name: ClassVar[str] = "request"

    input_tokens: int = 500
    output_tokens: int = 128
    shared_tokens: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.shared_tokens < self.input_tokens and self.output_tokens >= 1):
            raise ValueError(
                "input_tokens must be above shared_tokens and output_tokens at least 1,"
                f" got {self.input_tokens}, {self.shared_tokens} and {self.output_tokens}"
            )

    @classmethod
    def paper(cls) -> Self:
        return cls()

    @classmethod
    def small(cls) -> Self:
        return cls(input_tokens=100, output_tokens=24)

    def sized(self, input_tokens: int | None = None, output_tokens: int | None = None) -> Self:
        return replace(
            self,
            input_tokens=self.input_tokens if input_tokens is None else input_tokens,
            output_tokens=self.output_tokens if output_tokens is None else output_tokens,
        )

    def plan(self, rng: Random, number: int = 0) -> Run:
        own_tokens = self.input_tokens - self.shared_tokens
        pieces = [Piece(corpus.passage(rng, own_tokens), own_tokens)]
        if self.shared_tokens:
            shared = corpus.passage(Random("shared"), self.shared_tokens)
            pieces.insert(0, Piece(shared, self.shared_tokens, role="system"))
        return Run(self.name, (Call("request", "request", self.output_tokens, tuple(pieces)),))
