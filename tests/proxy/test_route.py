import asyncio
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.interface import Release
from proxy import clock
from proxy.affinity import SessionAffinity
from proxy.config import EngineConfig
from proxy.engines.openai import OpenAI
from proxy.gate import Gate, QueueFull, Ticket
from proxy.route import AllOut, Lane, Router, UnknownModel
from proxy.upstream import Upstream


def lane(name: str, *models: str, up: bool = True, busy: int = 0, gate: Gate | None = None) -> Lane:
    engine = OpenAI(EngineConfig(name=name, kind="openai", url="http://127.0.0.1:9"))
    upstream = cast(Upstream, None)  # no byte is sent here
    made = Lane(engine, upstream, gate or Gate(10), {model: {"id": model, "from": name} for model in models}, up)
    for _ in range(busy):
        made.gate.arrive(Ticket("other"), 0.0)
    return made


def router(*lanes: Lane, **configured: tuple[str, ...]) -> Router:
    return Router(lanes, {lane.name: configured.get(lane.name, ()) for lane in lanes})


def names(lanes: list[Lane]) -> list[str]:
    return [lane.name for lane in lanes]


def test_those_that_are_up_come_first_then_those_with_least_in_flight() -> None:
    lanes = [lane("down", "m", up=False), lane("busy", "m", busy=2), lane("calm", "m", busy=1), lane("else", "n")]
    assert names(router(*lanes).candidates("m")) == ["calm", "busy", "down"]
    assert names(router(*lanes).candidates(None)) == ["else", "calm", "busy", "down"]


def test_what_the_operator_named_stands_over_what_the_engine_lists() -> None:
    routes = router(lane("a", "m", "n"), lane("b", "m"), a=("n", "alias"))
    assert names(routes.candidates("m")) == ["b"]
    assert names(routes.candidates("alias")) == ["a"]
    assert routes.models() == [entry["id"] for entry in routes.listing()] == ["alias", "m", "n"]
    only = router(lane("a", "m", "n"), a=("n",))
    with pytest.raises(UnknownModel) as error:
        only.candidates("m")
    assert error.value.known == ["n"]


def test_an_engine_that_has_not_told_its_models_may_serve_any() -> None:
    assert names(router(lane("a"), lane("b", "m")).candidates("x")) == ["a"]


def test_an_unknown_model_names_those_that_are_served() -> None:
    with pytest.raises(UnknownModel) as error:
        router(lane("a", "n"), lane("b", "m", "n")).candidates("x")
    assert (error.value.model, error.value.known) == ("x", ["m", "n"])


def test_the_listing_is_merged_and_keeps_what_the_engines_say() -> None:
    listing = router(lane("a", "m"), lane("b", "m", "n"), a=("m", "alias")).listing()
    assert [(entry["id"], entry.get("from")) for entry in listing] == [("alias", None), ("m", "a"), ("n", "b")]
    assert listing[0]["object"] == "model" and listing[0]["owned_by"] == "openai"


async def test_a_ticket_waits_for_its_turn() -> None:
    one = lane("a", gate=Gate(10, limit=1))
    first, second = Ticket("w"), Ticket("w")
    await one.admit(first, 1)
    waiting = asyncio.create_task(one.admit(second, 60))
    await asyncio.sleep(0)
    assert not waiting.done() and second in one.waiting
    one.leave(first)
    await waiting
    assert second.released and not one.waiting
    one.leave(second)
    assert (one.gate.total, one.gate.waiting) == (0, 0)


async def test_who_gives_up_leaves_no_trace() -> None:
    one = lane("a", gate=Gate(1, limit=1))
    first, late, full = Ticket("w"), Ticket("w"), Ticket("w")
    await one.admit(first, 1)
    waiting = asyncio.create_task(one.admit(late, 60))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await one.admit(full, 1)
    one.leave(full)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    one.leave(late)
    timed_out = Ticket("w")
    with pytest.raises(TimeoutError):
        await one.admit(timed_out, 0.001)
    one.leave(timed_out)
    one.leave(first)
    assert (one.gate.total, one.gate.waiting, one.waiting) == (0, 0, {})


async def test_a_ticket_released_in_the_moment_of_giving_up_frees_its_place() -> None:
    one = lane("a", gate=Gate(10, limit=1))
    first, second, third = Ticket("w"), Ticket("w"), Ticket("w")
    await one.admit(first, 1)
    tasks = [asyncio.create_task(one.admit(ticket, 60)) for ticket in (second, third)]
    await asyncio.sleep(0)
    one.leave(first)  # lets the second in, which is cancelled before it could notice
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):  # or nobody would tell the engine that the client has left
        await tasks[0]
    one.leave(second)
    await tasks[1]
    assert third.released and one.gate.total == 1


