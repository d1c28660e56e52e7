"""Document chain summarization: each call refines the running summary with the next chunk of one long document."""

from dataclasses import dataclass
from functools import partial
from random import Random
from typing import ClassVar, Self

from loadgen import corpus
from loadgen.workload import Call, Message, Outputs, Run

INSTRUCTION = "You summarize long documents part by part. Answer with the summary alone, in plain sentences."


@dataclass(frozen=True)
class Summarize:
    """Lengths in approximate tokens.

    A run reads one of `documents` documents, cut at a length drawn from `document_tokens`, in chunks of at most
    `chunk_tokens`: a call a chunk, each answer at most `output_tokens`. The paper's third question (ten documents of
    more than 36,000 tokens) is `replace(Summarize.paper(), document_tokens=(42_000, 44_000))`, enough for tokenizers
    that make fewer tokens of a text, with chunks of 500-2000 and outputs of 25-100.
    """

    name: ClassVar[str] = "summarize"

    chunk_tokens: int = 1000
    output_tokens: int = 50
    document_tokens: tuple[int, int] = (1_900, 39_000)
    documents: int = 10

    def __post_init__(self) -> None:
        low, high = self.document_tokens
        if not self.chunk_tokens <= low <= high:
            raise ValueError(
                f"document_tokens must be a range from at least one chunk ({self.chunk_tokens}), got {low}-{high}"
            )

    @classmethod
    def paper(cls) -> Self:
        return cls()

    @classmethod
    def small(cls) -> Self:
        return cls(chunk_tokens=120, output_tokens=24, document_tokens=(320, 400))

    def plan(self, rng: Random, number: int = 0) -> Run:
        sentences = corpus.document(rng.randrange(self.documents), rng.randint(*self.document_tokens))
        return Run(self.name, tuple(chain(corpus.chunks(sentences, self.chunk_tokens), self.output_tokens)))


def chain(chunks: list[str], output_tokens: int) -> list[Call]:
    """One call a chunk, each with the answer of the one before it as the summary so far."""
    calls: list[Call] = []
    for number, chunk in enumerate(chunks, start=1):
        previous = calls[-1].node if calls else None
        calls.append(
            Call(
                node=f"chunk-{number}",
                step="chunk",
                max_tokens=output_tokens,
                messages=partial(_prompt, chunk, previous),
                parents=(previous,) if previous else (),
            )
        )
    return calls


def _prompt(chunk: str, previous: str | None, outputs: Outputs) -> list[Message]:
    if previous is None:
        request = f"Summarize this first part of a document.\n\n{chunk}\n\nSummary:"
    else:
        request = (
            f"Summary so far:\n{outputs[previous].strip()}\n\nNext part:\n{chunk}\n\n"
            "Rewrite the summary so that it also covers what matters in the next part.\n\nSummary:"
        )
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": request}]
