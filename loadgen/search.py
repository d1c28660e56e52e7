"""LLM-powered search: a long static system prompt before every query, and queries that do not need each other."""

from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import ClassVar, Self

from loadgen import corpus
from loadgen.own import texts_of
from loadgen.prompt import Piece
from loadgen.workload import Call, Run

PARTS = ("role", "safety", "domains", "examples")


@dataclass(frozen=True)
class Search:
    """Lengths in approximate tokens.

    A run is one person's session: a number of different queries drawn from `queries`, `in_flight` of them at a time (at
    one, the next query is asked when the last is answered), each answer at most `output_tokens`. The system prompt is
    `system_tokens` long and the same in every call of every run: it is the input whose length is a knob. `texts` is a
    file of other queries (`loadgen.own`).
    """

    name: ClassVar[str] = "search"

    system_tokens: int = 3000
    output_tokens: int = 800
    queries: tuple[int, int] = (2, 8)
    in_flight: int = 1
    texts: str = ""

    def __post_init__(self) -> None:
        low, high = self.queries
        most = len(self._asked())
        if not 1 <= low <= high <= most:
            raise ValueError(f"queries must be a range within 1-{most}, got {low}-{high}")
        if self.in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, got {self.in_flight}")
        if self.output_tokens < 1:
            raise ValueError(f"output_tokens must be at least 1, got {self.output_tokens}")
        system_prompt(self.system_tokens)

    @classmethod
    def paper(cls) -> Self:
        return cls()

    @classmethod
    def small(cls) -> Self:
        return cls(system_tokens=250, output_tokens=32, queries=(2, 4))

    def sized(self, input_tokens: int | None = None, output_tokens: int | None = None) -> Self:
        return replace(
            self,
            system_tokens=self.system_tokens if input_tokens is None else input_tokens,
            output_tokens=self.output_tokens if output_tokens is None else output_tokens,
        )

    def plan(self, rng: Random, number: int = 0) -> Run:
        return Run(self.name, tuple(self.session(rng)))

    def session(self, rng: Random) -> list[Call]:
        """The calls of one session."""
        asked = rng.sample(self._asked(), rng.randint(*self.queries))
        system = Piece(system_prompt(self.system_tokens), self.system_tokens, role="system")
        return [
            Call(
                node=f"query-{number}",
                step="query",
                max_tokens=self.output_tokens,
                prompt=(system, Piece(query)),
                after=(f"query-{number - self.in_flight}",) if number > self.in_flight else (),
            )
            for number, query in enumerate(asked, start=1)
        ]

    def _asked(self) -> tuple[str, ...]:
        return texts_of(self.texts) if self.texts else all_queries()


@cache
def all_queries() -> tuple[str, ...]:
    return tuple(corpus.read("search/queries.txt").splitlines())


@cache
def system_prompt(max_tokens: int) -> str:
    """Role, safety guidelines, domain instructions and few-shot examples, of at most `max_tokens`.

    Each part gives its first paragraph; then the parts add one paragraph in turn while there is room. Raises ValueError
    for a length that the shipped parts cannot fill, or that has no room for the four first paragraphs.
    """
    parts = [corpus.read(f"search/{part}.md").split("\n\n") for part in PARTS]
    whole = corpus.tokens(_joined(parts))
    least = corpus.tokens(_joined([part[:1] for part in parts]))
    if not least <= max_tokens <= whole:
        raise ValueError(f"system_tokens must be within {least}-{whole}, what the shipped prompt has, got {max_tokens}")
    kept = [1] * len(parts)
    growing = list(range(len(parts)))
    while growing:
        for part in tuple(growing):
            kept[part] += 1
            taken = [paragraphs[:count] for paragraphs, count in zip(parts, kept, strict=True)]
            if kept[part] > len(parts[part]) or corpus.tokens(_joined(taken)) > max_tokens:
                kept[part] -= 1
                growing.remove(part)
    return _joined([paragraphs[:count] for paragraphs, count in zip(parts, kept, strict=True)])


def _joined(parts: list[list[str]]) -> str:
    return "\n\n".join("\n\n".join(paragraphs) for paragraphs in parts)
