"""Energy in the reply itself, for who asks for it: predicted, and marked so."""

import json
from typing import Any

import pytest
from stage import Gateway, chat_body

ASK = {"x-energy-report": "1"}


def check(energy: dict[str, Any], request_id: str) -> None:
    assert energy.keys() == {"joules", "quality", "provisional", "request_id"}
    assert energy["quality"] == "estimated"
    assert energy["provisional"] is True and energy["joules"] >= 0
    assert energy["request_id"] == request_id


@pytest.mark.scripted
def test_a_whole_reply_carries_it(gateway: Gateway) -> None:
    reply = gateway.chat(ASK, max_tokens=100)
    answer = reply.json()
    check(answer["energy"], reply.headers["x-joulegate-request-id"])
    assert answer["energy"]["joules"] > 0, "half a second of work has been seen by the counter"
    assert answer["usage"]["energy_mj"] == round(answer["energy"]["joules"] * 1000)
    assert isinstance(answer["usage"]["energy_mj"], int)
    assert answer["choices"][0]["message"]["content"] == "joule " * 100


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_carries_it_as_a_comment_before_its_end(gateway: Gateway, options: dict[str, Any]) -> None:
    reply = gateway.chat(ASK, max_tokens=100, stream=True, **options)
    *frames, comment, done = reply.text.strip().split("\n\n")
    assert done == "data: [DONE]" and comment.startswith(": energy ")
    energy = json.loads(comment.removeprefix(": energy "))
    check(energy, reply.headers["x-joulegate-request-id"])
    assert energy["joules"] > 0
    assert all(frame.startswith("data: {") for frame in frames)
    assert ('"choices":[]' in frames[-1]) == bool(options)


@pytest.mark.scripted
def test_a_stream_of_responses_carries_it_at_its_end(gateway: Gateway) -> None:
    body = {"model": "stub-7b", "input": "one", "max_output_tokens": 4, "stream": True}
    reply = gateway.http.post("/v1/responses", json=body, headers=ASK)
    *_, completed, comment = reply.text.strip().split("\n\n")
    assert "response.completed" in completed
    check(json.loads(comment.removeprefix(": energy ")), reply.headers["x-joulegate-request-id"])


@pytest.mark.scripted
def test_clients_do_not_stumble_over_it(gateway: Gateway) -> None:
    messages: Any = chat_body()["messages"]
    with gateway.openai() as client:
        whole = client.chat.completions.create(model="stub-7b", messages=messages, extra_headers=ASK)
        assert whole.usage and isinstance((whole.usage.model_extra or {})["energy_mj"], int)
        stream = client.chat.completions.create(model="stub-7b", messages=messages, stream=True, extra_headers=ASK)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "joule " * 8


def test_nobody_else_gets_it(gateway: Gateway) -> None:
    answer = gateway.chat(max_tokens=4).json()
    assert "energy" not in answer and "energy_mj" not in answer["usage"]
    assert ": energy" not in gateway.chat(max_tokens=4, stream=True).text


@pytest.mark.scripted
def test_an_error_is_left_as_it_is(gateway: Gateway) -> None:
    reply = gateway.chat(ASK, stub={"refuse": 422})
    assert reply.status_code == 422 and reply.json().keys() == {"error"}
