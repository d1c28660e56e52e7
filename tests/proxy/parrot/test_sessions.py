"""A session a run: opened once, ended when the run has closed, and never one that is another's."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.parrot.sessions import Numbers


async def test_a_runs_calls_share_one_session_which_is_opened_once(world: Any) -> None:
    run = world.run()
    await asyncio.gather(*(world.ask(run=run) for _ in range(5)))
    assert {call.session for call in world.core.submitted} == {0} and len(world.core.sessions) == 1


async def test_two_runs_have_two(world: Any) -> None:
    await world.ask(run=world.run("r1"))
    await world.ask(run=world.run("r2"))
    assert {call.session for call in world.core.submitted} == {0, 1}


async def test_a_session_ends_when_its_run_has_closed_and_nothing_of_it_is_out(world: Any) -> None:
    run, sessions = world.run(), world.upstream.sessions
    world.behind.hold = asyncio.Event()
    task = asyncio.create_task(world.ask(run=run))
    await asyncio.wait_for(world.behind.came.wait(), 5)
    run.state = "closed"
    await sessions.sweep()
    assert world.core.deleted == []
    world.behind.hold.set()
    await task
    await sessions.sweep()
    assert world.core.deleted == [0] and not world.core.sessions and len(sessions) == 0


async def test_all_sessions_end_with_the_gateway(world: Any) -> None:
    for n in range(3):
        await world.ask(run=world.run(f"r{n}"))
    await world.engine.stop()
    assert sorted(world.core.deleted) == [0, 1, 2]


async def test_a_parrot_that_is_gone_does_not_hold_up_the_end(world: Any) -> None:
    await world.ask()
    await world.core.stop()
    await asyncio.wait_for(world.engine.stop(), 10)


async def test_a_parrot_that_never_answers_an_end_stops_no_later_one(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions, silent = world.upstream.sessions, asyncio.Event()
    monkeypatch.setattr("proxy.parrot.sessions._GOODBYE_S", 0.05)
    with monkeypatch.context() as patched:
        patched.setattr(sessions.core, "close_session", lambda _: silent.wait())
        await world.ask(run=(first := world.run("r1")))
        first.state = "closed"
        await asyncio.wait_for(sessions.sweep(), 5)
    monkeypatch.setattr("proxy.parrot.sessions._GOODBYE_S", 3.0)
    await world.ask(run=(second := world.run("r2")))
    second.state = "closed"
    await asyncio.wait_for(sessions.sweep(), 5)
    assert world.core.deleted == [1] and len(sessions) == 0


async def test_a_session_that_cannot_be_opened_is_tried_anew_by_the_next_call(world: Any) -> None:
    await world.core.stop()
    with pytest.raises(ConnectionError):
        await world.ask()
    await world.core.restart()
    assert (await world.ask()).status == 200


@given(others=st.integers(0, 8), ours=st.integers(1, 8), data=st.data())
def test_numbers_of_our_own_calls_fit_in_any_order(others: int, ours: int, data: st.DataObject) -> None:
    numbers = Numbers()
    numbers.asked = ours
    for number in data.draw(st.permutations(range(ours))):
        assert numbers.fit(number)
    numbers.asked += 1
    assert numbers.fit(others) is (others == ours), (
        "given twice, or more than were asked for: somebody else is in there"
    )
