"""Prompts of exact lengths: token ids, as the engine's own tokenizer makes them of a prompt's pieces, or their text.

A text that should have a length is cut to it, or filled up with other sentences; an answer is cut, and never filled.
The ids of a text are asked for once, so that a prefix which many prompts share is the same ids in all of them. Texts
are of the same lengths piece by piece: where two pieces meet, the tokenizer may make a token more or less of them.
"""

from collections.abc import Callable
from functools import lru_cache
from random import Random

from loadgen import corpus
from loadgen.prompt import Outputs, Piece
from loadgen.workload import Call

KEPT_TEXTS = 4096
FILLER_TOKENS = 1000


class Lengths:
    """`tokenize` gives the ids of a text, without any that only begin or end one, `detokenize` the text of ids.

    What they raise goes through.
    """

    def __init__(self, tokenize: Callable[[str], list[int]], detokenize: Callable[[list[int]], str]) -> None:
        self._ids = lru_cache(KEPT_TEXTS)(tokenize)
        self._detokenize = detokenize
        self._texts = lru_cache(KEPT_TEXTS)(self._text)

    def prompt(self, call: Call, outputs: Outputs) -> list[int]:
        """The ids of a call's prompt."""
        return [token for piece in call.prompt for token in self._of(piece, outputs)]

    def text(self, piece: Piece) -> str:
        """The text of a piece that is one, of its length."""
        return piece.text if piece.tokens is None else self._texts(piece.text, piece.tokens)

    def learn(self, text: str) -> None:
        """Ask for the ids of a text once, before many calls need them at the same time."""
        self._ids(text)

    def _of(self, piece: Piece, outputs: Outputs) -> list[int]:
        if piece.answer_of is not None:
            answer = outputs[piece.answer_of]
            return self._ids(answer)[: piece.tokens] if answer else []
        ids = self._ids(piece.text)
        return ids if piece.tokens is None else self._exactly(ids, piece.tokens)

    def _text(self, text: str, tokens: int) -> str:
        ids = self._ids(text)
        return text if len(ids) == tokens else self._detokenize(self._exactly(ids, tokens))

    def _exactly(self, ids: list[int], tokens: int) -> list[int]:
        while len(ids) < tokens:
            filler = self._ids(_filler())
            if not filler:
                raise ValueError("the tokenizer makes no tokens of a text")
            ids = ids + filler[: tokens - len(ids)]
        return ids[:tokens]


def _filler() -> str:
    return " " + corpus.passage(Random("filler"), FILLER_TOKENS)
