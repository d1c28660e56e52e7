"""An engine that is killed under many streams, again and again: nobody hangs, everybody is told, the books balance."""

import asyncio
import os
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from stage import Engine, Gateway, chat_body, residual_uj, running, until

ROUNDS = int(os.environ.get("JOULEGATE_SOAK_ROUNDS", "2"))
STREAMS = 50
GPU = "local/gpu:0"


async def streamed(client: httpx.AsyncClient, begun: list[int]) -> str:
    """One stream to its end, whatever that is."""
    text: list[str] = []
    body = chat_body(stream=True, max_tokens=100_000)
    async with client.stream("POST", "/v1/chat/completions", json=body, headers={"x-workflow-name": "killed"}) as reply:
        assert reply.status_code == 200
        async for part in reply.aiter_text():
            if not text:
                begun.append(1)
            text.append(part)
    return "".join(text)


async def streams_under_a_kill(gateway: Gateway, engine: Engine) -> list[str]:
    begun: list[int] = []
    limits = httpx.Limits(max_connections=STREAMS)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30, limits=limits) as client:
        streams = [asyncio.create_task(streamed(client, begun)) for _ in range(STREAMS)]
        await asyncio.to_thread(until, lambda: len(begun) == STREAMS)
        await asyncio.sleep(0.2)
        engine.kill()
        return await asyncio.gather(*streams)


@pytest.mark.scripted
def test_an_engine_killed_under_fifty_streams(nvml_library: Path, nvml_play: ModuleType, tmp_path: Path) -> None:
    play = nvml_play.NvmlPlay(nvml_library, tmp_path / "nvml.state")
    play.set_power_w(0, 300)
    engine = Engine("stub-7b", step_ms=50)
    config = {
        "engines": [{"name": "e1", "kind": "vllm", "url": engine.url, "devices": [GPU]}],
        "breaker": {"open_seconds": 0.2},
    }
    try:
        with running(Gateway(config, tmp_path, play.env)) as gateway:
            for number in range(ROUNDS):
                texts = asyncio.run(streams_under_a_kill(gateway, engine))
                assert len(texts) == STREAMS
                for text in texts:
                    last = text.strip().rpartition("\n\n")[2]
                    assert last.startswith('data: {"error":{') and '"code":"engine_failed"' in last
                until(gateway.idle)
                assert gateway.metric("joulegate_requests_total", workflow="killed", outcome="failed") == STREAMS * (
                    number + 1
                )
                until(lambda: gateway.http.get("/readyz").status_code == 503)
                refused = gateway.chat()
                assert refused.status_code in (502, 503), refused.text
                engine = Engine("stub-7b", 50, engine.port)
                until(lambda: gateway.chat(max_tokens=1).status_code == 200)
                books = gateway.balance()[GPU]
                assert residual_uj(books) == 0 and books["gap_j"] == 0
                assert gateway.metric("joulegate_gate_in_flight") == 0
    finally:
        engine.close()
