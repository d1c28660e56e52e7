"""Answers are made of as many tokens as they say, end as they are asked to, and are the same every time."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.server.filler import WORD_TOKENS, WORDS, Answer, Stops, seed_of
from emulator.server.tokens import EOS, decode, encode

EXACTLY = Stops(ignore_eos=True)


def read(answer: Answer, steps: Sequence[int] | None = None) -> list[str]:
    """The text of an answer as it comes, token by token or in the given strides."""
    told, at = [], 0
    for stride in steps or [1] * answer.tokens:
        at = min(answer.tokens, at + stride)
        told.append(answer.take(at))
    return told


def test_every_word_is_one_token() -> None:
    assert len(set(WORDS)) == len(WORDS) == len(WORD_TOKENS)


@given(seed=st.integers(0, 2**64 - 1), limit=st.integers(1, 600))
def test_ignore_eos_gives_exactly_the_limit(seed: int, limit: int) -> None:
    answer = Answer(seed, limit, EXACTLY)
    text = "".join(read(answer))
    assert (answer.tokens, answer.finish_reason, answer.stop_reason) == (limit, "length", None)
    assert encode(text) == answer.token_ids() and len(encode(text)) == limit


@given(seed=st.integers(0, 2**64 - 1), least=st.integers(0, 300))
def test_without_it_the_last_token_says_nothing(seed: int, least: int) -> None:
    answer = Answer(seed, 10**6, Stops(min_tokens=least))
    told = read(answer)
    assert answer.finish_reason == "stop" and told[-1] == "" and answer.tokens > least
    assert answer.token_ids()[-1] == EOS and decode(answer.token_ids()) == "".join(told)
    assert len(encode("".join(told))) == answer.tokens - 1


@given(seed=st.integers(0, 99), steps=st.lists(st.integers(1, 9), min_size=120, max_size=120), keep=st.booleans())
def test_a_stop_string_ends_the_answer_where_it_stands(seed: int, steps: list[int], keep: bool) -> None:
    whole = "".join(read(Answer(seed, 100, EXACTLY)))
    stop = whole[200:207]
    answer = Answer(seed, 100, Stops(strings=("no such", stop), keep=keep, ignore_eos=True))
    told = read(answer, steps)
    text = "".join(told)
    assert text == whole[: whole.index(stop) + len(stop) * keep]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert encode(whole[: whole.index(stop) + len(stop)])[:-1] == answer.token_ids()[:-1]


def test_no_stop_string_is_seen_in_the_first_tokens() -> None:
    first = WORDS[Answer(3, 10, EXACTLY)._at]
    answer = Answer(3, 300, Stops(strings=(first,), ignore_eos=True, min_tokens=1))
    assert answer.tokens == 1 + len(WORDS) and answer.stop_reason == first


def test_a_stop_token_ends_the_answer() -> None:
    ids = Answer(3, 10, EXACTLY).token_ids()
    answer = Answer(3, 10, Stops(tokens={ids[4]}, ignore_eos=True))
    assert (answer.tokens, answer.finish_reason, answer.stop_reason) == (5, "stop", ids[4])
    assert "".join(read(answer)) == decode(ids[:4]) and answer.token_ids() == ids[:5]


def test_a_seed_follows_from_all_that_it_is_made_of() -> None:
    seeds = {seed_of(*each) for each in ((0, None, [1], 0), (1, None, [1], 0), (0, 7, [1], 0), (0, None, [2], 0))}
    assert len(seeds | {seed_of(0, None, [1], 1)}) == 5
    assert seed_of(0, None, [1, 2], 0) == seed_of(0, 0, [1, 2], 0)


@pytest.mark.parametrize("limit", [1, 50])
def test_a_short_limit_cuts_an_answer_short(limit: int) -> None:
    seed = next(seed for seed in range(100) if Answer(seed, 10**6, Stops()).tokens > 50)
    assert Answer(seed, limit, Stops()).finish_reason == "length"
