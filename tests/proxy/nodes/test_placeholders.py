from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.nodes.placeholders import Named, fill, filled, named, pieces

OUTPUTS = {"a": "alpha", "b 2": "{{node:a}}", "x|y": "\\{{node:a}}", "é": "no name"}
# Texts in which everything that could be mistaken for a placeholder comes often.
TEXTS = st.text() | st.lists(
    st.sampled_from(
        ["{{node:a}}", "{{node:b 2}}", "{{node:", "}}", "\\", "{", "a", "}", "{{node: a }}", "{{node:é}}", "\n"]
    )
).map("".join)


def escaped(text: str) -> str:
    return text.replace("{{node:", "\\{{node:")


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("say {{node:a}} twice: {{node:a}}", "say alpha twice: alpha"),
        ("{{node: a }}{{node:x|y}}", "alpha\\{{node:a}}"),
        ("{{node:b 2}}", "{{node:a}}"),
        (r"\{{node:a}} and \\{{node:a}}", r"{{node:a}} and \{{node:a}}"),
        (r"\{{node:", "{{node:"),
        ("{{node:}} {{node: }} {{node:é}} {{node:a", "{{node:}} {{node: }} {{node:é}} {{node:a"),
        ("{{node:{{node:a}}}}", "{{node:alpha}}"),
        ("{node:a} {{ node:a}} {{NODE:a}}", "{node:a} {{ node:a}} {{NODE:a}}"),
        ("{{node:" + "n" * 201 + "}}", "{{node:" + "n" * 201 + "}}"),
    ],
)
def test_a_placeholder_gives_way_to_the_output_and_nothing_else_does(text: str, becomes: str) -> None:
    assert filled(text, OUTPUTS) == becomes


@given(TEXTS)
def test_what_is_escaped_comes_out_as_it_was(text: str) -> None:
    assert filled(escaped(text), OUTPUTS) == text
    assert not named({"prompt": escaped(text)})


@given(TEXTS, TEXTS, TEXTS)
def test_an_output_is_never_looked_at(before: str, output: str, after: str) -> None:
    text = escaped(before) + " {{node:a}} " + escaped(after)
    assert filled(text, {"a": output}) == f"{before} {output} {after}"


@given(TEXTS)
def test_pieces_and_counts_agree(text: str) -> None:
    found = [piece.name for piece in pieces(text) if isinstance(piece, Named)]
    counts = named({"prompt": text})
    assert list(counts) == list(dict.fromkeys(found)) and counts.total() == len(found)


@given(TEXTS)
def test_what_is_not_listed_is_text(text: str) -> None:
    assert named({"prompt": text}, frozenset({"b 2"})).keys() <= {"b 2"}
    assert filled(escaped(text) + " {{node:a}}", {}, frozenset({"b 2"})) == text + " {{node:a}}"


@pytest.mark.parametrize(
    ("body", "becomes"),
    [
        (
            {"messages": [{"role": "system", "content": "{{node:a}}"}, {"role": "user", "content": "x {{node:b}}"}]},
            {"messages": [{"role": "system", "content": "A"}, {"role": "user", "content": "x B"}]},
        ),
        (
            {
                "messages": [
                    {"content": [{"type": "text", "text": "{{node:a}}"}, {"type": "image_url", "text": "{{node:b}}"}]}
                ]
            },
            {"messages": [{"content": [{"type": "text", "text": "A"}, {"type": "image_url", "text": "{{node:b}}"}]}]},
        ),
        ({"prompt": "{{node:a}}{{node:b}}"}, {"prompt": "AB"}),
        ({"prompt": ["{{node:a}}", "-", "{{node:b}}"]}, {"prompt": ["A", "-", "B"]}),
        ({"input": "{{node:a}}", "instructions": "{{node:b}}"}, {"input": "A", "instructions": "B"}),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "{{node:a}}"}]},
                    {"content": "{{node:b}}"},
                ]
            },
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "A"}]}, {"content": "B"}]},
        ),
        ({"input": ["{{node:a}}", "{{node:b}}"]}, {"input": ["A", "B"]}),
    ],
    ids=["chat", "parts", "prompt", "prompts", "responses", "items", "embeddings"],
)
def test_where_a_model_reads_text(body: dict[str, Any], becomes: dict[str, Any]) -> None:
    listed = sorted(named(body))
    assert listed == (["a"] if "image_url" in str(body) else ["a", "b"])
    assert fill(body, {"a": "A", "b": "B"}) and body == becomes


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": "{{node:a}}", "user": "{{node:a}}", "metadata": {"text": "{{node:a}}"}, "stop": ["{{node:a}}"]},
        {"messages": "{{node:a}}", "prompt": [1, 2], "input": [[1, 2], 3], "instructions": 4},
        {"messages": [None, "{{node:a}}", {"content": None}, {"content": [None, "{{node:a}}", {"type": "text"}]}]},
        {"messages": [{"role": "{{node:a}}", "tool_calls": [{"function": {"arguments": "{{node:a}}"}}]}]},
    ],
)
def test_nothing_else_is_touched_however_odd_it_is(body: dict[str, Any]) -> None:
    before = repr(body)
    assert not named(body) and not fill(body, {"a": "A"}) and repr(body) == before
