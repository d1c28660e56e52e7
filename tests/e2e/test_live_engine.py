"""The gateway before an engine that computes: an emulated one, or the one that JOULEGATE_ENGINE_URL names.

Nothing here depends on the words that come, only on how many they are and on what becomes of the request: so the same
tests hold for the emulator (in `make test`) and for real vLLM (in `make test-vllm`).
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from live import LiveEngine
from openai import AsyncOpenAI
from pydantic import SecretStr
from stage import Engine, Gateway, residual_uj, running, uj, until

import joulegate

GPU = "local/gpu:0"
MESSAGES: Any = [{"role": "user", "content": "Name the capital of France."}]
TOOL: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
LONG = 640  # tokens of a prompt that is worth caching


@pytest.fixture(scope="module")
def gateway(
    live_engine: LiveEngine, nvml_library: Path, nvml_play: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """Before the live engine alone, on a measured GPU; eight requests at a time, which it always takes."""
    folder = tmp_path_factory.mktemp("live")
    play = nvml_play.NvmlPlay(nvml_library, folder / "nvml.state")
    play.set_power_w(0, 300)
    config = {"engines": [live_engine.named(devices=[GPU])], "limits": {"in_flight": 8}}
    with running(Gateway(config, folder, play.env)) as gateway:
        until(lambda: [entry["id"] for entry in gateway.get("/v1/models")["data"]] == [live_engine.model])
        yield gateway


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture
def chat(live_engine: LiveEngine) -> dict[str, Any]:
    """A chat of which the length of the answer is known."""
    return {"model": live_engine.model, "messages": MESSAGES, "temperature": 0, "max_tokens": 8} | {
        "extra_body": {"ignore_eos": True}
    }


def raw(live_engine: LiveEngine, tokens: int, **body: Any) -> dict[str, Any]:
    """A body for `/v1/completions` with an answer of so many tokens."""
    asked = {"model": live_engine.model, "prompt": list(range(1000, 1020)), "max_tokens": tokens}
    return {**asked, "ignore_eos": True, **body}


def counts(figures: dict[str, Any]) -> list[tuple[str, int, int]]:
    asked = sorted(figures["requests"], key=lambda request: request["received"])
    return [(each["outcome"], each["prompt_tokens"], each["output_tokens"]) for each in asked]


# Clients ------------------------------------------------------------------------------------------------------------


def test_the_client_of_openai(gateway: Gateway, chat: dict[str, Any], run: str) -> None:
    with gateway.openai() as client:
        create, whose = client.chat.completions.create, {"x-workflow-id": run}
        whole = create(**chat, extra_headers=whose)
        assert whole.usage and whole.usage.completion_tokens == 8 and whole.choices[0].finish_reason == "length"
        plain = list(create(**chat, extra_headers=whose, stream=True))
        assert plain[0].choices[0].delta.role == "assistant" and plain[-1].choices[0].finish_reason == "length"
        assert not [chunk for chunk in plain if chunk.usage], "usage that the client has not asked for"
        *rest, last = create(**chat, extra_headers=whose, stream=True, stream_options={"include_usage": True})
        assert last.choices == [] and last.usage and last.usage.completion_tokens == 8
        assert all(chunk.choices for chunk in rest)
        prompt = whole.usage.prompt_tokens
        assert last.usage.prompt_tokens == prompt
    assert counts(gateway.run(run)) == [("ok", prompt, 8)] * 3


async def test_the_asynchronous_client_with_several_at_once(gateway: Gateway, chat: dict[str, Any], run: str) -> None:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        create = client.chat.completions.create
        answers = await asyncio.gather(*(create(**chat, extra_headers={"x-workflow-id": run}) for _ in range(12)))
    assert {answer.usage.completion_tokens for answer in answers if answer.usage} == {8}
    figures = await asyncio.to_thread(gateway.run, run)
    assert [(outcome, output) for outcome, _, output in counts(figures)] == [("ok", 8)] * 12


def test_completions_of_token_ids(gateway: Gateway, live_engine: LiveEngine, run: str) -> None:
    with gateway.openai() as client:
        create, body = client.completions.create, raw(live_engine, 5)
        extra: Any = {"extra_headers": {"x-workflow-id": run}, "extra_body": {"ignore_eos": body.pop("ignore_eos")}}
        whole = create(**body, **extra)
        chunks = list(create(**body, **extra, stream=True))
    assert whole.usage and (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (20, 5)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert counts(gateway.run(run)) == [("ok", 20, 5)] * 2


def test_langchain(gateway: Gateway, live_engine: LiveEngine) -> None:
    body = {"ignore_eos": True}
    model = ChatOpenAI(
        base_url=f"{gateway.url}/v1", api_key=SecretStr("none"), model=live_engine.model, temperature=0,
        max_completion_tokens=6, max_retries=0, extra_body=body,
    )  # fmt: skip
    with joulegate.run("search", url=gateway.url) as under:
        answer = model.invoke("Name the capital of France.")
        told = list(model.stream("And that of Spain?"))
    assert answer.usage_metadata and answer.usage_metadata["output_tokens"] == 6 and told
    figures = gateway.run(under.id)
    assert figures["workflow"] == "search" and [output for _, _, output in counts(figures)] == [6, 6]


def test_tools_that_the_engine_cannot_call_are_its_own_error(gateway: Gateway, chat: dict[str, Any]) -> None:
    with gateway.openai() as client, pytest.raises(openai.BadRequestError, match="tool"):
        client.chat.completions.create(**chat, tools=[TOOL])
    with gateway.openai() as client:
        said = client.chat.completions.create(**chat, tools=[TOOL], tool_choice="none")
    assert said.usage and said.usage.completion_tokens == 8


# What the engine says comes unchanged ---------------------------------------------------------------------------------


def test_its_errors(gateway: Gateway, live_engine: LiveEngine) -> None:
    wrong: list[dict[str, Any]] = [{"temperature": -1}, {"max_tokens": -1}, {"n": 0}, {"top_p": 7}]
    wrong += [{"prompt": []}, {"prompt": [1000] * 3000}, {"prompt": [1000] * 3000, "stream": True}]
    replies: list[httpx.Response] = []
    for more in wrong:
        body = raw(live_engine, 4, **more)
        direct = httpx.post(f"{live_engine.url}/v1/completions", json=body)
        replies.append(gateway.http.post("/v1/completions", json=body))
        assert direct.status_code == 400 and (replies[-1].status_code, replies[-1].content) == (400, direct.content)
    assert {gateway.request(reply)["outcome"] for reply in replies} == {"error"}


@pytest.mark.parametrize("path", ["chat", "completions"])
def test_its_streams(gateway: Gateway, live_engine: LiveEngine, path: str) -> None:
    """Frame by frame the same keys; and without the usage frame where the client wants none."""
    body = raw(live_engine, 6, stream=True)
    if path == "chat":
        del body["prompt"]
        body["messages"] = MESSAGES
    where = "/v1/chat/completions" if path == "chat" else "/v1/completions"
    asked = {**body, "stream_options": {"include_usage": True}}
    direct = keys(httpx.post(f"{live_engine.url}{where}", json=asked).text)
    assert keys(gateway.http.post(where, json=asked).text) == direct
    *rest, usage, done = direct
    assert "usage" in usage and done == ["[DONE]"]
    assert keys(gateway.http.post(where, json=body).text) == [*rest, done]


def keys(text: str) -> list[list[str]]:
    """The keys of every frame, of its choice and of its delta; neighbours that are equal once."""
    out: list[list[str]] = []
    for frame in text.removesuffix("\n\n").split("\n\n"):
        said = frame.removeprefix("data: ")
        found = [said] if said == "[DONE]" else [*named(json.loads(said))]
        if out[-1:] != [found]:
            out.append(found)
    return out


def named(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from named(each)
    if isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from named(each)


def test_it_is_asked_for_tokens_past_the_gateway_and_through_it(gateway: Gateway, live_engine: LiveEngine) -> None:
    body = {"model": live_engine.model, "prompt": "how many joules"}
    direct = httpx.post(f"{live_engine.url}/tokenize", json=body).json()
    assert gateway.http.post("/tokenize", json=body).json() == direct and direct["count"] > 0


# Clients that leave ---------------------------------------------------------------------------------------------------


def test_who_leaves_in_the_middle_frees_the_engine(gateway: Gateway, live_engine: LiveEngine, run: str) -> None:
    body = raw(live_engine, 1900, stream=True)
    with gateway.http.stream("POST", "/v1/completions", json=body, headers={"x-workflow-id": run}) as reply:
        lines = reply.iter_lines()
        assert [next(lines)[:6] for _ in range(12)] == ["data: ", ""] * 6
        until(lambda: live_engine.present() == 1)
    until(live_engine.idle)
    (request,) = gateway.run(run)["requests"]
    assert request["outcome"] == "cancelled" and 0 < request["output_tokens"] < 1900 and request["joules"] > 0


def test_who_leaves_before_a_whole_answer_frees_the_engine(gateway: Gateway, live_engine: LiveEngine, run: str) -> None:
    def ask() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{gateway.url}/v1/completions", json=raw(live_engine, 1900), headers={"x-workflow-id": run}, timeout=1
            )

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: live_engine.present() == 1)
    asking.join()
    until(live_engine.idle)
    assert [request["outcome"] for request in gateway.run(run)["requests"]] == ["cancelled"]


# Books ----------------------------------------------------------------------------------------------------------------


def test_the_books_of_several_workflows_close(gateway: Gateway, live_engine: LiveEngine) -> None:
    names = {f"live-{workflow}-{n}": workflow for workflow in ("search", "coding") for n in range(2)}

    def work(item: tuple[str, str]) -> None:
        for n, stream in enumerate((True, False, True)):
            headers = {"x-workflow-id": item[0], "x-workflow-name": item[1], "x-workflow-step": f"step-{n % 2}"}
            body = raw(live_engine, 20, prompt=[1000 + n] * 50, stream=stream)
            gateway.http.post("/v1/completions", json=body, headers=headers).raise_for_status()

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(work, names.items()))
    runs = {name: gateway.run(name) for name in names}
    for name, figures in runs.items():
        assert (figures["workflow"], counts(figures)) == (names[name], [("ok", 50, 20)] * 3)
        assert [request["step"] for request in figures["requests"]] == ["step-0", "step-1", "step-0"]
        assert all(request["usage"] == "engine" and request["joules"] > 0 for request in figures["requests"])
        assert sum(uj(request["joules"]) for request in figures["requests"]) == uj(figures["joules"])
    (books,) = gateway.balance().values()
    assert books["quality"] == "measured" and residual_uj(books) == uj(books["residual_j"]) == 0


def test_a_prompt_that_comes_again_is_seen_to_be_cached(gateway: Gateway, live_engine: LiveEngine, run: str) -> None:
    prompt = [(hash(run) + 37 * n) % 20_000 + 1000 for n in range(LONG)]
    for stream in (False, False, True):
        body = raw(live_engine, 4, prompt=prompt, stream=stream)
        gateway.http.post("/v1/completions", json=body, headers={"x-workflow-id": run}).raise_for_status()
    cached = [request["cached_tokens"] for request in gateway.run(run)["requests"]]
    assert cached[0] == 0 and cached[1] == cached[2] and LONG * 0.9 < cached[1] < LONG


def test_its_counters_are_read(gateway: Gateway, live_engine: LiveEngine) -> None:
    with live_engine.occupied(2):
        sample = until(lambda: busy_sample(gateway))
    assert not [name for name, value in sample.items() if value is None]


def busy_sample(gateway: Gateway) -> dict[str, Any] | None:
    sample = gateway.get("/energy/engines")["engines"][0]["sample"]
    return sample if sample and sample["running"] == 2 else None


def test_work_that_came_past_the_gateway_is_foreign(gateway: Gateway, live_engine: LiveEngine) -> None:
    before = gateway.balance()[GPU]["foreign_j"] or 0.0
    with live_engine.occupied(2):
        until(lambda: (gateway.balance()[GPU]["foreign_j"] or 0.0) > before)
    (books,) = gateway.balance().values()
    assert residual_uj(books) == 0


# The gateway's end, and engines that are full -------------------------------------------------------------------------


def test_what_runs_is_finished_before_the_gateway_ends(
    make_gateway: Callable[..., Gateway], live_engine: LiveEngine
) -> None:
    gateway = make_gateway({"engines": [live_engine.named()]})
    texts: list[str] = []

    def ask() -> None:
        body = raw(live_engine, 60, stream=True)
        texts.append(httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=60).text)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: live_engine.present() == 4)
    gateway.stop()
    for thread in threads:
        thread.join()
    assert not [text[-400:] for text in texts if not text.endswith("data: [DONE]\n\n") or '"error"' in text]


def test_the_gate_keeps_a_crowd_from_a_full_engine(gateway: Gateway, live_engine: LiveEngine, run: str) -> None:
    refused = live_engine.metric("vllm:admission_rejections_total")
    with ThreadPoolExecutor(40) as pool:
        replies = list(
            pool.map(
                lambda n: gateway.http.post(
                    "/v1/completions", json=raw(live_engine, 4, stream=n % 2 == 0), headers={"x-workflow-id": run}
                ),
                range(40),
            )
        )
    assert {reply.status_code for reply in replies} == {200} and not [r for r in replies if '"error"' in r.text]
    assert live_engine.metric("vllm:admission_rejections_total") == refused
    assert counts(gateway.run(run)) == [("ok", 20, 4)] * 40


@pytest.mark.parametrize("room", [0, 2], ids=["none", "for two"])
def test_what_a_full_engine_refuses_is_served_by_another(
    make_gateway: Callable[..., Gateway], make_engine: Callable[..., Engine], live_engine: LiveEngine, room: int
) -> None:
    """With room for two, streams of a burst pass its first check and are refused inside an answer of status 200."""
    if live_engine.most is None:
        pytest.skip("JOULEGATE_ENGINE_MOST does not say how many requests this engine takes")
    other = make_engine(live_engine.model)
    engines = [live_engine.named(), {"name": "e2", "kind": "openai", "url": other.url}]
    gateway = make_gateway({"engines": engines, "breaker": {"failures": 1000}})
    until(lambda: all(engine["up"] for engine in gateway.get("/energy/engines")["engines"]))
    with live_engine.occupied(live_engine.most - room), ThreadPoolExecutor(12) as pool:
        bodies = [raw(live_engine, 8, stream=n % 3 > 0, prompt="how many") for n in range(12)]
        replies = list(pool.map(lambda body: gateway.http.post("/v1/completions", json=body), bodies))
    assert {reply.status_code for reply in replies} == {200}
    assert not [reply.text for reply in replies if '"error"' in reply.text]
    figures = [gateway.request(reply) for reply in replies]
    assert {each["outcome"] for each in figures} == {"ok"}
    retried = [each for each in figures if each["attempts"] == 2]
    assert retried and {each["engine"] for each in retried} == {"e2"}
