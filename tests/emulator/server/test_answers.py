"""What the emulated engine answers: frames, texts and usage as vLLM gives them."""

from collections.abc import Callable
from typing import Any

import pytest

from emulator.server.tokens import BOS, decode, encode

Read = Callable[[str], list[Any]]


async def test_a_whole_chat_answer(emulated: Any) -> None:
    reply = await emulated.chat("hello there", max_tokens=12, ignore_eos=True)
    body = reply.json()
    assert reply.headers["content-type"] == "application/json" and body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"], body["system_fingerprint"]) == (
        "chat.completion",
        "llama-2-7b",
        "vllm-0.32.0-emulated",
    )
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"], choice["stop_reason"]) == (0, "length", None)
    assert choice["message"]["role"] == "assistant" and len(encode(choice["message"]["content"])) == 12
    details = {"cached_tokens": 0, "created_cache_tokens": 0, "multimodal_tokens": None}
    # The template: a token at the beginning, two around the message, one that opens the answer; the text has two.
    assert body["usage"] == {
        "prompt_tokens": 4 + len(encode("hello there")),
        "total_tokens": 4 + len(encode("hello there")) + 12,
        "completion_tokens": 12,
        "prompt_tokens_details": details,
        "completion_tokens_details": None,
    }


async def test_a_streamed_chat_answer(emulated: Any, frames_of: Read) -> None:
    reply = await emulated.chat(stream=True, max_tokens=5, ignore_eos=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    opening, *deltas, last, usage = frames_of(reply.text)
    assert opening["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert set(opening) == {"id", "object", "created", "model", "choices", "prompt_token_ids", "prompt_text"}
    assert all(set(delta["choices"][0]["delta"]) == {"content"} for delta in (*deltas, last))
    text = "".join(frame["choices"][0]["delta"]["content"] for frame in (*deltas, last))
    assert len(encode(text)) == usage["usage"]["completion_tokens"] == 5
    assert last["choices"][0]["finish_reason"] == "length" and "system_fingerprint" not in last
    assert usage["choices"] == [] and usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert len({frame["id"] for frame in (opening, *deltas, last, usage)}) == 1


async def test_a_stream_says_the_same_as_a_whole_answer(emulated: Any, frames_of: Read) -> None:
    whole = (await emulated.chat("the same", max_tokens=300)).json()
    stream = frames_of((await emulated.chat("the same", max_tokens=300, stream=True)).text)
    text = "".join(frame["choices"][0]["delta"]["content"] for frame in stream)
    assert text == whole["choices"][0]["message"]["content"]
    assert stream[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert stream[-1]["system_fingerprint"] == whole["system_fingerprint"]


async def test_usage_in_every_frame(emulated: Any, frames_of: Read) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = await emulated.chat(stream=True, max_tokens=4, ignore_eos=True, stream_options=options)
    frames = frames_of(reply.text)
    told = [frame["usage"]["completion_tokens"] for frame in frames]
    assert told[0] == 0 and told == sorted(told) and told[-2:] == [4, 4]
    assert frames[1]["usage"]["completion_tokens_details"] is None and "prompt_tokens_details" not in frames[1]["usage"]


async def test_an_answer_that_ends_by_itself_counts_the_token_that_ends_it(emulated: Any) -> None:
    body = await emulated.complete(max_tokens=4000, ignore_eos=False)
    assert body["choices"][0]["finish_reason"] == "stop"
    assert len(encode(body["choices"][0]["text"])) == body["usage"]["completion_tokens"] - 1


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("one two three", [1 + 3]),
        (["one", "two three"], [1 + 1, 1 + 2]),
        ([5, 6, 7], [3]),
        ([[5, 6, 7], [8]], [3, 1]),
    ],
)
async def test_every_kind_of_prompt(emulated: Any, prompt: Any, lengths: list[int]) -> None:
    body = await emulated.complete(prompt, max_tokens=3)
    assert [choice["index"] for choice in body["choices"]] == list(range(len(lengths)))
    assert body["usage"]["prompt_tokens"] == sum(lengths)
    assert body["usage"]["completion_tokens"] == 3 * len(lengths)


async def test_several_choices_are_several_answers(emulated: Any, frames_of: Read) -> None:
    body = await emulated.complete("a b", max_tokens=6, n=3)
    texts = [choice["text"] for choice in body["choices"]]
    assert len(set(texts)) == 3 and body["usage"]["prompt_tokens"] == 3 and body["usage"]["completion_tokens"] == 18
    streamed = await emulated.post("/v1/completions", prompt="a b", max_tokens=6, n=3, ignore_eos=True, stream=True)
    by_choice = {0: "", 1: "", 2: ""}
    for frame in frames_of(streamed.text):
        by_choice[frame["choices"][0]["index"]] += frame["choices"][0]["text"]
    assert list(by_choice.values()) == texts


async def test_echo_puts_the_prompt_in_front(emulated: Any, frames_of: Read) -> None:
    plain = await emulated.complete("so it was", max_tokens=4)
    echoed = await emulated.complete("so it was", max_tokens=4, echo=True)
    assert echoed["choices"][0]["text"] == "so it was" + plain["choices"][0]["text"]
    ids = await emulated.complete([BOS, *encode("so it was")], max_tokens=4, echo=True)
    assert ids["choices"][0]["text"] == echoed["choices"][0]["text"]
    body = {"prompt": "so it was", "max_tokens": 4, "echo": True, "ignore_eos": True, "stream": True}
    frames = frames_of((await emulated.post("/v1/completions", **body)).text)
    assert "".join(frame["choices"][0]["text"] for frame in frames) == echoed["choices"][0]["text"]


async def test_a_stop_string_is_held_back_and_named(emulated: Any, frames_of: Read) -> None:
    text = (await emulated.complete(max_tokens=40))["choices"][0]["text"]
    stop = text[60:66]
    body = {"prompt": "once upon a time", "max_tokens": 40, "ignore_eos": True, "stop": [stop], "stream": True}
    frames = frames_of((await emulated.post("/v1/completions", **body)).text)
    assert "".join(frame["choices"][0]["text"] for frame in frames) == text[: text.index(stop)]
    assert (frames[-1]["choices"][0]["finish_reason"], frames[-1]["choices"][0]["stop_reason"]) == ("stop", stop)


async def test_a_repeated_prompt_is_found_in_the_cache(emulated: Any) -> None:
    prompt = list(range(400, 500))
    first, second = await emulated.complete(prompt), await emulated.complete(prompt)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 96  # whole blocks of 16
    salted = await emulated.complete(prompt, cache_salt="mine")
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_the_next_turn_finds_the_answer_in_the_cache(emulated: Any) -> None:
    said = (await emulated.chat("begin", max_tokens=64, ignore_eos=True)).json()
    turns = [
        {"role": "user", "content": "begin"},
        {"role": "assistant", "content": said["choices"][0]["message"]["content"]},
        {"role": "user", "content": "go on"},
    ]
    body = (await emulated.post("/v1/chat/completions", messages=turns, max_tokens=2)).json()
    whole_blocks = (said["usage"]["total_tokens"] - 1) // 16 * 16  # the last token is never read
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == whole_blocks


async def test_cached_tokens_can_be_left_untold(make_emulated: Callable[..., Any]) -> None:
    body = await make_emulated(prompt_tokens_details=False).complete()
    assert body["usage"]["prompt_tokens_details"] is None


async def test_the_seed_decides_what_is_said(make_emulated: Callable[..., Any]) -> None:
    async def said(engine: Any, **more: Any) -> str:
        return (await engine.complete(max_tokens=20, **more))["choices"][0]["text"]

    one, other = make_emulated(), make_emulated(seed=7)
    assert await said(one) == await said(one) == await said(one, temperature=0)
    assert len({await said(one), await said(one, seed=5), await said(other)}) == 3


async def test_a_request_id_becomes_the_answers_id(emulated: Any) -> None:
    headers = {"X-Request-Id": "mine"}
    reply = await emulated.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers=headers)
    assert reply.json()["id"] == "cmpl-mine"
    assert (await emulated.chat(max_tokens=1, request_id="yours")).json()["id"] == "chatcmpl-yours"
    again = await emulated.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers=headers)
    assert again.status_code == 200, "an id may be used twice"


