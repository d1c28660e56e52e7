"""Parrot and the engine behind it are well together, or not at all."""

import asyncio
from typing import Any

import orjson
import pytest


async def health(world: Any) -> int:
    return (await world.upstream.send(b"GET", b"/health", [], b"")).status


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which nothing comes back, however long it is waited for."""
    monkeypatch.setattr("proxy.parrot.watch._PATIENCE_S", 0.1)


async def test_it_is_well_when_a_call_comes_through_which_the_engine_never_sees(world: Any) -> None:
    assert await health(world) == 200
    assert len(world.core.log) == 1 and world.behind.seen == []


async def test_it_is_not_while_the_engine_behind_is_down(world: Any) -> None:
    world.lane.up = False
    assert await health(world) == 503
    world.lane.up = True
    assert await health(world) == 200


async def test_it_is_not_while_nobody_knows_which_models_the_engine_has(world: Any) -> None:
    world.lane.models = {}
    assert await health(world) == 503


async def test_it_is_not_without_a_core_and_is_again_with_one(world: Any) -> None:
    await world.core.stop()
    assert await health(world) == 503
    await world.core.restart()
    assert await health(world) == 200


async def test_a_core_without_an_engine_is_not_well_and_gets_one_call_to_try_it(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.core.has_engine = False
    with monkeypatch.context() as impatient:
        impatient.setattr("proxy.parrot.watch._PATIENCE_S", 0.1)
        for _ in range(3):
            assert await health(world) == 503
    assert len(world.core.submitted) <= 1
    world.core.has_engine = True
    assert await health(world) == 200
    assert len(world.core.submitted) == 1


async def test_where_real_calls_pass_none_is_sent(world: Any) -> None:
    await world.ask()
    assert await health(world) == 200 and len(world.core.log) == 1


@pytest.mark.usefixtures("impatient")
async def test_who_waits_in_a_parrot_that_passes_nothing_on_is_told(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.parrot.upstream._LOOK_EVERY_S", 0.05)
    monkeypatch.setattr("proxy.parrot.watch._STUCK_S", 0.1)
    world.core.has_engine = False
    task = asyncio.create_task(world.ask())
    while not task.done():
        assert await health(world) == 503
    with pytest.raises(ConnectionError, match="is an engine registered"):
        await task
    world.core.has_engine = True


async def test_a_session_of_its_own_is_renewed_now_and_then(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.parrot.watch._LOOKS", 2)
    monkeypatch.setattr("proxy.parrot.watch._FRESH_S", -1.0)
    for _ in range(5):
        assert await health(world) == 200
    assert len(world.core.deleted) == 2 and len(world.core.sessions) == 1


async def test_builtin_is_well_when_its_core_answers(make_world: Any) -> None:
    world = await make_world(builtin=True, models=("v7b",))
    assert await health(world) == 200 and world.core.submitted == []
    await world.core.stop()
    monkey = world.upstream.watch
    monkey._passed = float("-inf")
    assert await health(world) == 503


async def test_its_models_are_those_of_the_engine_under_its_own_name(world: Any) -> None:
    reply = await world.upstream.send(b"GET", b"/v1/models", [], b"")
    assert [entry["id"] for entry in orjson.loads(await reply.rest())["data"]] == ["parrot/m"]


async def test_or_those_that_were_configured(make_world: Any) -> None:
    world = await make_world(models=("mine",))
    reply = await world.upstream.send(b"GET", b"/v1/models", [], b"")
    assert [entry["id"] for entry in orjson.loads(await reply.rest())["data"]] == ["mine"]
    await world.ask(model="mine")
    assert world.behind.seen[0][1]["model"] == "m"
    assert (await world.ask(model="other")).status == 400
