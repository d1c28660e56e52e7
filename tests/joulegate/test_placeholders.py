import pytest
from hypothesis import given
from hypothesis import strategies as st

import joulegate
from proxy.nodes.placeholders import filled, named

TEXTS = st.text() | st.lists(st.sampled_from(["{{node:", "a", "}}", "\\", "{", "}", " "])).map("".join)


@given(TEXTS, TEXTS)
def test_the_gateway_understands_what_is_written_here(users: str, output: str) -> None:
    text = f"{joulegate.output_of('a')} {joulegate.escape(users)}"
    assert filled(text, {"a": output}) == f"{output} {users}"
    assert not named({"prompt": joulegate.escape(users)})


@pytest.mark.parametrize("name", ["plan", "coder-3", "a b|c", "x" * 200])
def test_a_name_is_found_again(name: str) -> None:
    assert list(named({"prompt": joulegate.output_of(name)})) == [name]


@pytest.mark.parametrize("name", ["", " ", "a}", "{a", "é", "a\n", "x" * 201])
def test_what_cannot_be_named_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="without braces"):
        joulegate.output_of(name)