async def test_those_that_are_held_are_let_in_together_when_it_is_time() -> None:
    one = lane("a")
    one.wake(one.gate.set_rules(None, {}, {"w": Release(0.05)}, clock.now()))
    first, second = Ticket("w"), Ticket("w")
    began = clock.now()
    waiting = [asyncio.create_task(one.admit(ticket, 60)) for ticket in (first, second)]
    await asyncio.sleep(0)
    assert one.gate.held("w") == 2 and not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)
    assert first.released_at == second.released_at >= began + 0.05
    assert one.looks_at is None and one.timer is None
    one.leave(first)
    one.leave(second)


async def test_who_gives_up_while_held_is_not_waited_for() -> None:
    one = lane("a")
    one.wake(one.gate.set_rules(None, {}, {"w": Release(60)}, clock.now()))
    ticket = Ticket("w")
    with pytest.raises(TimeoutError):
        await one.admit(ticket, 0.001)
    assert one.looks_at is not None
    one.leave(ticket)
    assert (one.gate.waiting, one.waiting, one.looks_at, one.timer) == (0, {}, None, None)


# Breakers -----------------------------------------------------------------------------------------------------------


def taken_out(one: Lane, now: float) -> Lane:
    for _ in range(one.breaker.failures):
        permit = one.breaker.enter(now)
        assert permit is not None
        one.judge(permit, False, now)
    return one


def test_an_engine_that_is_out_is_no_candidate_until_it_may_be_tried() -> None:
    a, b = taken_out(lane("a", "m"), 100), lane("b", "m", busy=3)
    assert names(router(a, b).candidates("m", 101)) == ["b"]
    assert names(router(a, b).candidates("m", 105)) == ["a", "b"]


def test_when_all_are_out_the_nearest_return_is_said() -> None:
    routes = router(taken_out(lane("a", "m"), 100), taken_out(lane("b", "m"), 102), lane("c", "n"))
    with pytest.raises(AllOut) as error:
        routes.candidates("m", 103)
    assert (error.value.engines, error.value.retry_after_s) == (["a", "b"], 2)


# Affinity -----------------------------------------------------------------------------------------------------------


def sticky(*lanes: Lane, slack: int = 4) -> Router:
    return Router(lanes, {}, SessionAffinity(100), slack)


def test_a_run_stays_on_its_engine() -> None:
    routes = sticky(lane("a", "m"), lane("b", "m", busy=2))
    run = routes.affinity.trait("t", "run", {})
    assert names(routes.candidates("m", 0, run)) == ["a", "b"]
    routes.affinity.went(run, "b")
    assert names(routes.candidates("m", 0, run)) == ["b", "a"]


@pytest.mark.parametrize("why", ["busy", "down", "out", "gone"])
def test_a_run_moves_when_its_engine_cannot_have_it(why: str) -> None:
    b = lane("b", "m", up=why != "down", busy=4 if why == "busy" else 0)
    lanes = [lane("a", "m")] if why == "gone" else [lane("a", "m"), taken_out(b, 0) if why == "out" else b]
    routes = sticky(*lanes)
    run = routes.affinity.trait("t", "run", {})
    routes.affinity.went(run, "b")
    assert names(routes.candidates("m", 1, run))[0] == "a"


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 7),
    st.integers(1, 8),
)
def test_the_choice_is_up_and_let_in_and_never_slack_busier_than_the_calmest(
    engines: list[tuple[bool, int, bool]], favourite: int, slack: int
) -> None:
    lanes = [lane(f"e{i}", "m", up=up, busy=busy) for i, (up, busy, _) in enumerate(engines)]
    for one, (_, _, out) in zip(lanes, engines, strict=True):
        if out:
            taken_out(one, 0)
    routes = sticky(*lanes, slack=slack)
    run = routes.affinity.trait("t", "run", {})
    routes.affinity.went(run, f"e{favourite}")
    fit = [one for one, (_, _, out) in zip(lanes, engines, strict=True) if not out]
    if not fit:
        with pytest.raises(AllOut):
            routes.candidates("m", 1, run)
        return
    chosen = routes.candidates("m", 1, run)
    assert sorted(names(chosen)) == sorted(names(fit))
    first, alive = chosen[0], [one for one in fit if one.up] or fit
    assert first in alive
    calmest = min(one.load for one in alive)
    assert first.load == calmest or (first.name == f"e{favourite}" and first.load < calmest + slack)
