"""The real model in its real process."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil
import pytest

from proxy.config import EngineConfig
from proxy.engines import embedded as module
from proxy.engines.embedded import Embedded
from proxy.engines.interface import EngineError, EngineSample

QUESTION = {
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "Name the capital of France."}],
    "max_tokens": 8,
    "temperature": 0,
    "ignore_eos": True,
}
GATEWAY = """
import asyncio
from proxy.config import EngineConfig
from proxy.engines.embedded import Embedded

async def main():
    engine = Embedded(EngineConfig(name="e1", kind="embedded", slots=1, context=256))
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def sample(engine: Embedded, http: aiohttp.ClientSession) -> EngineSample:
    assert engine.metrics_path
    async with http.get(engine.url + engine.metrics_path) as reply:
        found = engine.parse(time.time(), await reply.read())
    assert found
    return found


async def until(holds: Callable[[], bool], within_s: float = 30.0) -> bool:
    for _ in range(int(within_s / 0.02)):
        if holds():
            return True
        await asyncio.sleep(0.02)
    return False


def gone(pid: int) -> bool:
    """Whether a process has ended, also when nobody has waited for it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_it_answers_and_counts(embedded: Embedded) -> None:
    async with aiohttp.ClientSession() as http:
        for path in embedded.health_paths:
            assert (await http.get(embedded.url + path)).status == 200
        before = await sample(embedded, http)
        async with http.post(embedded.url + "/v1/chat/completions", json=QUESTION) as reply:
            answer = await reply.json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
        between = await sample(embedded, http)
        streamed = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}}
        async with http.post(embedded.url + "/v1/chat/completions", json=streamed) as reply:
            frames = [line[6:].strip() async for line in reply.content if line.startswith(b"data: ")]
        after = await sample(embedded, http)

    assert frames[-1] == b"[DONE]"
    text = "".join(c["delta"].get("content") or "" for f in frames[:-1] for c in json.loads(f)["choices"])
    assert text == answer["choices"][0]["message"]["content"]
    usages = [answer["usage"], json.loads(frames[-2])["usage"]]
    assert (before.steps, before.prompt_tokens, before.output_tokens) == (0, 0, 0)
    assert between.steps and after.steps and after.steps > between.steps > 0
    assert after.prompt_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert after.cached_tokens == sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages) > 0
    assert after.output_tokens == sum(usage["completion_tokens"] for usage in usages) == 16
    assert (after.running, after.waiting) == (0, 0)


async def test_slots_and_names_are_as_configured(demo_model: Path) -> None:
    engine = Embedded(
        EngineConfig(
            name="e1", kind="embedded", slots=3, context=256, models=("tiny",), model_path=demo_model, threads=1
        )
    )
    await engine.start()
    try:
        async with aiohttp.ClientSession(engine.url) as http:
            slots = await (await http.get("/slots")).json()
            served = await (await http.get("/v1/models")).json()
    finally:
        await engine.stop()
    assert [slot["n_ctx"] for slot in slots] == [256, 256, 256]
    assert [entry["id"] for entry in served["data"]] == ["tiny"]


async def test_stop_ends_the_process_and_can_be_said_twice(embedded: Embedded) -> None:
    pid = embedded.pid
    assert pid and psutil.pid_exists(pid)
    await embedded.stop()
    assert gone(pid) and embedded.pid is None
    await embedded.stop()


async def test_a_process_that_does_not_listen_is_killed(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "END_S", 0.1)
    pid = embedded.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    await embedded.stop()
    assert gone(pid)


async def test_a_crashed_process_comes_back_at_the_same_address(
    embedded: Embedded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.01, 1.0))
    url, pid = embedded.url, embedded.pid
    assert pid
    os.kill(pid, signal.SIGSEGV)
    assert await until(lambda: embedded.pid not in (None, pid))
    async with aiohttp.ClientSession() as http:
        assert (await http.get(url + "/health")).status == 200
    assert embedded.url == url and f"signal {signal.SIGSEGV:d}" in caplog.text


async def test_the_process_does_not_outlive_a_killed_gateway(demo_model: Path) -> None:
    gateway = await asyncio.create_subprocess_exec(sys.executable, "-c", GATEWAY, stdout=asyncio.subprocess.PIPE)
    assert gateway.stdout
    pid = int(await gateway.stdout.readline())
    assert psutil.pid_exists(pid)
    gateway.kill()
    await gateway.wait()
    assert await until(lambda: gone(pid))


async def test_a_truncated_model_is_refused_with_the_engines_own_reason(demo_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    with demo_model.open("rb") as whole:
        path.write_bytes(whole.read(5_000_000))
    engine = Embedded(EngineConfig(name="e1", kind="embedded", model_path=path))
    with pytest.raises(
        EngineError, match=r"engine e1: the model does not start: exit 1; .*corrupted or incomplete"
    ) as error:
        await engine.start()
    assert "\n" not in str(error.value) and engine.pid is None
    await engine.stop()


async def test_a_start_that_is_called_off_leaves_no_process(demo_model: Path) -> None:
    engine = Embedded(EngineConfig(name="e1", kind="embedded"))
    me = psutil.Process()
    before = set(me.children())
    start = asyncio.create_task(engine.start())
    assert await until(lambda: set(me.children()) != before)
    begun = set(me.children()) - before
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert begun and all(gone(child.pid) for child in begun)
