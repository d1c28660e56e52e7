"""The engine in real time: what its metrics say of what was served, clients that go, limits that change, faults."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

Read = Callable[[str], list[Any]]


async def metrics(emulated: Any) -> dict[str, float]:
    """The samples of /metrics by name, label sets summed; buckets left out."""
    reply = await emulated.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            if "le" not in sample.labels:
                samples[sample.name] = samples.get(sample.name, 0) + sample.value
    return samples


class Client:
    """A client of the bare application that reads what it is sent and goes when it likes."""

    def __init__(self, app: Any, path: str, body: bytes) -> None:
        headers = [(b"content-type", b"application/json")]
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "extensions": {}}
        self._app, self._body = app, body
        self._gone = asyncio.Event()
        self._asked = False
        self.sent: list[Any] = []

    async def run(self) -> None:
        await self._app(self.scope, self._receive, self._send)

    def go(self) -> None:
        self._gone.set()

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


async def test_the_metrics_agree_with_what_was_served(emulated: Any) -> None:
    prompt = list(range(400, 500))
    usages = [(await emulated.complete(prompt, max_tokens=n))["usage"] for n in (5, 1)]
    usages.append((await emulated.complete("a b", max_tokens=7, n=2))["usage"])
    ended = (await emulated.complete(max_tokens=4000, ignore_eos=False))["usage"]
    found = await metrics(emulated)
    prompts = sum(usage["prompt_tokens"] for usage in usages) + usages[2]["prompt_tokens"] + ended["prompt_tokens"]
    produced = sum(usage["completion_tokens"] for usage in (*usages, ended))
    assert found["vllm:prompt_tokens_total"] == found["vllm:request_prompt_tokens_sum"] == prompts
    assert found["vllm:generation_tokens_total"] == found["vllm:request_generation_tokens_sum"] == produced
    assert found["vllm:prefix_cache_queries_total"] == prompts
    assert found["vllm:prefix_cache_hits_total"] == found["vllm:prompt_tokens_cached_total"] == 96
    assert found["vllm:prompt_tokens_by_source_total"] == prompts
    assert found["vllm:iteration_tokens_total_count"] == emulated.machine.scheduler.clock
    assert found["vllm:request_success_total"] == found["vllm:e2e_request_latency_seconds_count"] == 5
    assert found["vllm:time_to_first_token_seconds_count"] == 5
    assert found["vllm:inter_token_latency_seconds_count"] == produced - 5
    assert found["vllm:request_params_n_sum"] == 5 and found["vllm:request_params_n_count"] == 4
    assert found["vllm:request_params_max_tokens_sum"] == 5 + 1 + 7 + 7 + 4000
    parts = ("queue", "prefill", "decode")
    whole = sum(found[f"vllm:request_{part}_time_seconds_sum"] for part in parts)
    assert math.isclose(whole, found["vllm:e2e_request_latency_seconds_sum"], rel_tol=1e-6)
    assert found["vllm:num_requests_running"] == found["vllm:kv_cache_usage_perc"] == 0
    assert found["vllm:num_preemptions_total"] == 0


async def test_labels_and_types_are_vllms(emulated: Any) -> None:
    await emulated.complete()
    text = (await emulated.client.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["vllm:num_requests_running"].type == "gauge"
    assert families["vllm:iteration_tokens_total"].type == "histogram"
    assert families["vllm:prompt_tokens"].type == "counter"
    assert families["vllm:num_requests_running"].samples[0].labels == {"model_name": "llama-2-7b", "engine": "0"}
    reasons = {sample.labels.get("finished_reason") for sample in families["vllm:request_success"].samples}
    assert reasons == {"stop", "length", "abort", "error", "repetition"}
    assert families["vllm:cache_config_info"].samples[0].labels["block_size"] == "16"


@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_a_client_that_goes_is_cancelled_at_once(emulated: Any, stream: bytes) -> None:
    body = b'{"prompt":"a","max_tokens":4000,"ignore_eos":true,"stream":%b}' % stream
    client = Client(emulated.app, "/v1/completions", body)
    running = asyncio.create_task(client.run())
    await emulated.until(lambda: emulated.machine.scheduler.generation_tokens > 3)
    client.go()
    await running
    await emulated.until(lambda: not emulated.machine.scheduler.running)
    assert emulated.machine.scheduler.generation_tokens < 4000
    found = await metrics(emulated)
    assert found["vllm:request_success_total"] == 0 and found["vllm:kv_cache_usage_perc"] == 0


async def test_a_client_that_goes_while_it_waits_never_runs(make_emulated: Callable[..., Any]) -> None:
    emulated = make_emulated(max_num_seqs=1)
    first = asyncio.create_task(emulated.complete(max_tokens=200))
    await emulated.until(lambda: emulated.machine.scheduler.running)
    client = Client(emulated.app, "/v1/completions", b'{"prompt":"a","stream":true}')
    running = asyncio.create_task(client.run())
    await emulated.until(lambda: emulated.machine.scheduler.waiting)
    client.go()
    await running
    await emulated.until(lambda: not emulated.machine.scheduler.waiting)
    await first
    assert [message["type"] for message in client.sent] == ["http.response.start"]


async def test_the_limit_on_active_sequences_is_live(emulated: Any) -> None:
    most = 0

    async def watched(*requests: Any) -> int:
        nonlocal most
        most = 0
        tasks = [asyncio.create_task(request) for request in requests]
        while not all(task.done() for task in tasks):
            most = max(most, len(emulated.machine.scheduler.running))
            await asyncio.sleep(0.001)
        return most

    reply = await emulated.post("/emulator/limits", max_num_active_reqs=2)
    assert reply.json() == {"max_num_active_reqs": 2}
    assert await watched(*(emulated.complete(str(n), max_tokens=10) for n in range(6))) == 2
    assert (await emulated.post("/emulator/limits", max_num_active_reqs=None)).json() == {"max_num_active_reqs": 256}
    assert await watched(*(emulated.complete(str(n), max_tokens=10) for n in range(6))) == 6
    for wrong in (0, 257, "2"):
        assert (await emulated.post("/emulator/limits", max_num_active_reqs=wrong)).status_code == 400


async def test_a_lower_priority_number_goes_first(make_emulated: Callable[..., Any]) -> None:
    emulated = make_emulated(max_num_seqs=1, policy="priority")
    order: list[int] = []

    async def one(priority: int) -> None:
        await emulated.complete(str(priority), max_tokens=5, priority=priority)
        order.append(priority)

    emulated.engine.stall(60)
    waiting = [asyncio.create_task(one(priority)) for priority in (5, 1, 3)]
    await emulated.until(lambda: emulated.engine.unfinished == 3)
    emulated.engine.stall(0)
    await asyncio.gather(*waiting)
    assert order == [1, 3, 5]


async def test_the_counter_goes_on_between_and_during_steps(emulated: Any) -> None:
    emulated.host.catch_up()
    before = emulated.host.cards[0].energy_j, emulated.card.seconds
    await asyncio.sleep(0.05)
    emulated.host.catch_up()
    idle_j, idle_s = emulated.host.cards[0].energy_j - before[0], emulated.card.seconds - before[1]
    assert idle_s >= 0.05 and idle_j == pytest.approx(40 * idle_s)
    await emulated.complete(max_tokens=20)
    emulated.host.catch_up()
    assert emulated.host.cards[0].energy_j > idle_j + 100 * 20 * 0.002


async def test_a_client_that_goes_before_the_engine_has_its_request(make_emulated: Callable[..., Any]) -> None:
    emulated = make_emulated(request_s=0.05)
    client = Client(emulated.app, "/v1/completions", b'{"prompt":"a","max_tokens":4000,"ignore_eos":true}')
    running = asyncio.create_task(client.run())
    await emulated.until(lambda: emulated.engine.unfinished)
    client.go()
    await running
    assert emulated.engine.unfinished == 0
    body = await emulated.complete(max_tokens=3)
    assert body["usage"]["completion_tokens"] == emulated.machine.scheduler.generation_tokens == 3
    found = await metrics(emulated)
    assert found["vllm:time_to_first_token_seconds_sum"] > 0.05 > found["vllm:request_queue_time_seconds_sum"]


async def test_an_engine_that_fails_says_so_to_everybody(
    emulated: Any, monkeypatch: pytest.MonkeyPatch, frames_of: Read
) -> None:
    waiting = [asyncio.create_task(emulated.chat(stream=stream, max_tokens=4000)) for stream in (True, False)]
    await emulated.until(lambda: emulated.engine.unfinished == 2)
    emulated.engine.stall(0.05)

    def fail(until: float) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(emulated.machine, "advance", fail)
    streamed, whole = await asyncio.gather(*waiting)
    assert frames_of(streamed.text)[-1]["error"]["code"] == 500 and whole.status_code == 500
    assert (await emulated.client.get("/health")).status_code == 503
    assert (await emulated.chat()).status_code == 500


# Faults -------------------------------------------------------------------------------------------------------------


async def inject(emulated: Any, fault: str, **how: Any) -> Any:
    reply = await emulated.post("/emulator/faults", fault=fault, **how)
    assert reply.status_code == 200, reply.text
    return reply.json()["active"]


async def test_a_stall_stops_all_steps_and_costs_idle_power(emulated: Any) -> None:
    request = asyncio.create_task(emulated.complete(max_tokens=50))
    await emulated.until(lambda: emulated.machine.scheduler.generation_tokens > 3)
    assert 0 < (await inject(emulated, "stall", seconds=60))["stall"]["seconds"] <= 60
    steps, joules, seconds = emulated.machine.scheduler.clock, emulated.card.energy_j, emulated.card.seconds
    await asyncio.sleep(0.05)
    emulated.host.catch_up()
    assert emulated.machine.scheduler.clock == steps and not request.done()
    assert emulated.card.energy_j - joules == pytest.approx(40 * (emulated.card.seconds - seconds))
    assert (await emulated.client.delete("/emulator/faults")).json() == {"active": {}}
    body = await request
    assert body["usage"]["completion_tokens"] == 50
    slowest = (await metrics(emulated))["vllm:e2e_request_latency_seconds_sum"]
    assert slowest >= 0.05 + 50 * 0.002, "the stall is in the latency"


async def test_a_stall_ends_by_itself(emulated: Any) -> None:
    await inject(emulated, "stall", seconds=0.05)
    assert (await emulated.complete())["usage"]["completion_tokens"] == 8
    assert (await emulated.client.get("/emulator/faults")).json() == {"active": {}}


async def test_a_slow_engine_takes_longer_for_its_steps(emulated: Any) -> None:
    assert (await inject(emulated, "slow", factor=10, seconds=60))["slow"]["factor"] == 10
    await emulated.complete(max_tokens=10)
    found = await metrics(emulated)
    assert found["vllm:inter_token_latency_seconds_sum"] == pytest.approx(9 * 0.02)
    await emulated.client.delete("/emulator/faults")
    await emulated.complete(max_tokens=10)
    found = await metrics(emulated)
    assert found["vllm:inter_token_latency_seconds_sum"] == pytest.approx(9 * 0.02 + 9 * 0.002)


async def test_so_many_requests_are_refused(emulated: Any, frames_of: Read) -> None:
    await inject(emulated, "refuse", count=2, status=429)
    replies = [await emulated.chat(max_tokens=1) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [429, 429, 200]
    assert replies[0].json()["error"]["code"] == 429
    active = await inject(emulated, "refuse", in_stream=True)
    assert active["refuse"] == {"count": 1, "status": 503, "in_stream": True}
    reply = await emulated.chat(stream=True)
    assert reply.status_code == 200 and frames_of(reply.text)[0]["error"]["code"] == 503


async def test_a_dropped_stream_ends_midway(emulated: Any) -> None:
    await inject(emulated, "drop")
    body = b'{"prompt":"a","max_tokens":40,"ignore_eos":true,"stream":true}'
    client = Client(emulated.app, "/v1/completions", body)
    client.scope["extensions"] = {"joulegate.emulator.reset": client.go}
    await client.run()
    text = b"".join(message.get("body", b"") for message in client.sent)
    assert b"[DONE]" not in text and text.count(b"data: ") >= 20
    again = Client(emulated.app, "/v1/completions", body)
    await again.run()
    assert b"[DONE]" in b"".join(message.get("body", b"") for message in again.sent)


async def test_a_crash_and_a_lost_permission(emulated: Any) -> None:
    assert await inject(emulated, "forbid") == {"forbid": {}}
    assert not emulated.host.may_set
    await emulated.client.delete("/emulator/faults")
    assert emulated.host.may_set
    await inject(emulated, "crash")
    assert emulated.deaths == [None]


async def test_a_reset_begins_all_counters_again(emulated: Any) -> None:
    await emulated.complete(list(range(400, 500)))
    await inject(emulated, "reset")
    found = await metrics(emulated)
    moved = {name for name, value in found.items() if value and not name.endswith("_created")}
    assert moved == {"vllm:engine_sleep_state", "vllm:cache_config_info"}
    assert emulated.host.cards[0].energy_j < 1
    await emulated.complete(list(range(400, 500)), max_tokens=4)
    found = await metrics(emulated)
    assert (found["vllm:generation_tokens_total"], found["vllm:prefix_cache_hits_total"]) == (4, 96)


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ({"fault": "stal", "seconds": 1}, "did you mean 'stall'?"),
        ({"fault": "stall"}, "seconds: Field required"),
        ({"fault": "slow", "factor": 0.5, "seconds": 1}, "factor: "),
        ({"fault": "drop", "streams": 2}, "streams: Extra inputs"),
        ({}, "one of stall, slow"),
    ],
)
async def test_a_fault_that_is_none(emulated: Any, asked: dict[str, Any], hint: str) -> None:
    reply = await emulated.post("/emulator/faults", **asked)
    assert reply.status_code == 400 and hint in reply.json()["error"]["message"]
