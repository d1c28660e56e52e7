"""ServeCore's bodies and what its replies mean."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.parrot import wire
from proxy.parrot.wire import CoreFault, Forgotten, Session, Text, Var

SESSION = Session(3, "1")
PARTS = st.lists(st.one_of(st.builds(Text, st.text()), st.builds(Var, st.uuids().map(str))), min_size=1, max_size=8)


@given(parts=PARTS)
def test_text_never_gets_into_the_template(parts: list[Text | Var]) -> None:
    body = wire.call(SESSION, parts, {"max_gen_length": 3})
    names = re.findall(r"\{\{([a-zA-Z_][a-zA-Z0-9_]*)\}\}", body["template"])
    assert "".join("{{%s}}" % name for name in names) == body["template"]  # noqa: UP031
    assert names == [one["name"] for one in body["parameters"]] and len(set(names)) == len(names)
    given = [one.get("value", one.get("var_id")) for one in body["parameters"][:-1]]
    assert given == [part.text if isinstance(part, Text) else part.id for part in parts]
    assert [one["is_output"] for one in body["parameters"]] == [False] * len(parts) + [True]


def test_a_call_says_what_parrot_would_else_take_for_granted() -> None:
    body = wire.call(SESSION, [Text("a")], {})
    assert body["cache_prefix"] is False and body["model_type"] == "text"
    assert not {"fuse_fill", "output_criteria", "remove_pure_fill"} & body.keys()


def test_a_sampling_key_that_it_does_not_know_is_not_sent() -> None:
    with pytest.raises(ValueError, match="no sampling key 'seed'"):
        wire.call(SESSION, [Text("a")], {"seed": 1})
    with pytest.raises(ValueError, match="needs an input"):
        wire.call(SESSION, [], {})


def json_error(said: str) -> bytes:
    return json.dumps({"error": said, "traceback": "..."}).encode()


@pytest.mark.parametrize("how", ["not found", "is not valid"])
def test_a_session_that_it_does_not_know_is_forgotten(how: str) -> None:
    said = f"ParrotError(type=<class 'RuntimeError'>, msg=Session (session_id=3) {how}.)"
    with pytest.raises(Forgotten):
        wire.read("a semantic call", 500, json_error(said))


@pytest.mark.parametrize("body", [b"Internal Server Error", b"", b"[]", json_error("secret prompt")])
def test_other_errors_are_told_without_its_words(body: bytes) -> None:
    with pytest.raises(CoreFault, match="ServeCore answered 500 to a semantic variable") as fault:
        wire.read("a semantic variable", 500, body)
    assert not isinstance(fault.value, Forgotten) and "secret" not in str(fault.value)


def test_a_200_that_is_no_object_is_an_error() -> None:
    with pytest.raises(CoreFault):
        wire.read("a session", 200, b"[]")


@pytest.mark.parametrize("reply", [{}, {"request_id": 0, "param_info": []}, {"request_id": None, "param_info": None}])
def test_a_call_without_an_output_is_an_error(reply: dict[str, Any]) -> None:
    with pytest.raises(CoreFault, match="without telling its output"):
        wire.output_of(reply)


def test_the_output_is_found_among_the_inputs() -> None:
    info = [{"is_output": False, "var_id": "a"}, {"is_output": True, "var_id": "b"}]
    assert wire.output_of({"request_id": 4, "param_info": info}) == (4, Var("b"))
    assert wire.session_of({"session_id": 0, "session_auth": "1"}) == Session(0, "1")
    with pytest.raises(CoreFault):
        wire.session_of({"session_auth": "1"})
