from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.bounds import OTHER, LabelBound, LabelBounds

names = st.text("abcdefghij", min_size=1, max_size=2)


@given(limit=st.integers(1, 8), known=st.sets(names, max_size=12), values=st.lists(names, max_size=60))
def test_a_bound_holds_whatever_clients_send(limit: int, known: set[str], values: list[str]) -> None:
    bound = LabelBound(limit, known)
    shown = [bound.admit(value) for value in values]
    assert len({*shown, *known} - {OTHER}) <= max(limit, len(known))
    assert all(out in (given, OTHER) for given, out in zip(values, shown, strict=True))
    assert all(out == given for given, out in zip(values, shown, strict=True) if given in known)
    assert bound.overflow == shown.count(OTHER)
    assert [bound.admit(out) for out in shown] == shown, "what was admitted is admitted again"
    assert bound.overflow == shown.count(OTHER), "and is not counted again"


def test_the_first_names_stand_and_later_ones_are_counted() -> None:
    bound = LabelBound(2, ["search"])
    assert [bound.admit(name) for name in ("a", "b", "a", "search", "b")] == ["a", OTHER, "a", "search", OTHER]
    assert bound.overflow == 2


def test_steps_are_bounded_per_workflow() -> None:
    bounds = LabelBounds(workflows=2, steps=2, models=1, known={"search": ["query", "rerank"]})
    assert [bounds.step("search", step) for step in ("query", "x", "rerank")] == ["query", OTHER, "rerank"]
    assert [bounds.step("coding", step) for step in ("x", "y", "z")] == ["x", "y", OTHER]
    assert [bounds.workflow(name) for name in ("coding", "third")] == ["coding", OTHER]
    assert [bounds.model(name) for name in ("m1", "m2", "m1")] == ["m1", OTHER, "m1"]
    assert bounds.overflow == {"workflow": 1, "step": 2, "model": 1}


def test_other_bounds_take_nothing_back() -> None:
    bounds = LabelBounds(workflows=3, steps=2, models=1, known={"search": ["query"]})
    assert [bounds.workflow(name) for name in ("a", "b", "c")] == ["a", "b", OTHER]
    bounds.configure(1, 1, {"c": ["draft"], "search": ["query", "rerank"]}, ["m9"])
    assert [bounds.workflow(name) for name in ("a", "b", "c", "d")] == ["a", "b", "c", OTHER]
    assert [bounds.step("search", step) for step in ("query", "rerank", "x")] == ["query", "rerank", OTHER]
    assert [bounds.step("c", step) for step in ("draft", "x")] == ["draft", OTHER]
    assert bounds.model("m9") == "m9"
