from typing import Any

import orjson
import pytest

from proxy.identify import Identity, identify
from proxy.nodes.ask import MOST_NEEDS, MOST_OPENINGS, Ask, ask, with_needs
from proxy.refusal import Refusal

TWO = {"prompt": "{{node:b}} and {{node:a}} and {{node:b}}"}


def identity(**headers: str) -> Identity:
    given = {"id": "r1", "node": "me"} | headers
    return identify({f"x-workflow-{k}".encode(): v.encode() for k, v in given.items() if v}, {}, "req_1")


def asked(body: dict[str, Any], **headers: str) -> Ask:
    found = ask(identity(**headers), body)
    assert found is not None
    return found


def test_only_our_own_header_arms_it() -> None:
    assert ask(identity(node=""), TWO) is None
    agent = identify({b"x-workflow-id": b"r1", b"x-claude-code-agent-id": b"me"}, {}, "req_1")
    assert agent.node == "me" and ask(agent, TWO) is None
    assert asked(TWO) == Ask("me", {"b": 2, "a": 1}, None)


def test_a_call_that_names_others_without_a_run_is_refused_with_what_to_send() -> None:
    with pytest.raises(Refusal, match="send X-Workflow-Id") as refused:
        ask(identity(id=""), TWO)
    assert (refused.value.status, refused.value.code) == (400, "node_without_run")
    assert asked({"prompt": r"of old, and \{{node:a}}"}, id="").needs == {}, "a name alone asks for nothing"


def test_what_is_named_becomes_parents() -> None:
    named = with_needs(identity(), asked(TWO))
    assert named.parents == ("b", "a") and named.sources["parents"] == "placeholders"
    tool = identify({b"x-workflow-id": b"r1", b"x-workflow-node": b"me", b"x-parent-session-id": b"b"}, {}, "req_1")
    found = ask(tool, TWO)
    assert found is not None and found.listed is None
    named = with_needs(tool, found)
    assert named.parents == ("b", "a") and named.sources["parents"] == "x-parent-session-id"
    alone = identity()
    assert with_needs(alone, asked({})) is alone


def test_a_list_of_parents_says_which_may_be_named() -> None:
    found = asked(TWO, parent="a, req_7")
    assert found.needs == {"a": 1} and found.listed == {"a", "req_7"}
    body = dict(TWO)
    raw = found.filled(orjson.dumps(body), body, {"a": "A"}, 1000)
    assert orjson.loads(raw) == {"prompt": "{{node:b}} and A and {{node:b}}"}
    assert with_needs(identity(parent="a, req_7"), found).parents == ("a", "req_7")


def test_what_holds_no_placeholder_stays_as_it_came() -> None:
    raw = b'{ "prompt" : "hello" }'
    assert asked(orjson.loads(raw)).filled(raw, orjson.loads(raw), {}, 1000) is raw
    escaped: dict[str, Any] = {"prompt": r"\{{node:a}}"}
    found = asked(escaped)
    assert not found.needs and found.filled(orjson.dumps(escaped), escaped, {}, 1000) == b'{"prompt":"{{node:a}}"}'


def test_too_many_names_are_refused() -> None:
    body = {"prompt": "".join(f"{{{{node:n{n}}}}}" for n in range(MOST_NEEDS + 1))}
    with pytest.raises(Refusal, match=f"at most, not {MOST_NEEDS + 1}") as refused:
        asked(body)
    assert refused.value.status == 400


@pytest.mark.parametrize("mark", ["{{node:a}}", r"\{{node:a}}", "{{node:"])
def test_too_many_marks_are_refused_however_few_the_names(mark: str) -> None:
    assert len(asked({"prompt": [mark * MOST_OPENINGS]}).needs) <= 1
    with pytest.raises(Refusal, match=f"not {MOST_OPENINGS + 1} times") as refused:
        asked({"messages": [{"content": mark * MOST_OPENINGS}, {"content": mark}]})
    assert (refused.value.status, refused.value.code) == (400, "too_many_nodes")


@pytest.mark.parametrize("size", [401, 10**6])
def test_what_grows_too_large_is_refused(size: int) -> None:
    body: dict[str, Any] = {"prompt": "{{node:a}}" * 100}
    found, outputs = asked(body), {"a": "x" * size}
    with pytest.raises(Refusal, match="larger than 40000 bytes") as refused:
        found.filled(orjson.dumps(body), body, outputs, 40_000)
    assert (refused.value.status, refused.value.code) == (413, "body_too_large")


def test_what_just_fits_is_taken() -> None:
    body: dict[str, Any] = {"prompt": "{{node:a}}" * 100}
    raw = asked(body).filled(orjson.dumps(body), body, {"a": "x" * 399}, 40_000)
    assert len(raw) == 39_900 + len('{"prompt":""}')
