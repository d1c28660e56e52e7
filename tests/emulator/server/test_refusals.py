"""What is refused is refused as vLLM does it; what is not emulated is refused too, and never answered wrongly."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from emulator.server.tokens import VOCABULARY

Read = Callable[[str], list[Any]]


@pytest.mark.parametrize(
    ("more", "message", "param"),
    [
        ({"prompt": ""}, "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", "prompt"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens"),
        ({"max_tokens": -3}, "max_tokens must be at least 1, got -3. (parameter=max_tokens, value=-3)", "max_tokens"),
        (
            {"max_tokens": 5000},
            "max_tokens=5000 cannot be greater than max_model_len=4096. Please request fewer output tokens. "
            "(parameter=max_tokens, value=5000)",
            "max_tokens",
        ),
        ({"n": 0}, "n must be at least 1, got 0.", None),
        ({"n": 2, "temperature": 0}, "n must be 1 when using greedy sampling, got 2.", None),
        (
            {"temperature": -1},
            "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
            "temperature",
        ),
        ({"top_p": 0}, "top_p must be in (0, 1], got 0.0. (parameter=top_p, value=0.0)", "top_p"),
        ({"stop": [""]}, "stop cannot contain an empty string.", None),
        ({"min_tokens": 9}, "min_tokens must be less than or equal to max_tokens=4, got 9.", None),
        (
            {"stream_options": {"include_usage": True}},
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            "stream_options",
        ),
        (
            {"prompt": [5] * 4097},
            "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input "
            "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
            "prompt. (parameter=input_tokens, value=4097)",
            "input_tokens",
        ),
        ({"prompt": []}, "You must pass at least one prompt", None),
        ({"prompt": [VOCABULARY]}, f"Token id {VOCABULARY} is out of vocabulary", None),
        ({"cache_salt": ""}, "Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt"),
    ],
)
async def test_a_value_out_of_its_range(emulated: Any, more: dict[str, Any], message: str, param: str | None) -> None:
    reply = await emulated.post("/v1/completions", **{"prompt": "a b", "max_tokens": 4, **more})
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (400, "BadRequestError", 400)
    assert error["message"].startswith(message) and error["param"] == param


@pytest.mark.parametrize(
    ("more", "param", "kind"),
    [
        ({"max_tokens": "many"}, "body.max_tokens", "int_parsing"),
        ({"prompt": {"a": 1}}, "body.prompt", "_type"),
        ({"prompt": [-1]}, "body.prompt.0", "greater_than_equal"),
        ({"seed": 2**63}, "body.seed", "less_than_equal"),
    ],
)
async def test_a_field_of_the_wrong_type(emulated: Any, more: dict[str, Any], param: str, kind: str) -> None:
    reply = await emulated.post("/v1/completions", **{"prompt": "a b", **more})
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "Bad Request", param)
    assert "validation error" in error["message"] and kind in error["message"]


async def test_a_body_that_is_none(emulated: Any) -> None:
    for content, headers in (
        (b"{", {"content-type": "application/json"}),
        (b"", {"content-type": "application/json"}),
        (b"{}", {"content-type": "text/plain"}),
        (b"[]", {"content-type": "application/json"}),
    ):
        reply = await emulated.client.post("/v1/chat/completions", content=content, headers=headers)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "Bad Request"), content


async def test_a_model_that_is_not_served(emulated: Any) -> None:
    reply = await emulated.chat(model="gpt-9")
    message = "The model `gpt-9` does not exist. Valid aliases: llama-2-7b."
    assert reply.status_code == 404
    assert reply.json() == {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}}


async def test_no_model_means_the_one_that_is_served(emulated: Any) -> None:
    reply = await emulated.post("/v1/completions", prompt="a", max_tokens=1)
    assert reply.json()["model"] == "llama-2-7b"


@pytest.mark.parametrize(
    "more",
    [
        {"logprobs": True},
        {"prompt_logprobs": 1},
        {"logit_bias": {"5": 1}},
        {"response_format": {"type": "json_object"}},
        {"use_beam_search": True},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
    ],
)
async def test_what_cannot_be_emulated_is_refused(emulated: Any, more: dict[str, Any]) -> None:
    reply = await emulated.chat(**more)
    error = reply.json()["error"]
    assert reply.status_code == 400 and "is not emulated" in error["message"] and error["param"] == next(iter(more))


async def test_log_probabilities_of_completions(emulated: Any) -> None:
    assert (await emulated.post("/v1/completions", prompt="a", logprobs=0)).status_code == 400
    assert (await emulated.post("/v1/completions", prompt="a", logprobs=None)).status_code == 200


async def test_tools_are_refused_as_a_vllm_without_a_parser_does(emulated: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    reply = await emulated.chat(tools=tools)
    assert reply.status_code == 400 and "--enable-auto-tool-choice" in reply.json()["error"]["message"]
    assert (await emulated.chat(tools=tools, tool_choice="none", max_tokens=1)).status_code == 200


async def test_unknown_fields_are_ignored(emulated: Any) -> None:
    assert (await emulated.chat(no_such_field=1, max_tokens=1)).status_code == 200


async def test_what_the_engine_finds_late_comes_inside_a_stream(emulated: Any, frames_of: Read) -> None:
    reply = await emulated.post("/v1/completions", prompt=[VOCABULARY], stream=True)
    (frame,) = frames_of(reply.text)
    assert reply.status_code == 200 and frame["error"]["code"] == 400


async def test_an_answer_gets_the_room_that_the_prompt_leaves(emulated: Any) -> None:
    body = await emulated.complete([5] * 4090, max_tokens=100)
    assert body["usage"]["completion_tokens"] == 6 and body["choices"][0]["finish_reason"] == "length"
    cut = await emulated.complete([5] * 5000, max_tokens=4, truncate_prompt_tokens=10)
    assert cut["usage"]["prompt_tokens"] == 10


async def test_a_full_queue(make_emulated: Callable[..., Any], frames_of: Read) -> None:
    engine = make_emulated(max_num_queued_reqs=2)
    first = [asyncio.create_task(engine.complete(str(n), max_tokens=200)) for n in range(2)]
    await engine.until(lambda: engine.machine.scheduler.running)
    for stream in (False, True):
        reply = await engine.chat(stream=stream)
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "Service Unavailable")
    await asyncio.gather(*first)
    # Two that come together find room for one together; the second is refused by the engine itself.
    late = await asyncio.gather(*(engine.chat(stream=True, n=2, max_tokens=2) for _ in range(2)))
    frames = [frames_of(reply.text) for reply in late]
    assert all(reply.status_code == 200 for reply in late)
    assert sorted("error" in each[0] for each in frames) == [False, True]
    (refused,) = [each for each in frames if "error" in each[0]]
    assert refused == [{"error": refused[0]["error"]}] and refused[0]["error"]["code"] == 503
    assert engine.metrics.rejections == 3


async def test_no_such_path(emulated: Any) -> None:
    reply = await emulated.client.get("/v1/nothing")
    assert (reply.status_code, reply.json()) == (404, {"detail": "Not Found"})
    assert (await emulated.client.get("/v1/completions")).status_code == 405
