from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.affinity import BLOCK_CHARS, NoAffinity, PrefixAffinity, SessionAffinity, affinity, prompt_text


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text} for text in texts], **more}


def words(n: int, start: str = "w") -> str:
    return "".join(f"{start}{i:07d}" for i in range(n))


def test_they_are_made_by_name() -> None:
    made = [affinity(kind, 10) for kind in ("none", "session", "prefix")]
    assert [type(one) for one in made] == [NoAffinity, SessionAffinity, PrefixAffinity]


def test_a_run_is_known_where_it_last_was() -> None:
    sessions = SessionAffinity(10)
    trait = sessions.trait("t", "run", {})
    assert sessions.known(trait) == {}
    sessions.went(trait, "a")
    sessions.went(trait, "b")
    assert sessions.known(trait) == {"b": 1}
    assert sessions.known(sessions.trait("another tenant", "run", {})) == {}


def test_what_was_used_longest_ago_is_forgotten() -> None:
    sessions = SessionAffinity(2)
    old, kept, new = (sessions.trait("t", run, {}) for run in ("old", "kept", "new"))
    for trait in (kept, old, kept, new):
        sessions.went(trait, "a")
    assert len(sessions) == 2
    assert [bool(sessions.known(trait)) for trait in (old, kept, new)] == [False, True, True]


def test_the_longest_shared_beginning_counts() -> None:
    prefixes = PrefixAffinity(1000)
    shared, other = words(200), words(200, "x")
    prefixes.went(prefixes.trait("t", "", chat(shared + words(50, "a"))), "a")
    prefixes.went(prefixes.trait("t", "", chat(shared + words(50, "b"))), "b")
    asked = prefixes.trait("t", "", chat(shared + words(50, "b") + words(50, "c")))
    known = prefixes.known(asked)
    assert known["b"] > known["a"] >= len(shared) // BLOCK_CHARS - 1
    assert prefixes.known(prefixes.trait("t", "", chat(other))) == {}
    assert prefixes.known(prefixes.trait("u", "", chat(shared))) == {}, "tenants do not share"
    assert prefixes.known(prefixes.trait("t", "", {**chat(shared), "model": "n"})) == {}


def test_a_grown_conversation_is_known_by_its_earlier_turns() -> None:
    prefixes = PrefixAffinity(1000)
    turns = [words(100, letter) for letter in "abc"]
    prefixes.went(prefixes.trait("t", "", chat(*turns[:2])), "a")
    assert prefixes.known(prefixes.trait("t", "", chat(*turns))).get("a", 0) >= 2 * 800 // BLOCK_CHARS - 1


def test_prompts_of_every_kind() -> None:
    assert prompt_text({"prompt": "one"}) == "one"
    assert prompt_text({"prompt": [1, 2]}) == "1\n2"
    assert prompt_text({"instructions": "be", "input": [{"role": "user", "content": "short"}]}) == "be\nuser:short"
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    assert "see" in prompt_text({"messages": [{"role": "user", "content": parts}]})
    assert prompt_text({"tools": [{"type": "function"}], "prompt": "x"}).startswith('[{"type"')


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(body=st.dictionaries(st.sampled_from(["model", "messages", "prompt", "input", "tools", "instructions"]), json))
def test_no_body_is_too_strange(body: dict[str, Any]) -> None:
    prefixes = PrefixAffinity(10)
    trait = prefixes.trait("t", "r", _surrogates_gone(body))
    prefixes.went(trait, "a")
    assert set(prefixes.known(trait)) <= {"a"}


def _surrogates_gone(value: Any) -> Any:
    """As a parsed body is: JSON's parser lets no lone surrogate through."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_surrogates_gone(one) for one in value]
    if isinstance(value, dict):
        return {_surrogates_gone(k): _surrogates_gone(v) for k, v in value.items()}
    return value


@given(
    entries=st.integers(1, 30),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8), st.sampled_from("abcdefg")), max_size=60),
)
def test_prefixes_stay_bounded_and_what_is_known_is_true(entries: int, steps: list[tuple[int, int, str]]) -> None:
    prefixes, went = PrefixAffinity(entries), set[tuple[int, str]]()
    for family, blocks, engine in steps:
        trait = prefixes.trait("t", "", {"prompt": words(blocks * BLOCK_CHARS // 8, "pqrs"[family])})
        for name, length in prefixes.known(trait).items():
            assert (trait[length - 1], name) in went
        prefixes.went(trait, engine)
        went |= {(beginning, engine) for beginning in trait}
        assert len(prefixes) <= entries
        if trait and len(trait) <= entries:
            assert prefixes.known(trait)[engine] == len(trait)
