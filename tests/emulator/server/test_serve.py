"""The engine on a real socket, met by the official client."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from emulator.server.serve import server
from emulator.server.tokens import encode


@pytest.fixture
async def url(emulated: Any) -> AsyncIterator[str]:
    before = signal.getsignal(signal.SIGTERM)
    sock = socket.create_server(("127.0.0.1", 0))
    serving = server(emulated.app)
    running = asyncio.create_task(serving.serve(sockets=[sock]))
    await emulated.until(lambda: serving.started)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    serving.should_exit = True
    await running
    assert signal.getsignal(signal.SIGTERM) is before, "signals belong to whoever runs the server"


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_the_official_client_streams(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="llama-2-7b",
        messages=[{"role": "user", "content": "hello"}],
        max_completion_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens == len(encode(text)) == 20
    assert usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens == 0
    assert [model.id async for model in client.models.list()] == ["llama-2-7b"]


async def test_the_official_client_understands_refusals(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError) as error:
        await client.completions.create(model="llama-2-7b", prompt="a", temperature=3)
    assert error.value.param == "temperature"


async def test_a_dropped_stream_is_reset(url: str) -> None:
    body = b'{"prompt":"a","max_tokens":40,"ignore_eos":true,"stream":true}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: e\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

    def read() -> bytes:
        """All that comes before the reset."""
        seen = b""
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20) as sock:
            sock.sendall(head % len(body) + body)
            with pytest.raises(ConnectionResetError):
                while part := sock.recv(65536):
                    seen += part
        return seen

    async with httpx.AsyncClient(base_url=url) as client:
        await client.post("/emulator/faults", json={"fault": "drop"})
        seen = await asyncio.to_thread(read)
        assert b"data: " in seen and b"[DONE]" not in seen
        whole = await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 4, "ignore_eos": True})
        assert whole.json()["usage"]["completion_tokens"] == 4


async def test_a_closed_connection_frees_its_place(emulated: Any, url: str) -> None:
    body = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    async with httpx.AsyncClient(base_url=url) as client, client.stream("POST", "/v1/completions", json=body) as reply:
        async for _ in reply.aiter_bytes():
            break
    await emulated.until(lambda: not emulated.machine.scheduler.running)
    assert 0 < emulated.machine.scheduler.generation_tokens < 4000


async def test_many_streams_at_once_get_all_their_tokens(emulated: Any, url: str) -> None:
    async def one(client: httpx.AsyncClient, number: int) -> int:
        body = {"prompt": f"number {number}", "max_tokens": 50, "ignore_eos": True, "stream": True}
        text = (await client.post("/v1/completions", json=body)).text
        return text.count('"index":0')

    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        assert await asyncio.gather(*(one(client, number) for number in range(32))) == [50] * 32
    assert emulated.machine.scheduler.generation_tokens == 32 * 50
