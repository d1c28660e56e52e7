"""A policy's priority on its way into the request."""

from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from proxy.forward import _Exchange
from proxy.keys import ANYONE


@pytest.mark.parametrize(
    ("workflow", "lanes", "arrives"),
    [
        ("search", ["e1"], {"prompt": "hi", "priority": 5}),
        ("search", ["e1", "e2"], {"prompt": "hi", "priority": 5}),
        ("search", ["e1", "plain"], {"prompt": "hi", "priority": 9}),
        ("other", ["e1"], {"prompt": "hi", "priority": 9}),
    ],
    ids=["an engine that honours it", "two of them", "one that would refuse it", "a workflow without one"],
)
def test_it_goes_to_engines_that_honour_it_alone(workflow: str, lanes: list[str], arrives: dict[str, Any]) -> None:
    asked = {"prompt": "hi", "priority": 9}
    exchange = SimpleNamespace(
        caller=ANYONE,
        client=SimpleNamespace(path="/v1/completions", extra=[]),
        receipt=SimpleNamespace(run=SimpleNamespace(label=workflow)),
        forward=SimpleNamespace(max_tokens={}, priority={"search": 5}, take_priority={"e1", "e2"}),
        draw=None,
        _affordable=lambda *_: None,
    )
    named = [cast(Any, SimpleNamespace(name=name)) for name in lanes]
    raw = _Exchange._amend(cast(Any, exchange), orjson.dumps(asked), dict(asked), named)
    assert orjson.loads(raw) == arrives
