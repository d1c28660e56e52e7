"""The clients that people have: `openai` (both of its kinds), `langchain-openai` and curl.

What they get is asserted in their own words, and after it what the books have: the engine's counts, and how it ended.
"""

import json
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from inspect import isawaitable
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, SecretStr
from stage import Engine, Gateway, chat_body, running, until

from proxy.engines import model

MESSAGES: Any = chat_body()["messages"]  # five words, so the stub counts five tokens
CHAT: dict[str, Any] = {"model": "stub-7b", "messages": MESSAGES}


class River(BaseModel):
    name: str
    length_km: float


class City(BaseModel):
    name: str
    people: int
    kind: Literal["port", "inland"]
    rivers: list[River]
    mayor: str | None


def tool(name: str, **properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"name": name, "description": f"Tells the {name}.", "parameters": schema}


FUNCTIONS = [tool("weather", city="string", days="integer"), tool("clock", exact="boolean")]
TOOLS: Any = [{"type": "function", "function": function} for function in FUNCTIONS]
CALLED = [("weather", {"city": 'a "joule" é中', "days": 7}), ("clock", {"exact": True})]


async def got(reply: Any) -> Any:
    """What a call of either client comes to."""
    return await reply if isawaitable(reply) else reply


async def listed(stream: Any) -> list[Any]:
    """All that a stream of either client yields."""
    return [each async for each in stream] if hasattr(stream, "__aiter__") else list(stream)


def books(gateway: Gateway, run: str) -> list[tuple[str, int | None, int | None]]:
    """Of every request of a run, settled: how it ended, its prompt's tokens and its output's."""
    asked = sorted(gateway.run(run)["requests"], key=lambda request: request["received"])
    return [(request["outcome"], request["prompt_tokens"], request["output_tokens"]) for request in asked]


def counted(*answers: Any) -> list[tuple[str, int, int]]:
    """What the books should hold after these whole answers of the Chat API."""
    return [("ok", answer.usage.prompt_tokens, answer.usage.completion_tokens) for answer in answers]


@pytest.fixture(scope="session")
def gateway(gateway: Gateway) -> Gateway:
    """The minimal gateway, once it knows the models of both engines."""
    until(lambda: [entry["id"] for entry in gateway.get("/v1/models")["data"]] == ["stub-3b", "stub-7b"])
    return gateway


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """The run of a test."""
    return re.sub(r"\W+", "-", request.node.name)


@pytest.fixture(params=[OpenAI, AsyncOpenAI], ids=["sync", "async"])
async def client(request: pytest.FixtureRequest, gateway: Gateway, run: str) -> AsyncIterator[Any]:
    """The one or the other client; all that it asks belongs to the test's run."""
    address = {"base_url": f"{gateway.url}/v1", "api_key": "none"}
    client = request.param(**address, max_retries=0, timeout=30, default_headers={"x-workflow-id": run})
    yield client
    await got(client.close())


# openai -------------------------------------------------------------------------------------------------------------


@pytest.mark.scripted
async def test_chat_whole_and_streamed(client: Any, gateway: Gateway, run: str) -> None:
    create = client.chat.completions.create
    whole = await got(create(**CHAT, max_completion_tokens=3))
    assert whole.choices[0].message.content == "joule " * 3 and whole.usage.total_tokens == 8
    plain = await listed(await got(create(**CHAT, max_tokens=4, stream=True)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in plain) == "joule " * 4
    assert plain[-1].choices[0].finish_reason == "length"
    assert not [chunk for chunk in plain if chunk.usage], "usage that the client has not asked for"
    options = {"include_usage": True}
    *rest, last = await listed(await got(create(**CHAT, max_tokens=5, stream=True, stream_options=options)))
    assert last.choices == [] and (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 5)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in rest) == "joule " * 5
    assert books(gateway, run) == [("ok", 5, 3), ("ok", 5, 4), ("ok", 5, 5)]


