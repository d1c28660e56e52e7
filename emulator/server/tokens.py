"""The emulated model's tokenizer: no table, and whatever text it splits it puts together again.

A token is up to six letters, of which only the first may be a capital, with the blank before them if there is one; or
any single other character, a byte a token where it is not ASCII. English has about four characters a token so, which
is what real tokenizers make of it. `decode(encode(text)) == text` for every text.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

BOS, EOS = 1, 2
ROLES = {role: 259 + n for n, role in enumerate(("system", "developer", "user", "assistant", "tool", "function"))}
END_OF_TURN = 270  # what ends each message of a conversation

_BYTES = 3  # the first of the 256 tokens of one byte
_WORDS = 300  # the first of the words; between are the tokens that stand for no text
_LETTERS = 6
_BELOW = [sum(26**n for n in range(1, length)) for length in range(_LETTERS + 2)]  # words shorter than `length`
_CASES = _BELOW[_LETTERS + 1]
VOCABULARY = _WORDS + 4 * _CASES

_PIECE = re.compile(r" ?[A-Za-z][a-z]{0,5}|[\s\S]")


def encode(text: str) -> list[int]:
    """The tokens of a text, without any that stands for no text."""
    tokens: list[int] = []
    for piece in _PIECE.findall(text):
        token = _token(piece)
        if token >= 0:
            tokens.append(token)
        else:
            tokens += [_BYTES + byte for byte in piece.encode()]
    return tokens


def decode(tokens: Iterable[int]) -> str:
    """The text of tokens; bytes that are no UTF-8 become U+FFFD. Raises ValueError for one outside the vocabulary."""
    return b"".join(_bytes(token) for token in tokens).decode(errors="replace")


def unknown(tokens: Sequence[int]) -> int | None:
    """The largest token that the vocabulary does not have."""
    largest = max(tokens, default=0)
    return largest if largest >= VOCABULARY else None


@lru_cache(maxsize=1 << 16)
def _token(piece: str) -> int:
    """The token of a piece; -1 for a character that takes a token a byte."""
    blank = len(piece) > 1 and piece[0] == " "
    word = piece[blank:]
    if not (word.isascii() and word.isalpha()):
        return _BYTES + ord(piece) if piece.isascii() else -1
    number = 0
    for letter in word.lower():
        number = 26 * number + ord(letter) - 97
    return _WORDS + 4 * (_BELOW[len(word)] + number) + 2 * blank + word[0].isupper()


@lru_cache(maxsize=1 << 16)
def _bytes(token: int) -> bytes:
    if not 0 <= token < VOCABULARY:
        raise ValueError(f"token {token} is not within the vocabulary of {VOCABULARY}")
    if token < _WORDS:
        return bytes([token - _BYTES]) if _BYTES <= token < _BYTES + 256 else b""
    place, case = divmod(token - _WORDS, 4)
    length = next(n for n in range(1, _LETTERS + 1) if place < _BELOW[n + 1])
    number = place - _BELOW[length]
    letters = bytearray()
    for _ in range(length):
        number, letter = divmod(number, 26)
        letters.append(97 + letter)
    letters.reverse()
    word = bytes(letters).decode()
    return ((" " if case & 2 else "") + (word.capitalize() if case & 1 else word)).encode()
