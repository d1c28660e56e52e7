"""The endpoint that Parrot's engine takes for its model: it knows its guests, and tells them 200 whatever happens."""

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest

from proxy.config import ConfigError, EngineConfig
from proxy.engines.parrot import Parrot
from proxy.parrot.egress import Door, Guest

KEY = "0123456789abcdef0123"


async def post(world: Any, key: str = KEY, body: Any = None, data: bytes | None = None) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    sent = orjson.dumps(body) if data is None else data
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{world.egress}/chat/completions", data=sent, headers=headers) as reply,
    ):
        return reply.status, await reply.json(content_type=None)


def text_of(reply: Any) -> str:
    return reply["choices"][0]["message"]["content"]


async def test_who_has_not_the_key_learns_nothing(world: Any) -> None:
    call = world.engine._calls.open("/v1/chat/completions", {"messages": []}, [], None)
    for key in ("", "wrong", "0123456789abcdef012"):
        status, _ = await post(world, key, {"stop": [call.id]})
        assert status == 401 and world.behind.seen == []
    world.engine._calls.close(call)


async def test_the_log_hears_of_them_once_a_minute(
    world: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await post(world, "wrong", {})
    assert len(caplog.records) == 1 and "without the egress's key" in caplog.text
    monkeypatch.setattr("proxy.parrot.egress._TELL_EVERY_S", 0.0)
    await post(world, "wrong", {})
    assert len(caplog.records) == 2


async def test_what_nobody_waits_for_is_answered_with_nothing(world: Any) -> None:
    for data in (b"", b"no json", b"[]", b'{"stop": null}', b'{"stop": "x"}', b'{"stop": ["x", 3]}'):
        status, reply = await post(world, data=data)
        assert (status, text_of(reply)) == (200, "") and world.behind.seen == []


async def test_an_id_is_its_calls_own_and_cannot_be_guessed(world: Any) -> None:
    calls = [world.engine._calls.open("/v1/chat/completions", {}, [], None) for _ in range(100)]
    assert len({call.id for call in calls}) == 100 and all(len(call.id) >= 32 for call in calls)
    for call in calls:
        world.engine._calls.close(call)


async def test_a_call_that_parrots_client_repeats_runs_once(world: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "once"}]}
    call = world.engine._calls.open("/v1/chat/completions", body, [], None)
    world.behind.hold = asyncio.Event()
    asked = [asyncio.create_task(post(world, body={"stop": [call.id]})) for _ in range(3)]
    await asyncio.wait_for(world.behind.came.wait(), 5)
    await asyncio.sleep(0.05)
    world.behind.hold.set()
    assert [(status, text_of(reply)) for status, reply in await asyncio.gather(*asked)] == [(200, "You said: once")] * 3
    assert len(world.behind.seen) == 1
    world.engine._calls.close(call)


async def test_what_the_engine_refuses_is_no_failure_to_parrot(world: Any) -> None:
    for world.behind.status in (400, 500):
        call = world.engine._calls.open("/v1/chat/completions", {"messages": []}, [], None)
        told, reply = await post(world, body={"stop": [call.id]})
        assert (told, text_of(reply)) == (200, "")
        world.engine._calls.close(call)


async def test_while_an_answer_takes_long_blanks_keep_parrots_client_waiting(world: Any) -> None:
    door = Door(blank_every_s=0.01)
    door.guests.append(Guest(KEY, world.engine._calls, lambda: world.lane))
    world.behind.hold = asyncio.Event()
    call = world.engine._calls.open("/v1/chat/completions", {"model": "m", "messages": [{"content": "x"}]}, [], None)
    sent: list[Any] = []
    blanks = asyncio.Event()

    async def receive() -> Any:
        return {"type": "http.request", "body": orjson.dumps({"stop": [call.id]})}

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 4:
            blanks.set()

    scope = {"type": "http", "method": "POST", "headers": [(b"authorization", f"Bearer {KEY}".encode())]}
    task = asyncio.create_task(door(scope, receive, send))
    await asyncio.wait_for(blanks.wait(), 5)
    world.behind.hold.set()
    await task
    assert sent[0]["status"] == 200 and [message["body"] for message in sent[1:4]] == [b" "] * 3
    assert text_of(orjson.loads(b"".join(message["body"] for message in sent[1:]))) == "You said: x"
    assert not sent[-1].get("more_body")
    world.engine._calls.close(call)


async def test_the_next_configurations_parrot_shares_the_door(world: Any) -> None:
    port = int(world.egress.rpartition(":")[2].partition("/")[0])
    other_key = "another-key-of-16-characters"
    given: Any = {"egress": {"engine": "e1", "port": port, "key": other_key}}
    successor = Parrot(EngineConfig(name="parrot", kind="parrot", url=world.core.url, **given))
    await successor.start()
    call = world.engine._calls.open("/v1/chat/completions", {"messages": [{"content": "old"}]}, [], None)
    assert (await post(world, other_key, {"stop": [call.id]}))[1]["choices"][0]["message"]["content"] == ""
    call.body["model"] = "m"
    assert text_of((await post(world, KEY, {"stop": [call.id]}))[1]) == "You said: old"
    world.engine._calls.close(call)
    await successor.stop()
    assert (await post(world, other_key, {}))[0] == 401, "and it has left"
    assert (await post(world, KEY, {}))[0] == 200


async def test_an_address_that_is_taken_is_an_error_that_says_so(world: Any) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    given: Any = {"egress": {"engine": "e1", "port": port, "key": KEY}}
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        await Parrot(EngineConfig(name="p", kind="parrot", url="http://127.0.0.1:1", **given)).start()
    server.close()


async def test_at_the_end_the_door_stays_open_for_what_parrot_still_brings(world: Any) -> None:
    world.core.has_engine = False
    task = asyncio.create_task(world.ask())
    await asyncio.wait_for(world.core.activated.wait(), 5)
    task.cancel()
    await asyncio.wait([task])
    stopping = asyncio.create_task(world.engine.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    world.core.has_engine = True
    await stopping
    assert world.core.dead is None and world.core.deleted == [0] and len(world.core.log) == 1
