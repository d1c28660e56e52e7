"""Every text has its tokens, and the tokens have the text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.server.tokens import BOS, END_OF_TURN, EOS, VOCABULARY, decode, encode, unknown

ROOT = Path(__file__).parents[3]


@given(st.text())
def test_a_text_comes_back(text: str) -> None:
    assert decode(encode(text)) == text


@given(st.text(alphabet=" aAbBzZ.\n", max_size=40))
def test_words_come_back_however_they_are_cased_and_spaced(text: str) -> None:
    tokens = encode(text)
    assert decode(tokens) == text
    assert unknown(tokens) is None and len(set(map(decode, ([token] for token in tokens)))) == len(set(tokens))


@given(st.lists(st.integers(0, VOCABULARY - 1)))
def test_any_tokens_have_a_text(tokens: list[int]) -> None:
    assert isinstance(decode(tokens), str)


def test_english_has_about_four_characters_a_token() -> None:
    text = "".join(path.read_text() for path in sorted((ROOT / "loadgen").rglob("*.md")))
    assert len(text) > 10_000 and 3.5 < len(text) / len(encode(text)) < 4.5


def test_what_stands_for_no_text_says_nothing() -> None:
    assert decode([BOS, *encode("so it is"), END_OF_TURN, EOS]) == "so it is"


def test_what_is_outside_the_vocabulary_is_told() -> None:
    assert unknown([5, VOCABULARY]) == VOCABULARY and unknown([]) is None
    with pytest.raises(ValueError, match="not within the vocabulary"):
        decode([VOCABULARY])
