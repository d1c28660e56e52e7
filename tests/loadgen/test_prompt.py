"""A prompt as a chat: with answers cut, whole, or named for a gateway to fill in."""

from hypothesis import given
from hypothesis import strategies as st

from loadgen.prompt import Piece, about, messages, named_messages, whole_messages
from proxy.nodes.placeholders import filled

PIECES = (Piece("Be brief.", role="system"), Piece("So far:\n"), Piece(tokens=2, answer_of="a"), Piece("\nGo on."))


def test_an_answer_is_cut_or_whole_or_named() -> None:
    answer = {"a": " one two three"}
    assert [m["content"] for m in messages(PIECES, answer)] == ["Be brief.", "So far:\none two\nGo on."]
    whole = whole_messages(PIECES, answer, about)
    assert [m["content"] for m in whole] == ["Be brief.", "So far:\n one two three\nGo on."]
    assert [m["role"] for m in whole] == ["system", "user"]
    assert named_messages(PIECES, about)[1]["content"] == "So far:\n{{node:a}}\nGo on."


TEXTS = st.lists(st.sampled_from(["{{node:a}}", "{", "}}", "\\", "{{node:", "a "])).map("".join)


@given(text=TEXTS, answer=TEXTS)
def test_what_a_gateway_makes_of_the_named_chat_is_the_whole_one(text: str, answer: str) -> None:
    pieces = (Piece(text + "."), Piece(answer_of="a"), Piece("." + text))
    (named,), (whole,) = named_messages(pieces, about), whole_messages(pieces, {"a": answer}, about)
    assert filled(named["content"], {"a": answer}, ("a",)) == whole["content"]
