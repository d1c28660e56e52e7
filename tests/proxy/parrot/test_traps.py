"""The traps are really there in the ServeCore that the tests stand on, and what we send keeps out of each."""

import asyncio
from typing import Any

import aiohttp
import pytest

from proxy.parrot.core import ServeCore
from proxy.parrot.wire import Text
from proxy.upstream import Upstream


async def careless(core: Any, **call: Any) -> tuple[aiohttp.ClientSession, dict[str, Any], str]:
    """A semantic call as somebody sends it who has read less; returns the session's body and the output's id."""
    http = aiohttp.ClientSession(core.url)
    async with http.post("/v1/session", json={}) as reply:
        own = await reply.json()
    parameters = [
        {"name": "a", "is_output": False, "value": "x"},
        {"name": "b", "is_output": True, "sampling_config": {}},
    ]
    body = {**own, "template": "{{a}}{{b}}", "parameters": parameters, "model_type": "text", **call}
    async with http.post("/v1/semantic_call", json=body) as reply:
        return http, own, (await reply.json())["param_info"][1]["var_id"]


async def test_a_cached_prefix_whose_call_never_ran_ends_the_core(world: Any) -> None:
    http, _, _ = await careless(world.core)
    await http.close()
    world.core.advance(601)
    await asyncio.wait_for(world.core.died.wait(), 5)


async def test_ours_may_be_left_without_running(world: Any) -> None:
    core = ServeCore(Upstream(world.core.url, 5.0))
    session = await core.open_session()
    await core.submit(session, [Text("never asked for")], {})
    world.core.life_span_s = 10_000.0
    world.core.advance(601)
    assert await core.knows(session) and await core.knows(session)
    assert world.core.dead is None
    core.upstream.close()


async def test_an_engine_that_is_told_anything_but_200_ends_the_core(world: Any) -> None:
    world.core.key = "not the egress's"
    http, own, output = await careless(world.core)
    with pytest.raises(aiohttp.ClientError):
        await http.request("GET", f"/v1/semantic_var/{output}", json={**own, "criteria": "throughput"})
    await http.close()
    assert world.core.dead is not None


async def test_the_latency_criteria_would_let_four_calls_run_at_a_time_and_ours_do_not(world: Any) -> None:
    world.behind.hold = asyncio.Event()
    calls = [asyncio.create_task(world.ask(run=world.run(f"r{n}"))) for n in range(6)]
    async with asyncio.timeout(5):
        while len(world.core.log) < 6:  # noqa: ASYNC110  (it looks every few milliseconds)
            await asyncio.sleep(0.005)
    world.behind.hold.set()
    await asyncio.gather(*calls)


async def test_nothing_runs_until_it_is_asked_for(world: Any) -> None:
    http, own, output = await careless(world.core, cache_prefix=False)
    assert world.core.log == []
    body = {**own, "criteria": "throughput"}
    async with http.request("GET", f"/v1/semantic_var/{output}", json=body) as reply:
        assert (await reply.json())["content"] == "", "nobody of ours waits for it"
    await http.close()
    assert len(world.core.log) == 1 and world.behind.seen == []
