from hypothesis import given
from hypothesis import strategies as st

from loadgen.lengths import Lengths
from loadgen.prompt import Piece
from loadgen.workload import Call


def words(text: str) -> list[int]:
    return [ord(word[0]) for word in text.split()]


def text(ids: list[int]) -> str:
    return " ".join(map(chr, ids))


def call(*pieces: Piece) -> Call:
    return Call("b", "b", 1, pieces, parents=("a",))


@given(said=st.text("ab ", min_size=1).filter(str.strip), tokens=st.integers(1, 3000))
def test_a_text_is_cut_or_filled_to_its_length(said: str, tokens: int) -> None:
    ids = Lengths(words, text).prompt(call(Piece(said, tokens)), {})
    assert len(ids) == tokens
    assert ids[: len(words(said))] == words(said)[:tokens]


def test_a_text_without_a_length_and_an_answer_are_as_long_as_they_are() -> None:
    prompt = call(Piece("a b"), Piece(answer_of="a", tokens=3), Piece("c"))
    assert len(Lengths(words, text).prompt(prompt, {"a": "x y"})) == 5
    assert len(Lengths(words, text).prompt(prompt, {"a": "v w x y z"})) == 6
    assert len(Lengths(words, text).prompt(prompt, {"a": ""})) == 3


def test_a_text_is_asked_for_once() -> None:
    asked: list[str] = []

    def tokenize(text: str) -> list[int]:
        asked.append(text)
        return words(text)

    lengths = Lengths(tokenize, text)
    lengths.learn("x y z")
    assert lengths.prompt(call(Piece(answer_of="a")), {"a": "x y z"}) == words("x y z") and asked == ["x y z"]
    first, second = (lengths.prompt(call(Piece("a b c", 2), Piece(f"own {n}")), {}) for n in range(2))
    assert first[:2] == second[:2] and asked.count("a b c") == 1


@given(said=st.text("ab ", min_size=1).filter(str.strip), tokens=st.integers(1, 3000))
def test_a_text_of_a_length_is_those_ids_as_text(said: str, tokens: int) -> None:
    lengths = Lengths(words, text)
    assert words(lengths.text(Piece(said, tokens))) == lengths.prompt(call(Piece(said, tokens)), {})
    assert lengths.text(Piece(said)) == said
