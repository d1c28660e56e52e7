"""Named calls of one run, sent in any order through a whole gateway."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
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
    keys = [{"tenant": "a", "key": "key-a"}, {"tenant": "b", "key": "key-b", "in_flight": 1}]
    config = {"engines": engines, "limits": {"node_seconds": 1.0}, "keys": keys}
    with running(Gateway(config, tmp_path_factory.mktemp("nodes"))) as gateway:
        gateway.http.headers["authorization"] = "Bearer key-a"
        yield gateway


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture
def run() -> str:
    return f"nodes-{next(NUMBERS)}"


def headers(run: str, node: str, key: str = "key-a") -> dict[str, str]:
    named = {"x-workflow-id": run, "x-workflow-name": "dag", "x-workflow-node": node}
    return {**named, "authorization": f"Bearer {key}"}


def call(
    client: httpx.AsyncClient, run: str, node: str, text: str, key: str = "key-a", **body: Any
) -> "asyncio.Task[httpx.Response]":
    whole = {**chat_body(content=text), "max_tokens": 2, **body}
    return asyncio.create_task(client.post("/v1/chat/completions", json=whole, headers=headers(run, node, key)))


def prompts(engine: Engine, run: str) -> dict[str, Any]:
    """What the engine was given, by node."""
    return {
        served["headers"]["x-workflow-node"]: served["body"].get("prompt") or served["body"]["messages"][0]["content"]
        for served in engine.log(x_workflow_id=run)
    }


async def test_a_whole_graph_at_once_in_the_wrong_order(gateway: Gateway, engine: Engine, run: str) -> None:
    client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="key-a", max_retries=0)

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
    assert 0.0 < by_node["map-1"]["held_s"] < by_node["merge"]["held_s"] <= by_node["merge"]["duration_s"]
    graph = found["dag"]
    assert graph["critical_path"] in (["plan", "map-1", "merge"], ["plan", "map-2", "merge"])
    assert graph["critical_path_s"] <= found["duration_s"] and set(graph["nodes"]) == set(by_node)


async def test_the_page_shows_what_works(gateway: Gateway, engine: Engine) -> None:
    code = (Path(__file__).parents[2] / "docs/nodes.md").read_text().partition("```python\n")[2].partition("```")[0]
    page: dict[str, Any] = {}
    exec(
        code.replace("http://127.0.0.1:8080", gateway.url).replace('"m"', '"stub-7b"').replace('"..."', '"key-a"'), page
    )
    answer = "joule " * 8
    assert await page["summarize"](["one", "two"]) == answer
    assert prompts(engine, page["run"])["merge"] == f"Merge these summaries:\n{answer}\n{answer}"


async def test_a_failed_producer_costs_its_dependents_nothing(
    gateway: Gateway, engine: Engine, client: httpx.AsyncClient, run: str
) -> None:
    last, middle = call(client, run, "c", "{{node:b}}"), call(client, run, "b", "{{node:a}} {{node:other}}")
    failed = await call(client, run, "a", "go", stub={"refuse": 500})
    replies = [await middle, await last]
    assert failed.status_code == 500
    assert all(0.0 < float(reply.headers["x-joulegate-held-for-nodes"]) < 30 for reply in replies)
    assert [(reply.status_code, reply.json()["error"]["code"]) for reply in replies] == [(424, "producer_failed")] * 2
    assert prompts(engine, run) == {"a": "go"}
    waits = call(client, run, "e", "{{node:d}}")
    await asyncio.sleep(0.1)
    marks = await call(client, run, "d", "{{node:" * 20_000)
    codes = [reply.json()["error"]["code"] for reply in (marks, await waits)]
    assert codes == ["too_many_nodes", "producer_failed"]
    again = await asyncio.gather(*(call(client, run, node, text) for node, text in (("b", "{{node:a}}"), ("a", "go"))))
    assert [reply.status_code for reply in again] == [424, 200], "b was told of the a that had failed"
    assert (await call(client, run, "b", "{{node:a}}")).status_code == 200
    assert engine.log(x_workflow_node="b", x_workflow_id=run)[-1]["body"]["messages"][0]["content"] == "joule joule "


async def test_what_can_never_be_is_said(gateway: Gateway, engine: Engine, client: httpx.AsyncClient, run: str) -> None:
    loop = [await call(client, run, "loop", "a name that nobody names", max_tokens=1) for _ in range(2)]
    first, waits = call(client, run, "a", "{{node:b}}"), call(client, run, "c", "{{node:a}}")
    await asyncio.sleep(0.1)
    closes = await call(client, run, "b", "{{node:a}}")
    twice = await call(client, run, "a", "again")
    nameless = headers(run, "a") | {"x-workflow-id": ""}
    without = await client.post("/v1/chat/completions", json=chat_body(content="{{node:a}}"), headers=nameless)
    embedded = await client.post(
        "/v1/embeddings", json={"model": "stub-7b", "input": "x"}, headers=headers(run, "vector")
    )
    reads = await call(client, run, "reads", "{{node:vector}}")
    which = await call(client, run, "which", "{{node:loop}}")
    replies = [*loop, closes, twice, without, embedded, reads, which, await first, await waits]
    assert [reply.status_code for reply in replies] == [200, 200, 400, 409, 400, 200, 424, 424, 424, 424]
    codes = [None, None, "node_cycle", "duplicate_node", "node_without_run", None, "node_without_text"]
    codes += ["duplicate_node", "unknown_node", "producer_failed"]
    assert [reply.json().get("error", {}).get("code") for reply in replies] == codes
    assert "b -> a -> b" in closes.json()["error"]["message"]
    served = [served["path"] for served in engine.log(x_workflow_id=run)]
    assert served == ["/v1/chat/completions"] * 2 + ["/v1/embeddings"]
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


async def test_who_waits_is_in_flight_for_its_key_and_another_tenants_run_is_another(
    gateway: Gateway, engine: Engine, client: httpx.AsyncClient, run: str
) -> None:
    held = call(client, run, "b", "{{node:a}}", key="key-b")
    await asyncio.sleep(0.1)
    assert (await call(client, run, "a", "mine, not b's")).status_code == 200
    refused = await call(client, run, "a", "over its quota", key="key-b")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert not held.done()
    held.cancel()
    again = headers(run, "a", key="key-b")
    await asyncio.to_thread(until, lambda: gateway.chat(again, content="again", max_tokens=1).status_code == 200)
    served = [served["body"]["messages"][0]["content"] for served in engine.log(x_workflow_id=run)]
    assert served == ["mine, not b's", "again"]


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
