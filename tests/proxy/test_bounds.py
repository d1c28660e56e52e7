from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bounds import head_bytes, is_deeper


def nested(depth: int) -> Any:
    body: Any = 1
    for level in range(depth):
        body = {"a": body} if level % 2 else [body]
    return body


def deeper(body: Any, depth: int) -> bool:
    return is_deeper(orjson.dumps(body), body, depth)


@pytest.mark.parametrize("depth", [1, 8, 64])
def test_so_deep_and_no_deeper(depth: int) -> None:
    assert not deeper(nested(depth), depth)
    assert deeper(nested(depth + 1), depth)
    assert deeper({"messages": [{"role": "user"}] * 100, "x": nested(depth)}, depth)


def test_many_messages_and_braces_in_text_are_not_depth() -> None:
    assert not deeper({"messages": [{"role": "user", "content": "{[" * 500}] * 500}, 3)
    assert not deeper({"input": list(range(1000))}, 2)


def reference(body: Any) -> int:
    if isinstance(body, dict):
        return 1 + max(map(reference, body.values()), default=0)
    if isinstance(body, list):
        return 1 + max(map(reference, body), default=0)
    return 0


bodies = st.recursive(
    st.none() | st.integers(0, 9) | st.text('[]{}ab"\\', max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("[{a", max_size=2), inner, max_size=3),
    max_leaves=30,
)


@given(body=bodies, depth=st.integers(1, 8))
def test_it_agrees_with_counting(body: Any, depth: int) -> None:
    assert deeper(body, depth) == (reference(body) > depth)


def test_the_head_is_counted_with_an_overhead_for_each_header() -> None:
    scope = {"path": "/v1/models", "query_string": b"a=1", "headers": [(b"host", b"x"), (b"a", b"")]}
    assert head_bytes(scope) == 10 + 3 + (4 + 1 + 32) + (1 + 0 + 32)
