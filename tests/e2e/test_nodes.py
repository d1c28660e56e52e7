"""Named calls of one run, sent in any order through a whole gateway."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from stage import Engine, Gateway, chat_body, running, until

pytestmark = pytest.mark.scripted
NUMBERS = count(1)


@pytest.fixture(scope="module")
def gateway(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    engines = [{"name": "e1", "kind": "openai", "url": engine.url, "models": ["stub-7b"]}]
    config = {"engines": engines, "limits": {"node_seconds": 1.0}}
    with running(Gateway(config, tmp_path_factory.mktemp("nodes"))) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture
def run() -> str:
    return f"nodes-{next(NUMBERS)}"


def headers(run: str, node: str, **more: str) -> dict[str, str]:
    return {"x-workflow-id": run, "x-workflow-name": "dag", "x-workflow-node": node, **more}


def call(client: httpx.AsyncClient, run: str, node: str, text: str, **body: Any) -> "asyncio.Task[httpx.Response]":
    whole = {**chat_body(content=text), "max_tokens": 2, **body}
    return asyncio.create_task(client.post("/v1/chat/completions", json=whole, headers=headers(run, node)))


def prompts(engine: Engine, run: str) -> dict[str, Any]:
    """What the engine was given, by node."""
    return {
        served["headers"]["x-workflow-node"]: served["body"].get("prompt") or served["body"]["messages"][0]["content"]
        for served in engine.log(x_workflow_id=run)
    }


async def test_a_whole_graph_at_once_in_the_wrong_order(gateway: Gateway, engine: Engine, run: str) -> None:
    client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)

    async def ask(node: str, text: str, tokens: int) -> str:
        reply = await client.chat.completions.create(
            model="stub-7b",
            messages=[{"role": "user", "content": text}],
            max_tokens=tokens,
            extra_headers=headers(run, node),
        )
        return reply.choices[0].message.content or ""

    async def stream(node: str, text: str, tokens: int) -> str:
        chunks = await client.completions.create(
            model="stub-7b", prompt=text, max_tokens=tokens, stream=True, extra_headers=headers(run, node)
        )
        return "".join([chunk.choices[0].text async for chunk in chunks])

    said = await asyncio.gather(
        ask("merge", "{{node:map-1}}|{{node:map-2}}|{{node:map-1}}", 4),
        stream("map-1", "of {{node:plan}}", 2),
        ask("map-2", r"not \{{node:plan}} but {{node:plan}}", 3),
        ask("plan", "begin", 1),
    )
    words = ["joule " * n for n in (4, 2, 3, 1)]
    assert said == words
    assert prompts(engine, run) == {
        "plan": "begin",
        "map-1": f"of {words[3]}",
        "map-2": f"not {{{{node:plan}}}} but {words[3]}",
        "merge": f"{words[1]}|{words[2]}|{words[1]}",
    }
    found = gateway.run(run)
    by_node = {request["node"]: request for request in found["requests"]}
    assert {node: request["parents"] for node, request in by_node.items()} == {
        "plan": [],
        "map-1": ["plan"],
        "map-2": ["plan"],
        "merge": ["map-1", "map-2"],
    }


async def test_a_failed_producer_costs_its_dependents_nothing(
    gateway: Gateway, engine: Engine, client: httpx.AsyncClient, run: str
) -> None:
    last, middle = call(client, run, "c", "{{node:b}}"), call(client, run, "b", "{{node:a}} {{node:other}}")
    failed = await call(client, run, "a", "go", stub={"refuse": 500})
    replies = [await middle, await last]
    assert failed.status_code == 500
    assert [(reply.status_code, reply.json()["error"]["code"]) for reply in replies] == [(424, "producer_failed")] * 2
    assert prompts(engine, run) == {"a": "go"}
    again = await asyncio.gather(*(call(client, run, node, text) for node, text in (("b", "{{node:a}}"), ("a", "go"))))
    assert [reply.status_code for reply in again] == [424, 200], "b was told of the a that had failed"
    assert (await call(client, run, "b", "{{node:a}}")).status_code == 200
    assert engine.log(x_workflow_node="b", x_workflow_id=run)[-1]["body"]["messages"][0]["content"] == "joule joule "


async def test_what_can_never_be_is_said(gateway: Gateway, engine: Engine, client: httpx.AsyncClient, run: str) -> None:
    first = call(client, run, "a", "{{node:b}}")
    await asyncio.sleep(0.1)
    closes = await call(client, run, "b", "{{node:a}}")
    twice = await call(client, run, "a", "again")
    without = await client.post("/v1/chat/completions", json=chat_body(), headers={"x-workflow-node": "a"})
    embedded = await client.post(
        "/v1/embeddings", json={"model": "stub-7b", "input": "x"}, headers=headers(run, "vector")
    )
    reads = await call(client, run, "reads", "{{node:vector}}")
    replies = [closes, twice, without, embedded, reads, await first]
    assert [reply.status_code for reply in replies] == [400, 409, 400, 200, 424, 424]
    codes = ["node_cycle", "duplicate_node", "node_without_run", None, "node_without_text", "unknown_node"]
    assert [reply.json().get("error", {}).get("code") for reply in replies] == codes
    assert "b -> a -> b" in closes.json()["error"]["message"]
    assert [served["path"] for served in engine.log(x_workflow_id=run)] == ["/v1/embeddings"]
    held = {request["code"]: request for request in gateway.run(run)["requests"] if request["node"] == "a"}[424]
    assert held["outcome"] == "refused"


async def test_a_client_that_leaves_is_not_waited_for(
    gateway: Gateway, engine: Engine, client: httpx.AsyncClient, run: str
) -> None:
    leaves, behind = call(client, run, "b", "{{node:a}}"), call(client, run, "c", "{{node:b}}")
    await asyncio.sleep(0.1)
    leaves.cancel()
    told = await behind
    assert (told.status_code, "its client left" in told.text) == (424, True)
    assert (await call(client, run, "a", "go")).status_code == 200
    assert set(prompts(engine, run)) == {"a"}


async def test_a_gateway_that_ends_tells_those_who_wait_for_nobody(engine: Engine, make_gateway: Any, run: str) -> None:
    gateway: Gateway = make_gateway({"engines": [{"name": "e1", "kind": "openai", "url": engine.url}]})
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        runs = call(client, run, "a", "go", max_tokens=60)
        well, lost = call(client, run, "b", "{{node:a}}"), call(client, run, "c", "{{node:ghost}}")
        await asyncio.to_thread(until, lambda: engine.log(x_workflow_id=run))
        await asyncio.sleep(0.1)
        gateway.process.send_signal(signal.SIGTERM)
        told = await lost
        assert (told.status_code, told.json()["error"]["code"]) == (503, "shutting_down")
        assert [(await one).status_code for one in (runs, well)] == [200, 200]
