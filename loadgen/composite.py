"""Composite: a document chain and a search session at once, contending for one deployment."""

from dataclasses import dataclass, field
from random import Random
from typing import ClassVar, Self

from loadgen.search import Search
from loadgen.summarize import Summarize
from loadgen.workload import Run


@dataclass(frozen=True)
class Composite:
    """A run is one document summarized while one search session goes on beside it; steps keep the parts apart.

    The lengths that are knobs are those of both parts.
    """

    name: ClassVar[str] = "composite"

    summarize: Summarize = field(default_factory=Summarize.paper)
    search: Search = field(default_factory=Search.paper)

    @classmethod
    def paper(cls) -> Self:
        return cls()

    @classmethod
    def small(cls) -> Self:
        return cls(Summarize.small(), Search.small())

    def sized(self, input_tokens: int | None = None, output_tokens: int | None = None) -> Self:
        lengths = (input_tokens, output_tokens)
        return type(self)(self.summarize.sized(*lengths), self.search.sized(*lengths))

    def plan(self, rng: Random, number: int = 0) -> Run:
        return Run(self.name, (*self.summarize.plan(rng).calls, *self.search.plan(rng).calls))
