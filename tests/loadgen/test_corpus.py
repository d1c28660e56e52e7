from hypothesis import given
from hypothesis import strategies as st

from loadgen import corpus

sentences = st.lists(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=60), max_size=30)


@given(text=st.text(max_size=300), max_tokens=st.integers(1, 60))
def test_clip_keeps_a_beginning_within_the_limit(text: str, max_tokens: int) -> None:
    clipped = corpus.clip(text, max_tokens)
    assert text.startswith(clipped)
    assert corpus.tokens(clipped) <= max_tokens
    assert clipped == text or corpus.tokens(text) > max_tokens


def test_clip_cuts_between_words() -> None:
    assert corpus.clip("one two three", 2) == "one two"
    assert corpus.clip("one two three", 1) == "one"
    assert corpus.clip("indivisible", 1) == "indi"


@given(sentences=sentences, chunk_tokens=st.integers(15, 40))
def test_chunks_lose_nothing_and_stay_within_the_limit(sentences: list[str], chunk_tokens: int) -> None:
    packed = corpus.chunks(sentences, chunk_tokens)
    assert " ".join(packed) == " ".join(sentences)
    assert all(corpus.tokens(chunk) <= chunk_tokens for chunk in packed)


def test_a_document_is_its_essay_first_and_reaches_its_length() -> None:
    for index, name in enumerate(corpus.document_names()):
        essay = " ".join(corpus.read(f"documents/{name}").split())
        assert " ".join(corpus.document(index, 5_000)).startswith(essay)
        short = " ".join(corpus.document(index, 300))
        assert essay.startswith(short) and corpus.tokens(short) > 150
