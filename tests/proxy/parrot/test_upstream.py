"""Plain OpenAI requests through a ServeCore and back, and everything that can go wrong on the way."""

import asyncio
from typing import Any

import orjson
import pytest

from proxy.parrot.wire import CoreFault
from proxy.upstream import Dropped, Unreachable


def frames(stream: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in stream.split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    return [orjson.loads(line) for line in lines[:-1]]


async def test_the_engine_gets_the_clients_own_request_and_the_client_the_engines_own_reply(world: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    headers = [(b"x-request-id", b"mine-1"), (b"authorization", b"Bearer clients")]
    reply = await world.ask(messages=messages, seed=3, stop=["END"], max_tokens=9, headers=headers)
    assert reply.status == 200
    assert reply.content["choices"][0]["message"]["content"] == "You said: hello"
    assert reply.content["usage"]["prompt_tokens_details"] == {"cached_tokens": 2} and reply.content["mine"] == 1
    [(seen, body)] = world.behind.seen
    assert body == {"model": "m", "messages": messages, "seed": 3, "stop": ["END"], "max_tokens": 9}
    assert seen["x-request-id"] == "mine-1" and seen["authorization"] == "Bearer engines-own"


async def test_what_parrot_gets_avoids_its_traps(world: Any) -> None:
    text = "{{answer}} is no {{placeholder}} here"
    await world.ask(messages=[{"role": "user", "content": text}], temperature=0.5, top_p=0.9, seed=3)
    [call] = world.core.submitted
    payload = call.payload
    assert payload["cache_prefix"] is False and payload["model_type"] == "text"
    assert "fuse_fill" not in payload and "output_criteria" not in payload
    assert payload["template"] == "{{in_0}}{{in_1}}{{answer}}", "no text inside of the template"
    assert text in payload["parameters"][0]["value"]
    assert [one["name"] for one in payload["parameters"] if one["is_output"]] == ["answer"]
    assert call.sampling.keys() == {"temperature", "top_p", "max_gen_length", "stop_str"}
    assert call.criteria == "throughput"


async def test_a_stream_is_one_chunk_and_says_so(world: Any) -> None:
    progress = world.progress(stream=True)
    reply = await world.ask(stream=True, stream_options={"include_usage": True}, progress=progress)
    assert reply.headers[b"x-joulegate-stream"] == b"emulated"
    assert reply.headers[b"content-type"].startswith(b"text/event-stream")
    content, end, usage = frames(reply.content)
    assert content["choices"][0]["delta"] == {"role": "assistant", "content": "You said: hello"}
    assert content["choices"][0]["finish_reason"] is None and end["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3
    assert world.behind.seen[0][1]["stream"] is True
    assert world.started == [progress] and progress.dispatched > 1.0, "it begins when the engine does"
    assert progress.frames == 3 and progress.first is not None, "counted as the engine's frames came"


async def test_completions_pass_too(world: Any) -> None:
    whole = await world.ask("/v1/completions", prompt="say")
    assert whole.content["choices"][0]["text"] == "You said: say"
    stream = await world.ask("/v1/completions", prompt="say", stream=True)
    content, end, _ = frames(stream.content)
    assert content["choices"][0]["text"] == "You said: say" and end["choices"][0]["text"] == ""


async def test_token_ids_reach_the_engine_as_they_are(world: Any) -> None:
    assert (await world.ask("/v1/completions", prompt=[1, 2, 3])).status == 200
    assert world.behind.seen[0][1]["prompt"] == [1, 2, 3]


async def test_the_engine_behind_tokenizes_past_parrot(world: Any) -> None:
    reply = await world.ask("/tokenize", prompt="some words")
    assert reply.status == 200 and world.core.submitted == []
    assert world.behind.seen[0][1] == {"model": "m", "prompt": "some words"}


async def test_the_engines_own_no_is_the_clients_to_read(world: Any) -> None:
    world.behind.error = "too long"
    for status in (400, 404, 413, 429):
        for stream in (False, True):
            world.behind.status = status
            reply = await world.ask(stream=stream)
            assert (reply.status, reply.content["error"]["message"]) == (status, "too long")
    world.behind.status = 200
    assert (await world.ask()).status == 200 and world.core.dead is None


async def test_a_failing_engine_is_the_clients_failure_and_never_parrots(world: Any) -> None:
    for status in (500, 502, 503):
        world.behind.status = status
        with pytest.raises(Dropped, match=f"engine e1 behind it answered {status}"):
            await world.ask()
    world.behind.status = 200
    assert (await world.ask()).status == 200 and world.core.dead is None


async def test_an_engine_that_breaks_off_its_stream_fails_the_call_alone(world: Any) -> None:
    world.behind.break_off = True
    with pytest.raises(OSError, match=r"closed the connection|broke|complete"):
        await world.ask(stream=True)
    world.behind.break_off = False
    assert (await world.ask(stream=True)).status == 200 and world.core.dead is None


async def test_a_fault_of_ours_is_the_clients_failure_and_nobody_elses(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: Any) -> None:
        raise KeyError("a prompt")

    with monkeypatch.context() as patched:
        patched.setattr("proxy.parrot.calls._exchange", stumble)
        with pytest.raises(KeyError):
            await world.ask()
    assert (await world.ask()).status == 200 and world.core.dead is None


async def test_an_engine_that_is_gone_fails_the_call_alone(world: Any) -> None:
    world.lane.upstream = type(world.lane.upstream)("http://127.0.0.1:1", 1.0)
    with pytest.raises(Unreachable):
        await world.ask()
    assert world.core.dead is None


async def test_a_client_that_leaves_ends_the_engines_work_and_parrot_lives(world: Any) -> None:
    world.behind.hold = asyncio.Event()
    task = asyncio.create_task(world.ask())
    await asyncio.wait_for(world.behind.came.wait(), 5)
    task.cancel()
    await asyncio.wait_for(world.behind.left.wait(), 5)
    await asyncio.wait([task])
    assert task.cancelled() and len(world.engine._calls) == 0
    world.behind.hold = None
    assert (await world.ask()).status == 200 and world.core.dead is None


async def test_a_call_whose_client_left_in_parrots_queue_never_reaches_the_engine(world: Any) -> None:
    world.core.has_engine = False
    task = asyncio.create_task(world.ask())
    await asyncio.wait_for(world.core.activated.wait(), 5)
    task.cancel()
    await asyncio.wait([task])
    world.core.has_engine = True
    await asyncio.wait_for(world.engine._calls.none_owed.wait(), 5)
    assert world.behind.seen == [] and world.core.dead is None


async def test_what_parrot_never_brings_is_not_owed_for_good(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.core.has_engine = False
    task = asyncio.create_task(world.ask())
    await asyncio.wait_for(world.core.activated.wait(), 5)
    monkeypatch.setattr("proxy.parrot.calls._OWED_S", 0.01)
    await asyncio.sleep(0.05)
    assert not world.engine._calls.none_owed.is_set(), "its client waits"
    task.cancel()
    await asyncio.wait_for(world.engine._calls.none_owed.wait(), 5)


async def test_twenty_at_once_get_each_its_own_answer(world: Any) -> None:
    said = [{"role": "user", "content": f"number {n}"} for n in range(20)]
    replies = await asyncio.gather(*(world.ask(run=world.run(f"r{n}"), messages=[one]) for n, one in enumerate(said)))
    texts = [reply.content["choices"][0]["message"]["content"] for reply in replies]
    assert texts == [f"You said: number {n}" for n in range(20)]
    assert len(world.core.sessions) == 20


async def test_sessions_that_parrot_forgot_are_made_anew(world: Any) -> None:
    assert (await world.ask()).status == 200
    await world.core.restart()
    assert (await world.ask()).status == 200
    world.core.advance(601)
    async with asyncio.timeout(5):
        while world.core.sessions:  # noqa: ASYNC110  (it looks every few milliseconds)
            await asyncio.sleep(0.005)
    assert (await world.ask()).status == 200


async def test_a_session_that_another_run_was_given_after_a_restart_is_left_to_it(world: Any) -> None:
    first, second = world.run("r1"), world.run("r2")
    for _ in range(3):
        await world.ask(run=first)
    await world.core.restart()
    await world.ask(run=second)  # it gets id 0, which the first run still holds
    await world.ask(run=first)
    sessions = [call.session for call in world.core.log[-2:]]
    assert sessions == [0, 1]


async def test_a_parrot_that_dies_meanwhile_is_a_failure_of_the_engine(world: Any) -> None:
    world.behind.hold = asyncio.Event()
    task = asyncio.create_task(world.ask())
    await asyncio.wait_for(world.behind.came.wait(), 5)
    await world.core.stop()
    with pytest.raises(ConnectionError):
        await task
    with pytest.raises(Unreachable):
        await world.ask()


async def test_an_answer_that_did_not_come_through_the_egress_is_refused(world: Any) -> None:
    other: Any = type(world.core)(f"{world.behind.url}/v1", "x")
    try:
        world.upstream.core.upstream = type(world.upstream.core.upstream)(await other.start(), 5.0)
        with pytest.raises(CoreFault, match="base_url must be the egress's"):
            await world.ask()
    finally:
        world.upstream.core.upstream.close()
        await other.stop()


async def test_without_its_switch_the_error_names_it(world: Any) -> None:
    world.core.latency_env = None
    with pytest.raises(CoreFault, match="SIMULATE_NETWORK_LATENCY_PRT=0"):
        await world.ask()


async def test_who_waits_in_a_session_that_went_bad_is_told(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.parrot.upstream._LOOK_EVERY_S", 0.05)
    world.core.has_engine = False
    task = asyncio.create_task(world.ask())
    await asyncio.wait_for(world.core.activated.wait(), 5)
    world.core.spoil(0)
    with pytest.raises(CoreFault, match="dropped the run's session"):
        await task


async def test_builtin_answers_with_an_estimated_usage(make_world: Any) -> None:
    world = await make_world(builtin=True, models=("v7b",))
    reply = await world.ask(model="v7b", max_tokens=4, temperature=0, stop=["d w"])
    assert reply.content["choices"][0]["message"]["content"] == "wor"
    assert reply.headers[b"x-joulegate-usage"] == b"estimated" and reply.reply.usage_by == "estimated"
    assert reply.content["usage"]["prompt_tokens"] > 0
    [call] = world.core.log
    assert call.model_type == "token_id" and call.models == [] and call.sampling["temperature"] > 0
    assert "stop_str" not in call.sampling
    stream = await world.ask(model="v7b", max_tokens=2, stream=True)
    assert frames(stream.content)[0]["choices"][0]["delta"]["content"] == "word word "
    assert (await world.ask(model="v7b", seed=1)).content["error"]["param"] == "seed"
