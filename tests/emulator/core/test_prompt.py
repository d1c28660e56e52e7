"""Blocks are the same exactly if their tokens and all before them are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.core.prompt import Text, chain, output_of

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@settings(deadline=None)
@given(one=IDS, other=IDS, size=st.integers(1, 5))
def test_hashes_agree_as_long_as_the_tokens_do(one: list[int], other: list[int], size: int) -> None:
    a, b = chain(one, size), chain(other, size)
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    for at in range(min(len(a.hashes), len(b.hashes))):
        assert (a.hashes[at] == b.hashes[at]) == ((at + 1) * size <= same)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5), size=st.integers(1, 16))
def test_every_full_block_has_a_hash(lengths: list[int], size: int) -> None:
    whole = chain([Text(key, tokens) for key, tokens in enumerate(lengths)], size)
    assert whole.tokens == sum(lengths)
    assert len(whole.hashes) == sum(lengths) // size
    assert len(set(whole.hashes)) == len(whole.hashes)


def test_a_shared_head_gives_the_same_blocks_and_what_follows_does_not() -> None:
    a = chain([Text("head", 40), Text("a", 40)], 16)
    b = chain([Text("head", 40), Text("b", 40)], 16)
    assert [x == y for x, y in zip(a.hashes, b.hashes, strict=True)] == [True, True, False, False, False]


def test_a_longer_text_of_the_same_name_begins_as_the_shorter_one() -> None:
    short, long = chain([Text("book", 33)], 16), chain([Text("book", 64)], 16)
    assert long.hashes[:2] == short.hashes


def test_the_salt_is_in_every_block() -> None:
    plain, salted = chain([Text("head", 64)], 16), chain([Text("head", 64)], 16, salt="tenant")
    assert not set(plain.hashes) & set(salted.hashes)


@pytest.mark.parametrize("prompt", [[Text("head", 40)], list(range(40))])
def test_a_prompt_that_goes_on_with_an_output_has_its_blocks(prompt: list) -> None:
    if isinstance(prompt[0], Text):
        generated, follow_up = output_of("r1", 50), [*prompt, output_of("r1", 50), Text("more", 10)]
    else:
        generated = list(range(100, 150))
        follow_up = [*prompt, *generated, 7, 8]
    known = chain(prompt, 16).then(generated)
    assert chain(follow_up, 16).hashes[: 90 // 16] == known.hashes


def test_an_output_may_be_appended_piece_by_piece() -> None:
    start = chain([Text("head", 40)], 16)
    at_once = start.then(output_of("r1", 50))
    in_pieces = start.then(output_of("r1", 23)).then(output_of("r1", 50), 23)
    assert in_pieces.hashes == at_once.hashes and in_pieces.tail == at_once.tail
    ids = chain([1, 2, 3], 2).then(list(range(9)), 0)
    assert chain([1, 2, 3], 2).then(list(range(4))).then(list(range(9)), 4).hashes == ids.hashes


def test_nothing_is_not_a_prompt() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        chain([], 16)
    with pytest.raises(ValueError, match="'head' has 0"):
        chain([Text("head", 0)], 16)
