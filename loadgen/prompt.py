"""What a prompt is made of: texts, and answers of earlier calls, each with the length that it should have.

The same pieces give a chat's messages, token ids of exactly those lengths, or what the emulator knows a prompt by. In a
chat an answer is cut as the piece says, or stands there whole, or is named for a gateway that puts it there (whole).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from loadgen import corpus

Message = dict[str, str]
Outputs = Mapping[str, str]  # node -> its answer
_OPENING = "{{node:"  # of a gateway's placeholder


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

    def said(piece: Piece) -> str:
        text = piece.text if piece.answer_of is None else outputs[piece.answer_of].strip()
        return text if piece.tokens is None else corpus.clip(text, piece.tokens)

    return _chat(pieces, said)


def whole_messages(pieces: Sequence[Piece], outputs: Outputs, text_of: Callable[[Piece], str]) -> list[Message]:
    """A chat with whole answers; `text_of` makes the text of every other piece."""
    return _chat(pieces, lambda piece: text_of(piece) if piece.answer_of is None else outputs[piece.answer_of])


def named_messages(pieces: Sequence[Piece], text_of: Callable[[Piece], str]) -> list[Message]:
    """The same chat with a placeholder for every answer, which a gateway fills in; a text that has one is escaped."""

    def said(piece: Piece) -> str:
        if piece.answer_of is None:
            return text_of(piece).replace(_OPENING, "\\" + _OPENING)
        return f"{_OPENING}{piece.answer_of}}}}}"

    return _chat(pieces, said)


def about(piece: Piece) -> str:
    """The text of a piece, cut to about its length."""
    return piece.text if piece.tokens is None else corpus.clip(piece.text, piece.tokens)


def about_tokens(piece: Piece) -> int:
    """How long a piece is, or may become, where no tokenizer says it: four characters a token."""
    return piece.tokens if piece.tokens is not None else corpus.tokens(piece.text)


def _chat(pieces: Sequence[Piece], said: Callable[[Piece], str]) -> list[Message]:
    return [
        {"role": role, "content": "".join(said(piece) for piece in together)}
        for role, together in groupby(pieces, key=lambda piece: piece.role)
    ]
