"""The real clients, tagged by `joulegate.run`: two runs at once through one shared client object."""

import asyncio
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic import SecretStr
from stage import Gateway, chat_body

import joulegate

MESSAGES: Any = chat_body()["messages"]


@pytest.mark.scripted
async def test_two_runs_through_one_shared_chat_model(gateway: Gateway) -> None:
    llm = ChatOpenAI(model="stub-7b", base_url=f"{gateway.url}/v1", api_key=SecretStr("none"), max_retries=0)
    both_are_in = asyncio.Barrier(2)

    async def work(workflow: str, tokens: int) -> joulegate.Run:
        async with joulegate.run(workflow, url=gateway.url) as run:
            await both_are_in.wait()
            with run.step("whole"):
                whole = await llm.ainvoke("how many joules", max_tokens=tokens)
            with run.step("streamed"):
                chunks = [chunk async for chunk in llm.astream("how many joules is it", max_tokens=2 * tokens)]
            with run.step("batch"):
                await llm.abatch(["one", "two"], max_tokens=3 * tokens)
        assert whole.content == "joule " * tokens
        assert "".join(str(chunk.content) for chunk in chunks) == "joule " * 2 * tokens
        return run

    runs = dict(zip([5, 7], await asyncio.gather(work("search", 5), work("coding", 7)), strict=True))
    reports = {tokens: await run.areport() for tokens, run in runs.items()}
    for tokens, report in reports.items():
        asked = [(request.step, request.prompt_tokens, request.output_tokens) for request in report.requests]
        expected = [("batch", 1, 3 * tokens)] * 2 + [("streamed", 5, 2 * tokens), ("whole", 3, tokens)]
        assert sorted(asked, key=str) == sorted(expected, key=str)
        assert all((request.joules or 0) > 0 for request in report.requests)
        assert report.settled and (report.joules or 0) > 0
        assert set(report.by_step) == {"whole", "streamed", "batch"}
        assert abs(sum(joules or 0 for joules in report.by_step.values()) - (report.joules or 0)) < 1e-5
    assert [report.workflow for report in reports.values()] == ["search", "coding"]
    ids = [{request.id for request in report.requests} for report in reports.values()]
    assert not ids[0] & ids[1]


def test_the_synchronous_clients(gateway: Gateway) -> None:
    llm = ChatOpenAI(model="stub-7b", base_url=f"{gateway.url}/v1", api_key=SecretStr("none"), max_retries=0)
    with joulegate.run("plain", url=gateway.url, step="first") as run, gateway.openai() as client:
        client.chat.completions.create(model="stub-7b", messages=MESSAGES, max_tokens=3)
        with run.step("second"):
            for _ in llm.stream("one two", max_tokens=4):
                pass
    assert run.joules > 0
    assert [(r.step, r.output_tokens, r.outcome) for r in run.requests] == [("first", 3, "ok"), ("second", 4, "ok")]
    assert set(run.by_step) == {"first", "second"} and run.quality in ("estimated", "attributed")


async def test_the_asynchronous_openai_client(gateway: Gateway) -> None:
    async with (
        AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
        joulegate.run("plain", url=gateway.url) as run,
    ):
        await client.chat.completions.create(model="stub-7b", messages=MESSAGES, max_tokens=3)
        stream = await client.chat.completions.create(model="stub-7b", messages=MESSAGES, max_tokens=4, stream=True)
        assert [chunk async for chunk in stream]
    report = await run.areport()
    assert [request.output_tokens for request in report.requests] == [3, 4]
    assert (report.joules or 0) > 0
