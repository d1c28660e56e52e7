"""The smallest configuration: an engine's name, kind and address."""

import json
from typing import Any

import pytest
from stage import Engine, Gateway, chat_body, joulegate, until


def frames(text: str) -> list[Any]:
    """The data of a stream's frames, `[DONE]` as it is."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def upstream(engine: Engine, reply: Any) -> dict[str, Any]:
    """The one request that reached the engine for a reply."""
    (served,) = engine.log(x_request_id=reply.headers["x-joulegate-request-id"])
    return served


def test_check_says_that_it_is_right(gateway: Gateway) -> None:
    done = joulegate("check", str(gateway.file), env=gateway.env)
    assert done.returncode == 0
    assert done.stdout.strip() == f"{gateway.file} is right: engines e1 (openai), e2 (openai); policy observe"


def test_it_says_in_one_line_what_it_measures_and_how_well(gateway: Gateway) -> None:
    first, *others = gateway.said().splitlines()
    assert "estimated" in first or "measured" in first
    assert others and not [line for line in others if "estimated" in line]


@pytest.mark.scripted
def test_chat(gateway: Gateway, engine: Engine) -> None:
    reply = gateway.chat(max_tokens=5)
    answer = reply.json()
    assert answer["choices"][0]["message"]["content"] == "joule " * 5
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert reply.headers["x-stub"] == "whole" and reply.headers["content-type"].startswith("application/json")
    served = upstream(engine, reply)
    assert served["body"] == chat_body(max_tokens=5) and served["headers"]["accept-encoding"] == "identity"
    figures = gateway.request(reply)
    assert (figures["prompt_tokens"], figures["output_tokens"], figures["usage"]) == (5, 5, "engine")
    assert (figures["engine"], figures["model"], figures["outcome"]) == ("e1", "stub-7b", "ok")


@pytest.mark.scripted
def test_a_streamed_chat_has_the_engines_bytes_without_the_usage_that_we_asked_for(
    gateway: Gateway, engine: Engine
) -> None:
    """The engine says `usage: null` in every frame because it was asked; only the frame with figures is ours."""
    reply = gateway.chat(max_tokens=4, stream=True)
    *content, last = frames(reply.text)
    assert last == "[DONE]" and reply.headers["x-stub"] == "stream"
    assert "".join(f["choices"][0]["delta"].get("content", "") for f in content) == "joule " * 4
    assert [f["usage"] for f in content] == [None] * 6
    assert upstream(engine, reply)["body"]["stream_options"] == {"include_usage": True}
    figures = gateway.request(reply)
    assert (figures["prompt_tokens"], figures["output_tokens"], figures["usage"]) == (5, 4, "engine")


def test_a_client_that_asks_for_usage_gets_it(gateway: Gateway, engine: Engine) -> None:
    reply = gateway.chat(max_tokens=4, stream=True, stream_options={"include_usage": True})
    *_, usage, last = frames(reply.text)
    assert last == "[DONE]" and usage["choices"] == [] and usage["usage"]["completion_tokens"] == 4
    assert upstream(engine, reply)["body"] == chat_body(
        max_tokens=4, stream=True, stream_options={"include_usage": True}
    )


@pytest.mark.scripted
def test_an_engine_without_usage_is_counted_by_frames(gateway: Gateway) -> None:
    figures = gateway.request(gateway.chat(max_tokens=6, stream=True, stub={"usage": False}))
    assert (figures["prompt_tokens"], figures["output_tokens"], figures["usage"]) == (None, 6, "frames")


@pytest.mark.scripted
def test_chat_with_the_openai_client(gateway: Gateway) -> None:
    with gateway.openai() as client:
        messages: Any = chat_body()["messages"]
        whole = client.chat.completions.create(model="stub-7b", messages=messages, max_completion_tokens=3)
        assert whole.choices[0].message.content == "joule " * 3
        stream = client.chat.completions.create(model="stub-7b", messages=messages, max_tokens=3, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "joule " * 3


@pytest.mark.scripted
def test_completions_with_the_openai_client(gateway: Gateway) -> None:
    with gateway.openai() as client:
        whole = client.completions.create(model="stub-7b", prompt="one two three", max_tokens=3)
        assert whole.choices[0].text == "joule " * 3 and whole.usage and whole.usage.prompt_tokens == 3
        stream = client.completions.create(model="stub-7b", prompt="one", max_tokens=3, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "joule " * 3


@pytest.mark.scripted
def test_responses_with_the_openai_client(gateway: Gateway, engine: Engine) -> None:
    with gateway.openai() as client:
        whole = client.responses.with_raw_response.create(model="stub-7b", input="one two", max_output_tokens=16)
        assert whole.parse().output_text == "joule " * 16
        figures = gateway.request_of_id(whole.headers["x-joulegate-request-id"])
        assert (figures["prompt_tokens"], figures["output_tokens"], figures["usage"]) == (2, 16, "engine")
        with client.responses.with_streaming_response.create(
            model="stub-7b", input="one two", max_output_tokens=16, stream=True
        ) as stream:
            events = list(stream.parse())
            request_id = stream.headers["x-joulegate-request-id"]
    assert [e.delta for e in events if e.type == "response.output_text.delta"] == ["joule "] * 16
    assert events[-1].type == "response.completed"
    (served,) = engine.log(x_request_id=request_id)
    assert "stream_options" not in served["body"], "it has usage by itself, and refuses this"
    figures = gateway.request_of_id(request_id)
    assert (figures["prompt_tokens"], figures["output_tokens"], figures["usage"]) == (2, 16, "engine")


@pytest.mark.scripted
def test_embeddings_with_the_openai_client(gateway: Gateway) -> None:
    with gateway.openai() as client:
        reply = client.embeddings.with_raw_response.create(model="stub-7b", input="one two three four")
        assert reply.parse().data[0].embedding == [0.25, -0.5, 1.0]
    figures = gateway.request_of_id(reply.headers["x-joulegate-request-id"])
    assert (figures["prompt_tokens"], figures["output_tokens"]) == (4, 0)


@pytest.mark.scripted
def test_models_are_those_of_all_engines(gateway: Gateway) -> None:
    def listed() -> bool:
        return [m["id"] for m in gateway.get("/v1/models")["data"]] == ["stub-3b", "stub-7b"]

    until(listed)
    with gateway.openai() as client:
        assert client.models.retrieve("stub-3b").owned_by == "stub"


@pytest.mark.scripted
def test_a_request_goes_to_the_engine_that_serves_its_model(gateway: Gateway, second_engine: Engine) -> None:
    test_models_are_those_of_all_engines(gateway)
    reply = gateway.chat(model="stub-3b", max_tokens=2)
    assert upstream(second_engine, reply)["tokens"] == 2


@pytest.mark.scripted
def test_tokenize_is_forwarded_and_costs_nothing(gateway: Gateway) -> None:
    reply = gateway.http.post("/tokenize", json={"model": "stub-7b", "prompt": "one two three"})
    assert reply.json() == {"count": 3, "tokens": [0, 1, 2]}
    found = gateway.http.get(f"/energy/requests/{reply.headers['x-joulegate-request-id']}")
    assert found.status_code == 404


@pytest.mark.scripted
@pytest.mark.parametrize("stream", [False, True])
def test_an_engines_error_passes_through_unchanged(gateway: Gateway, stream: bool) -> None:
    reply = gateway.chat(stream=stream, stub={"refuse": 422})
    expected = {"message": "the stub says 422", "type": "stub_error", "param": None, "code": 422}
    assert (reply.status_code, reply.json()) == (422, {"error": expected})
    assert gateway.request(reply)["outcome"] == "error"


@pytest.mark.scripted
def test_the_last_engines_refusal_passes_through_too(gateway: Gateway) -> None:
    test_models_are_those_of_all_engines(gateway)
    reply = gateway.chat(stub={"refuse": 503})
    assert (reply.status_code, reply.json()["error"]["message"]) == (503, "the stub says 503")
    reply = gateway.chat(stream=True, stub={"refuse_in_stream": 503})
    first, last = frames(reply.text)
    assert (first["error"]["message"], last) == ("the stub says 503", "[DONE]")
    assert gateway.request(reply)["outcome"] == "failed"


def test_headers_go_upstream_and_come_back_but_for_those_of_the_connection(gateway: Gateway, engine: Engine) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {"x-request-id": "mine-1", "traceparent": trace, "baggage": "a=b", "te": "trailers", "x-other": "kept"}
    reply = gateway.chat(headers={**sent, "connection": "keep-alive, x-hop", "x-hop": "1"}, max_tokens=1)
    assert reply.headers["x-joulegate-request-id"] != "mine-1"
    (served,) = engine.log(x_request_id="mine-1")
    got = served["headers"]
    assert {name: got.get(name) for name in sent} == {**sent, "te": None}
    assert "x-hop" not in got and got["host"] == engine.url.removeprefix("http://")


def test_every_reply_has_an_id_refusals_too(gateway: Gateway) -> None:
    replies = [gateway.chat(max_tokens=1), gateway.chat(model="none"), gateway.http.get("/v1/models")]
    ids = [reply.headers["x-joulegate-request-id"] for reply in replies]
    assert len(set(ids)) == 3 and all(one.startswith("req_") for one in ids)