async def test_models_version_and_health(emulated: Any) -> None:
    (card,) = (await emulated.client.get("/v1/models")).json()["data"]
    assert (card["id"], card["object"], card["owned_by"], card["max_model_len"]) == (
        "llama-2-7b",
        "model",
        "vllm",
        4096,
    )
    assert (await emulated.client.get("/version")).json() == {"version": "0.32.0+emulated"}
    for path in ("/health", "/ping"):
        reply = await emulated.client.get(path)
        assert (reply.status_code, reply.text) == (200, "")


async def test_tokenize_and_detokenize(emulated: Any) -> None:
    found = (await emulated.post("/tokenize", prompt="Hello World", return_token_strs=True)).json()
    assert found == {
        "count": 3,
        "max_model_len": 4096,
        "tokens": [BOS, *encode("Hello World")],
        "token_strs": ["", "Hello", " World"],
    }
    assert (await emulated.post("/detokenize", tokens=found["tokens"])).json() == {"prompt": "Hello World"}
    chat = (await emulated.post("/tokenize", messages=[{"role": "user", "content": "hello there"}])).json()
    usage = (await emulated.chat("hello there", max_tokens=1)).json()["usage"]
    assert chat["count"] == usage["prompt_tokens"] and decode(chat["tokens"]) == "hello there"


async def test_parts_and_tool_calls_are_part_of_the_prompt(emulated: Any) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    found = (await emulated.post("/tokenize", messages=messages)).json()["tokens"]
    assert decode(found) == "one\ntwo"
    messages.append({"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function"}]})
    assert '"id":"x"' in decode((await emulated.post("/tokenize", messages=messages)).json()["tokens"])
