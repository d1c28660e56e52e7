"""The whole thing with a real model: words in, words and joules out."""

from collections.abc import Callable
from typing import Any

from stage import Gateway

from proxy.engines import model

QUESTION: Any = [{"role": "user", "content": "Name the capital of France."}]


def test_a_real_model_answers_and_its_joules_are_known(make_gateway: Callable[..., Gateway]) -> None:
    model.fetch()  # once a machine, and not within the gateway's time to start
    gateway = make_gateway({"engines": [{"name": "e1", "kind": "embedded", "slots": 2, "context": 512}]})
    asked: dict[str, Any] = {"model": model.MODEL, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
    tags = {"x-workflow-id": "paris", "x-workflow-name": "search"}
    with gateway.openai() as client:
        assert [entry.id for entry in client.models.list()] == [model.MODEL]
        whole = client.chat.completions.create(**asked, extra_headers=tags)
        stream = client.chat.completions.create(**asked, extra_headers=tags, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content and "Paris" in text
    first, second = gateway.run("paris")["requests"]
    for request in (first, second):
        assert request["outcome"] == "ok" and request["usage"] == "engine" and request["joules"] > 0
        assert request["output_tokens"] == 8 and request["prompt_tokens"] > 5
        assert request["quality"] in ("estimated", "attributed")
        assert set(request["by_phase"]) <= {"prefill", "decode"}
    assert (first["stream"], second["stream"]) == (False, True)
    assert second["cached_tokens"] > 0, "the same prompt again"
    books = gateway.balance()
    assert all(device["residual_j"] == 0 for device in books.values())
