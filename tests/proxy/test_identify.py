import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.identify import BadIdentity, Identity, identify

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
NAMES = [
    *(b"x-workflow-id", b"x-workflow-name", b"x-workflow-step", b"x-workflow-node", b"x-workflow-parent"),
    *(b"x-workflow-final", b"x-session-id", b"helicone-session-path", b"x-claude-code-agent-id", b"baggage"),
    b"traceparent",
]
OWN = NAMES[:5]


def identity(headers: dict[str, str] | None = None, body: dict[str, Any] | None = None) -> Identity:
    return identify({name.encode(): value.encode() for name, value in (headers or {}).items()}, body, "req_1")


def test_nothing_said_is_a_run_of_its_own() -> None:
    found = identity(body={"model": "m"})
    assert (found.run, found.workflow, found.step, found.node, found.parents) == (
        "req_1",
        "ungrouped",
        "unnamed",
        None,
        (),
    )
    assert found.alone and not found.final and found.sources == {} and found.ignored == 0


def test_our_own_headers_say_everything() -> None:
    found = identity(
        {
            "x-workflow-id": "r1",
            "x-workflow-name": "coding",
            "x-workflow-step": "coder",
            "x-workflow-node": "coder-3",
            "x-workflow-parent": "architect-1, req_9 ,",
            "x-workflow-final": "True",
        }
    )
    assert (found.run, found.workflow, found.step, found.node) == ("r1", "coding", "coder", "coder-3")
    assert found.parents == ("architect-1", "req_9")
    assert found.final and not found.alone
    assert found.sources["parents"] == "x-workflow-parent"


# One source a level, the most trusted first: whatever is taken away, the next one gives the run.
LEVELS: list[tuple[str, dict[str, str], dict[str, Any], str]] = [
    ("x-workflow-id", {"x-workflow-id": "own"}, {}, "own"),
    ("x-session-id", {"x-session-id": "tool"}, {}, "tool"),
    ("session-id", {"session-id": "tool2"}, {}, "tool2"),
    ("x-run-id", {"x-run-id": "tool3"}, {}, "tool3"),
    ("metadata.workflow_id", {}, {"metadata": {"workflow_id": "meta", "thread_id": "later"}}, "meta"),
    ("session_id", {}, {"session_id": "body"}, "body"),
    ("baggage workflow.id", {"baggage": "session.id=later,workflow.id=bag"}, {}, "bag"),
    ("traceparent", {"traceparent": PARENT}, {}, TRACE),
]


@pytest.mark.parametrize("first", range(len(LEVELS)), ids=[level[0] for level in LEVELS])
def test_the_most_trusted_place_gives_the_run(first: int) -> None:
    headers: dict[str, str] = {}
    body: dict[str, Any] = {}
    for _, more_headers, more_body, _ in LEVELS[first:]:
        headers |= more_headers
        body |= more_body
    found = identity(headers, body)
    assert (found.run, found.sources["run"]) == (LEVELS[first][3], LEVELS[first][0])
    assert not found.alone and found.ignored == 0


def test_each_field_comes_from_its_own_best_place() -> None:
    found = identity(
        {"x-workflow-step": "query", "helicone-session-name": "search", "traceparent": PARENT},
        {"metadata": {"workflow_name": "worse", "workflow_step": "worse"}},
    )
    assert (found.run, found.workflow, found.step) == (TRACE, "search", "query")
    assert found.sources == {"run": "traceparent", "workflow": "helicone-session-name", "step": "x-workflow-step"}


def test_a_run_without_a_name_is_unnamed_and_a_name_without_a_run_is_alone() -> None:
    assert identity({"x-session-id": "s"}).workflow == "unnamed"
    named = identity({"x-workflow-name": "search"})
    assert (named.workflow, named.run, named.alone) == ("search", "req_1", True)


def test_the_last_level_of_a_helicone_path_is_the_step() -> None:
    assert identity({"helicone-session-path": "/abstract/outline/"}).step == "outline"


@pytest.mark.parametrize("name", [name.decode() for name in OWN])
@pytest.mark.parametrize("value", ["x" * 201, "x" * 10_000, "caf\u00e9", "a\tb", "a\x00b"])
def test_a_bad_id_in_a_header_of_ours_is_refused(name: str, value: str) -> None:
    with pytest.raises(BadIdentity, match=name):
        identity({name: value})


def test_two_hundred_characters_are_an_id() -> None:
    assert identity({"x-workflow-id": "x" * 200}).run == "x" * 200


def test_many_parents_are_each_measured_by_themselves() -> None:
    assert len(identity({"x-workflow-parent": ",".join(["x" * 150] * 9)}).parents) == 9


def test_a_bad_id_of_another_tool_is_ignored_and_counted() -> None:
    found = identity(
        {"x-session-id": "x" * 201, "session-id": "\u4e2d", "x-run-id": "good"},
        {"metadata": {"workflow_name": "\n", "workflow_step": 7, "session_id": None}},
    )
    assert (found.run, found.workflow, found.step, found.ignored) == ("good", "unnamed", "unnamed", 3)


def test_baggage_is_decoded_and_its_properties_dropped() -> None:
    found = identity({"baggage": "workflow.name = deep%20search ;ttl=1, gen_ai.conversation.id=a%2Cb;x, broken"})
    assert (found.workflow, found.run) == ("deep search", "a,b")
    assert identity({"baggage": "workflow.id=%E4%B8%AD"}).ignored == 1


@pytest.mark.parametrize(
    "header", ["", "nonsense", f"00-{'0' * 32}-00f067aa0ba902b7-01", PARENT.upper(), PARENT[:-3], PARENT[3:]]
)
def test_a_traceparent_that_names_no_trace_is_ignored(header: str) -> None:
    assert identity({"traceparent": header}).alone


@pytest.mark.parametrize(("value", "final"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_final(value: str, final: bool) -> None:
    assert identity({"x-workflow-final": value}).final is final


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(
    headers=st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=30) | st.binary(min_size=190, max_size=210)),
    metadata=st.dictionaries(st.sampled_from(["workflow_id", "workflow_name", "session_id"]), JSON) | JSON,
    session=JSON,
)
def test_any_bytes_give_an_identity_or_a_refusal(headers: dict[bytes, bytes], metadata: Any, session: Any) -> None:
    try:
        found = identify(headers, {"metadata": metadata, "session_id": session}, "req_1")
    except BadIdentity:
        assert any(headers.get(name) for name in OWN)
        return
    printable = set(string.printable) - set("\t\n\r\x0b\x0c")
    for text in (found.run, found.workflow, found.step, found.node or "-", *found.parents):
        assert 0 < len(text) <= 200 and set(text) <= printable