@pytest.mark.scripted
async def test_tools(client: Any, gateway: Gateway, run: str) -> None:
    create = client.chat.completions.create
    whole = await got(create(**CHAT, tools=TOOLS))
    called = whole.choices[0].message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in called] == CALLED
    assert whole.choices[0].finish_reason == "tool_calls" and whole.choices[0].message.content is None

    chunks = await listed(await got(create(**CHAT, tools=TOOLS, stream=True)))
    assembled: dict[int, list[str]] = {}
    for chunk in chunks:
        for part in chunk.choices[0].delta.tool_calls or ():
            name, arguments = part.function.name, part.function.arguments
            if part.id:
                assembled[part.index] = [part.id, name, ""]
            assembled[part.index][2] += arguments
    assert [id_ for id_, _, _ in assembled.values()] == [call.id for call in called]
    assert [(name, json.loads(arguments)) for _, name, arguments in assembled.values()] == CALLED
    assert chunks[-1].choices[0].finish_reason == "tool_calls"

    results = [{"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in called]
    turns = [*MESSAGES, whole.choices[0].message.model_dump(exclude_none=True), *results]
    said = await got(create(model="stub-7b", messages=turns, tools=TOOLS, max_tokens=2))
    assert said.choices[0].message.content == "joule joule "
    assert books(gateway, run) == [*counted(whole, whole), ("ok", 7, 2)]


@pytest.mark.scripted
async def test_structured_output(client: Any, gateway: Gateway, run: str) -> None:
    parsed = await got(client.chat.completions.parse(**CHAT, response_format=City))
    city = parsed.choices[0].message.parsed
    assert isinstance(city, City) and (city.people, city.kind, len(city.rivers)) == (7, "port", 2)
    if isinstance(client, OpenAI):
        with client.chat.completions.stream(**CHAT, response_format=City) as stream:
            streamed = stream.get_final_completion()
    else:
        async with client.chat.completions.stream(**CHAT, response_format=City) as stream:
            streamed = await stream.get_final_completion()
    assert streamed.choices[0].message.parsed == city
    response = await got(client.responses.parse(model="stub-7b", input="one two", text_format=City))
    assert response.output_parsed == city
    tokens = parsed.usage.completion_tokens
    assert books(gateway, run) == [("ok", 5, tokens), ("ok", 5, tokens), ("ok", 2, tokens)] and tokens > 8


@pytest.mark.scripted
async def test_responses(client: Any, gateway: Gateway, run: str) -> None:
    create = client.responses.create
    asked: dict[str, Any] = {"model": "stub-7b", "input": "one two", "max_output_tokens": 16}
    whole = await got(create(**asked))
    assert whole.output_text == "joule " * 16 and whole.usage.output_tokens == 16
    events = await listed(await got(create(**asked, stream=True)))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "joule " * 16
    assert events[-1].type == "response.completed" and events[-1].response.output_text == whole.output_text
    assert books(gateway, run) == [("ok", 2, 16), ("ok", 2, 16)]


@pytest.mark.scripted
async def test_responses_with_function_calls(client: Any, gateway: Gateway, run: str) -> None:
    create = client.responses.create
    tools: Any = [{"type": "function", **function} for function in FUNCTIONS]
    asked: dict[str, Any] = {"model": "stub-7b", "input": [{"role": "user", "content": "hello"}], "tools": tools}
    whole = await got(create(**asked))
    items = [item for item in whole.output if item.type == "function_call"]
    assert [(item.name, json.loads(item.arguments)) for item in items] == CALLED
    events = await listed(await got(create(**asked, stream=True)))
    arguments = ["", ""]
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            arguments[event.output_index] += event.delta
    assert [json.loads(each) for each in arguments] == [each for _, each in CALLED]
    assert events[-1].response.output == whole.output
    result = {"type": "function_call_output", "call_id": items[0].call_id, "output": "fine"}
    said = await got(create(model="stub-7b", input=[*asked["input"], *whole.output, result], tools=tools))
    assert said.output_text == "joule " * 8
    answers = [(each.usage.input_tokens, each.usage.output_tokens) for each in (whole, whole, said)]
    assert books(gateway, run) == [("ok", *tokens) for tokens in answers]


@pytest.mark.scripted
async def test_completions_embeddings_and_models(client: Any, gateway: Gateway, run: str) -> None:
    complete = client.completions.create
    whole = await got(complete(model="stub-7b", prompt="one two three", max_tokens=3))
    assert whole.choices[0].text == "joule " * 3 and whole.usage.prompt_tokens == 3
    chunks = await listed(await got(complete(model="stub-7b", prompt="one two", max_tokens=4, stream=True)))
    assert [chunk.choices[0].text for chunk in chunks] == ["joule "] * 4, "and no usage"

    embed = client.embeddings.create
    packed = await got(embed(model="stub-7b", input=["one", "two three"]))  # as base64, the client's own default
    plain = await got(embed(model="stub-7b", input=["one", "two three"], encoding_format="float"))
    vectors = [[0.25, -0.5, 1.0], [1.25, -0.5, 1.0]]
    assert [each.embedding for each in packed.data] == [each.embedding for each in plain.data] == vectors

    assert [entry.id for entry in await listed(client.models.list())] == ["stub-3b", "stub-7b"]
    assert (await got(client.models.retrieve("stub-7b"))).owned_by == "stub"
    with pytest.raises(openai.NotFoundError, match=r"'stub-8b' does not exist"):
        await got(client.models.retrieve("stub-8b"))
    assert books(gateway, run) == [("ok", 3, 3), ("ok", 2, 4), ("ok", 3, 0), ("ok", 3, 0)]


@pytest.mark.scripted
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_errors_are_the_clients_own(client: Any, gateway: Gateway, run: str, stream: bool) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as ours:
        await got(create(**CHAT | {"model": "stub-8b"}, stream=stream))
    said = "The model 'stub-8b' does not exist; served: stub-3b, stub-7b"
    assert (ours.value.code, ours.value.param, ours.value.body["message"]) == ("model_not_found", "model", said)  # type: ignore[index]
    with pytest.raises(openai.UnprocessableEntityError, match="the stub says 422"):
        await got(create(**CHAT, stream=stream, extra_body={"stub": {"refuse": 422}}))
    if stream:
        with pytest.raises(openai.APIError, match=r"engine e1 failed"):
            await listed(await got(create(**CHAT, stream=True, extra_body={"stub": {"die_after": 2}})))
    ended = [outcome for outcome, _, _ in books(gateway, run)]
    assert ended == ["refused", "error"] + ["failed"] * stream


@pytest.mark.scripted
async def test_who_leaves_ends_the_work(client: Any, gateway: Gateway, engine: Engine, run: str) -> None:
    create = client.chat.completions.create

    def ends() -> list[str]:
        return [served["end"] for served in engine.log(x_workflow_id=run)]

    stream = await got(create(**CHAT, max_tokens=100_000, stream=True))
    if isinstance(client, OpenAI):
        assert [next(stream) for _ in range(4)]
    else:
        assert [await anext(stream) for _ in range(4)]
    await got(stream.close())
    until(lambda: ends() == ["closed"])
    for silent in ({"stub": {"silent": True}}, {"stub": {"silent": True}, "stream": True}):
        with pytest.raises(openai.APITimeoutError):
            await got(create(**CHAT, timeout=0.3, extra_body=silent))
    until(lambda: ends() == ["closed"] * 3)
    (first, _, output), *timed_out = books(gateway, run)
    assert first == "cancelled" and output is not None and output >= 3
    assert timed_out == [("cancelled", None, None)] * 2


# langchain-openai ---------------------------------------------------------------------------------------------------


@pytest.mark.scripted
async def test_langchain(gateway: Gateway, run: str) -> None:
    address: Any = {"base_url": f"{gateway.url}/v1", "api_key": SecretStr("none"), "max_retries": 0}
    headers = {"x-workflow-id": run}
    llm = ChatOpenAI(model="stub-7b", default_headers=headers, **address)
    whole = llm.invoke("one two", max_tokens=3)
    assert whole.content == "joule " * 3 and whole.usage_metadata and whole.usage_metadata["output_tokens"] == 3
    assert "".join(str(chunk.content) for chunk in llm.stream("one two", max_tokens=4)) == "joule " * 4
    told = [chunk async for chunk in llm.astream("one two", max_tokens=5, stream_usage=True)]
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in told if chunk.usage_metadata) == 5

    calls = [(call["name"], call["args"]) for call in llm.bind_tools(TOOLS).invoke("one two").tool_calls]
    assert calls == CALLED
    together: Any = AIMessageChunk(content="")
    async for chunk in llm.bind_tools(TOOLS).astream("one two"):
        together += chunk
    assert [(call["name"], call["args"]) for call in together.tool_calls] == CALLED
    methods: tuple[Literal["json_schema", "function_calling"], ...] = ("json_schema", "function_calling")
    for method in methods:
        city = llm.with_structured_output(City, method=method).invoke("one two")
        assert isinstance(city, City) and city.kind == "port"

    embeddings = OpenAIEmbeddings(model="stub-7b", check_embedding_ctx_length=False, default_headers=headers, **address)
    assert embeddings.embed_documents(["one", "two three"]) == [[0.25, -0.5, 1.0], [1.25, -0.5, 1.0]]
    assert await embeddings.aembed_query("one two three") == [0.25, -0.5, 1.0]

    *chats, first, second = books(gateway, run)
    assert [outcome for outcome, _, _ in chats] == ["ok"] * 7 and (first, second) == (("ok", 3, 0), ("ok", 3, 0))
    (_, _, called), (_, _, streamed), (_, _, structured), (_, _, as_call) = chats[3:]
    assert chats[:3] == [("ok", 2, 3), ("ok", 2, 4), ("ok", 2, 5)] and called == streamed and structured == as_call


# curl ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a key."""
    engines = [{"name": "e1", "kind": "openai", "url": engine.url, "models": ["stub-7b"]}]
    config = {"engines": engines, "keys": [{"tenant": "acme", "key": "sk-acme"}]}
    with running(Gateway(config, tmp_path_factory.mktemp("locked"))) as gateway:
        gateway.http.headers["authorization"] = "Bearer sk-acme"
        yield gateway


@pytest.fixture
def curl(locked: Gateway, run: str) -> Callable[..., tuple[int, str]]:
    """`curl("/v1/models", "-N", key="sk-acme", data=...)`: the status and the body."""

    def ask(path: str, *options: str, key: str = "sk-acme", data: Any = None) -> tuple[int, str]:
        headers = ["-H", f"authorization: Bearer {key}", "-H", f"x-workflow-id: {run}"]
        body = [] if data is None else ["-H", "content-type: application/json", "--data", "@-"]
        command = ["curl", "-sS", "-w", "\n%{http_code}", *headers, *body, *options, f"{locked.url}{path}"]
        sent = None if data is None else json.dumps(data)
        done = subprocess.run(command, input=sent, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr
        text, _, status = done.stdout.rpartition("\n")
        return int(status), text

    return ask


@pytest.mark.scripted
def test_curl(curl: Callable[..., tuple[int, str]], locked: Gateway, run: str) -> None:
    status, text = curl("/v1/models")
    assert status == 200 and [entry["id"] for entry in json.loads(text)["data"]] == ["stub-7b"]

    status, text = curl("/v1/chat/completions", data=CHAT | {"max_tokens": 3})
    assert status == 200 and json.loads(text)["choices"][0]["message"]["content"] == "joule " * 3

    status, text = curl("/v1/chat/completions", "-N", data=CHAT | {"max_tokens": 4, "stream": True})
    frames = text.split("\n\n")
    assert status == 200 and frames[-2:] == ["data: [DONE]", ""] and len(frames) == 4 + 4, "no usage frame"
    spoken = [json.loads(frame.removeprefix("data: "))["choices"][0]["delta"] for frame in frames[:-2]]
    assert "".join(delta.get("content", "") for delta in spoken) == "joule " * 4

    long = "word " * 600_000  # 3 MB, for which curl waits to be told to go on
    status, text = curl("/v1/chat/completions", data=chat_body(content=long, max_tokens=2))
    assert status == 200 and json.loads(text)["usage"]["prompt_tokens"] == 600_000

    asks = ("-H", "Upgrade: h2c", "-H", "Connection: Upgrade, HTTP2-Settings", "-H", "HTTP2-Settings: AAMAAABkAAQAAP__")
    status, text = curl("/v1/chat/completions", *asks, data=CHAT | {"max_tokens": 1})
    assert status == 200 and "joule" in text, "with --http2, and Java's client always"

    for key in ("sk-acmf", ""):
        status, text = curl("/v1/chat/completions", key=key, data=CHAT)
        assert (status, json.loads(text)["error"]["type"]) == (401, "authentication_error")
    assert books(locked, run) == [("ok", 5, 3), ("ok", 5, 4), ("ok", 600_000, 2), ("ok", 5, 1)], (
        "and a stranger's call is no work"
    )


@pytest.mark.scripted
def test_curl_that_is_interrupted(locked: Gateway, engine: Engine, run: str) -> None:
    headers = ["-H", "authorization: Bearer sk-acme", "-H", f"x-workflow-id: {run}"]
    body = json.dumps(CHAT | {"max_tokens": 100_000, "stream": True})
    command = ["curl", "-sS", "-N", *headers, "--data", body, f"{locked.url}/v1/chat/completions"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        while b"joule" not in process.stdout.readline():
            pass
        process.terminate()
    until(lambda: [served["end"] for served in engine.log(x_workflow_id=run)] == ["closed"])
    ((outcome, _, output),) = books(locked, run)
    assert outcome == "cancelled" and output


# A real engine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway before llama.cpp with its small model."""
    model.fetch()  # once a machine, and not within the gateway's time to start
    engines = [{"name": "e1", "kind": "embedded", "slots": 2, "context": 512}]
    with running(Gateway({"engines": engines}, tmp_path_factory.mktemp("llamacpp"))) as gateway:
        yield gateway


class Fact(BaseModel):
    capital: bool


def test_a_real_engine(llamacpp: Gateway, run: str) -> None:
    """What llama.cpp does not do, it says itself; its words come unchanged."""
    question: Any = [{"role": "user", "content": "Name the capital of France."}]
    asked: dict[str, Any] = {"model": model.MODEL, "messages": question, "temperature": 0}
    upstream = llamacpp.get("/energy/engines")["engines"][0]["url"]
    with llamacpp.openai().with_options(default_headers={"x-workflow-id": run}) as client:
        *rest, last = client.chat.completions.create(
            **asked, max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in rest) and last.usage
        fact = client.chat.completions.parse(**asked, max_tokens=40, response_format=Fact)
        assert isinstance(fact.choices[0].message.parsed, Fact)
        whole = client.chat.completions.create(**asked, max_tokens=4, tools=TOOLS)
        streamed = list(client.chat.completions.create(**asked, max_tokens=4, tools=TOOLS, stream=True))
        message = whole.choices[0].message
        assert message.content or message.tool_calls, "a model without tools in its template speaks all the same"
        if message.content:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == message.content
        assert not [chunk for chunk in streamed if chunk.usage]
        response = client.responses.create(model=model.MODEL, input="Hello", max_output_tokens=4, temperature=0)
        assert response.output_text and response.usage
        refused: list[tuple[str, dict[str, Any], type[openai.APIStatusError]]] = [
            ("/embeddings", {"model": model.MODEL, "input": "a"}, openai.InternalServerError),
            ("/chat/completions", {**asked, "tools": "none"}, openai.APIStatusError),
        ]
        for path, body, kind in refused:
            own = llamacpp.http.post(f"{upstream}/v1{path}", json=body)
            with pytest.raises(kind) as passed:
                client.post(path, body=body, cast_to=object)
            assert passed.value.response.content == own.content and passed.value.status_code == own.status_code >= 400
    first = (last.usage.prompt_tokens, last.usage.completion_tokens)
    assert books(llamacpp, run) == [
        ("ok", *first),
        *counted(fact, whole, whole),
        ("ok", response.usage.input_tokens, response.usage.output_tokens),
        *[("error", None, None)] * 2,
    ]
