"""Document chain summarization: each call refines the running summary with the next chunk of one long document."""

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Self

from loadgen import corpus
from loadgen.own import texts_of
from loadgen.prompt import Piece
from loadgen.workload import Call, Run

INSTRUCTION = "You summarize long documents part by part. Answer with the summary alone, in plain sentences."


@dataclass(frozen=True)
class Summarize:
    """Lengths in approximate tokens.

    A run reads one of `documents` documents, cut at a length drawn from `document_tokens`, in chunks of at most
    `chunk_tokens`: a call a chunk, each answer at most `output_tokens`. The paper's third question (ten documents of
    more than 36,000 tokens) is `replace(Summarize.paper(), document_tokens=(42_000, 44_000))`, enough for tokenizers
    that make fewer tokens of a text, with chunks of 500-2000 and outputs of 25-100. The input whose length is a knob is
    the chunk. `texts` is a file or folder of other documents (`loadgen.own`), cut but never made longer; `documents`
    then says how many of them are read.
    """

    name: ClassVar[str] = "summarize"

    chunk_tokens: int = 1000
    output_tokens: int = 50
    document_tokens: tuple[int, int] = (1_900, 39_000)
    documents: int = 10
    texts: str = ""

    def __post_init__(self) -> None:
        low, high = self.document_tokens
        if not self.chunk_tokens <= low <= high:
            raise ValueError(
                f"document_tokens must be a range from at least one chunk ({self.chunk_tokens}), got {low}-{high}"
            )

        if self.documents < 1 or self.output_tokens < 1:
            raise ValueError("documents and output_tokens must be at least 1")

    @classmethod
    def paper(cls) -> Self:
        return cls()

    @classmethod
    def small(cls) -> Self:
        return cls(chunk_tokens=120, output_tokens=24, document_tokens=(320, 400))

    def sized(self, input_tokens: int | None = None, output_tokens: int | None = None) -> Self:
        return replace(
            self,
            chunk_tokens=self.chunk_tokens if input_tokens is None else input_tokens,
            output_tokens=self.output_tokens if output_tokens is None else output_tokens,
        )

    def plan(self, rng: Random, number: int = 0) -> Run:
        index, length_tokens = rng.randrange(self.documents), rng.randint(*self.document_tokens)
        if self.texts:
            texts = texts_of(self.texts)
            sentences = corpus.sentences(corpus.clip(texts[index % len(texts)], length_tokens))
        else:
            sentences = corpus.document(index, length_tokens)
        return Run(self.name, tuple(self.chain(corpus.chunks(sentences, self.chunk_tokens))))

    def chain(self, chunks: list[str]) -> list[Call]:
        """One call a chunk, each with the answer of the one before it as the summary so far."""
        calls: list[Call] = []
        for number, chunk in enumerate(chunks, start=1):
            previous = calls[-1].node if calls else None
            # Chunks end with a sentence, so a little before their length; only the last one is meant to be shorter.
            length = self.chunk_tokens if number < len(chunks) else corpus.tokens(chunk)
            part = Piece(chunk, length)
            calls.append(
                Call(
                    node=f"chunk-{number}",
                    step="chunk",
                    max_tokens=self.output_tokens,
                    prompt=(Piece(INSTRUCTION, role="system"), *_request(part, previous, self.output_tokens)),
                    parents=(previous,) if previous else (),
                )
            )
        return calls


def _request(part: Piece, previous: str | None, summary_tokens: int) -> tuple[Piece, ...]:
    if previous is None:
        return Piece("Summarize this first part of a document.\n\n"), part, Piece("\n\nSummary:")
    return (
        Piece("Summary so far:\n"),
        Piece(tokens=summary_tokens, answer_of=previous),
        Piece("\n\nNext part:\n"),
        part,
        Piece("\n\nRewrite the summary so that it also covers what matters in the next part.\n\nSummary:"),
    )
