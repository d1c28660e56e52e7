"""What a prompt is made of: texts, and answers of earlier calls, each with the length that it should have.

The same pieces give a chat's messages, token ids of exactly those lengths, or what the emulator knows a prompt by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from loadgen import corpus

Message = dict[str, str]
Outputs = Mapping[str, str]  # node -> its answer


@dataclass(frozen=True, slots=True)
class Piece:
    """A text, or where `answer_of` names a node, that call's answer.

    `tokens` is how long a text should be, whatever the tokenizer (None: as long as it happens to be), and the most that
    is taken of an answer. Pieces stand one behind the other as they are: blanks between them are part of a piece.
    """

    text: str = ""
    tokens: int | None = None
    answer_of: str | None = None
    role: str = "user"

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"a piece of a prompt has at least 1 token, got {self.tokens}")
        if bool(self.text) is (self.answer_of is not None):
            raise ValueError("a piece of a prompt is either a text or the answer of a call")


def messages(pieces: Sequence[Piece], outputs: Outputs) -> list[Message]:
    """A chat: pieces of one role that stand together are one message. Lengths are those of `corpus.clip`."""
    return [
        {"role": role, "content": "".join(_text(piece, outputs) for piece in together)}
        for role, together in groupby(pieces, key=lambda piece: piece.role)
    ]


def about_tokens(piece: Piece) -> int:
    """How long a piece is, or may become, where no tokenizer says it: four characters a token."""
    return piece.tokens if piece.tokens is not None else corpus.tokens(piece.text)


def _text(piece: Piece, outputs: Outputs) -> str:
    text = piece.text if piece.answer_of is None else outputs[piece.answer_of].strip()
    return text if piece.tokens is None else corpus.clip(text, piece.tokens)
