"""What of an OpenAI request can pass Parrot, and the clear no to everything else."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.parrot import translate, wire
from proxy.parrot.translate import CHAT, COMPLETIONS, Unspeakable
from proxy.parrot.wire import Session, Text

HELLO = [{"role": "user", "content": "hello"}]
FUNCTION = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    "param, more",
    [
        ("tools", {"tools": [FUNCTION]}),
        ("tools", {"tools": [FUNCTION], "tool_choice": "auto"}),
        ("functions", {"functions": [{"name": "f"}]}),
        ("n", {"n": 2}),
        ("best_of", {"best_of": 3}),
        ("logprobs", {"logprobs": True}),
        ("logprobs", {"logprobs": 0}),  # of a completion: the chosen token's own
        ("top_logprobs", {"top_logprobs": 5}),
        ("prompt_logprobs", {"prompt_logprobs": 0}),  # of the prompt's own tokens
        ("return_token_ids", {"return_token_ids": True}),
        ("return_tokens_as_token_ids", {"return_tokens_as_token_ids": True}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {}}}),
        ("guided_json", {"guided_json": {"type": "object"}}),
        ("structured_outputs", {"structured_outputs": {"regex": "x"}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("audio", {"audio": {"voice": "x"}}),
        ("web_search_options", {"web_search_options": {"a": 1}}),
        ("echo", {"echo": True}),
        ("suffix", {"suffix": "x"}),
    ],
)
def test_what_is_more_than_one_text_is_refused_by_name(param: str, more: dict[str, Any]) -> None:
    with pytest.raises(Unspeakable) as no:
        translate.check(CHAT, {"messages": HELLO, **more}, builtin=False)
    assert no.value.param == param and param in str(no.value)


@pytest.mark.parametrize(
    "more",
    [
        {"n": 1},
        {"n": None, "logprobs": False, "top_logprobs": 0, "response_format": None, "tools": [], "stop": "x"},
        {"response_format": {"type": "text"}, "modalities": ["text"]},
        {"tools": [FUNCTION], "tool_choice": "none"},
        {"prompt_logprobs": None, "return_token_ids": False, "return_tokens_as_token_ids": False},
        {"seed": 3, "logit_bias": {"1": 2}, "ignore_eos": True, "min_p": 0.1, "stream": True},
    ],
)
def test_what_shapes_one_text_passes(more: dict[str, Any]) -> None:
    translate.check(CHAT, {"messages": HELLO, **more}, builtin=False)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/tokenize", "/rerank"])
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(Unspeakable, match="cannot pass Parrot"):
        translate.check(path, {}, builtin=False)


@pytest.mark.parametrize("key", ["seed", "logit_bias", "min_p", "anything"])
def test_the_builtin_engine_gets_no_key_that_it_would_lose(key: str) -> None:
    translate.check(CHAT, {"messages": HELLO, "temperature": 0.5, "stop": "x", "user": "u"}, builtin=True)
    with pytest.raises(Unspeakable) as no:
        translate.check(CHAT, {"messages": HELLO, key: 1}, builtin=True)
    assert no.value.param == key


def test_messages_keep_their_roles_and_their_order() -> None:
    said = translate.texts(
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None},
            ]
        },
    )
    assert said == ["system: Be brief.\n\n", "user: ab\n\n", "assistant: \n\n", "assistant: "]
    assert translate.texts(COMPLETIONS, {"prompt": "as it is"}) == ["as it is"]
    assert translate.texts(COMPLETIONS, {"prompt": ["as it is"]}) == ["as it is"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [IMAGE]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "user", "content": 3},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"content": "x"},
        "hello",
    ],
)
def test_messages_that_are_no_text_are_refused(message: Any) -> None:
    with pytest.raises(Unspeakable, match=r"messages\[1\]"):
        translate.texts(CHAT, {"messages": [*HELLO, message]})


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": "hello"}])
def test_a_chat_needs_messages(body: dict[str, Any]) -> None:
    with pytest.raises(Unspeakable, match="at least one message"):
        translate.texts(CHAT, body)


@pytest.mark.parametrize("prompt", [None, "", [], ["a", "b"], [[1], [2]], [1, "a"], 3])
def test_a_completion_needs_one_prompt_of_text(prompt: Any) -> None:
    with pytest.raises(Unspeakable, match="one text"):
        translate.texts(COMPLETIONS, {"prompt": prompt})


@pytest.mark.parametrize("prompt", [[7], [1, 2], [[1, 2]]])
def test_token_ids_are_the_engines_alone(prompt: Any) -> None:
    assert translate.texts(COMPLETIONS, {"prompt": prompt}) in (["7"], ["1 2"])
    with pytest.raises(Unspeakable, match="one text"):
        translate.texts(COMPLETIONS, {"prompt": prompt}, builtin=True)


def test_sampling_is_said_in_parrots_words_and_no_others() -> None:
    body = {"max_tokens": 9, "temperature": 1, "top_p": 0.5, "presence_penalty": 0.1, "seed": 3, "stop": "END"}
    assert translate.sampling(body, stop=["id"]) == {
        "max_gen_length": 9,
        "temperature": 1.0,
        "top_p": 0.5,
        "presence_penalty": 0.1,
        "stop_str": ["id"],
    }
    assert translate.sampling({"max_tokens": 9, "max_completion_tokens": 7})["max_gen_length"] == 7
    assert translate.sampling({"max_tokens": None})["max_gen_length"] == translate.MOST_TOKENS
    assert translate.sampling({"max_tokens": -4})["max_gen_length"] == 1


@pytest.mark.parametrize("body", [{"temperature": "hot"}, {"top_p": True}, {"max_tokens": "9"}, {"max_tokens": [9]}])
def test_what_would_end_parrots_engine_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Unspeakable, match="must be a number"):
        translate.sampling(body)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["n", "tools", "messages", "prompt", "stop", "max_tokens", "temperature", "top_p", "stop_token_ids", "logprobs"]
)
MESSAGES = st.lists(st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), JSON, max_size=3), max_size=2)


@given(
    body=st.dictionaries(KEYS, JSON, max_size=4), messages=MESSAGES | JSON, path=st.sampled_from([CHAT, COMPLETIONS])
)
@pytest.mark.parametrize("builtin", [False, True])
def test_whatever_is_sent_passes_as_text_or_is_refused(body: Any, messages: Any, path: str, builtin: bool) -> None:
    body = {"messages": messages, **body}
    try:
        translate.check(path, body, builtin)
        said = translate.texts(path, body, builtin)
        how = translate.builtin_sampling(body) if builtin else translate.sampling(body, ["id"])
    except Unspeakable as no:
        assert str(no)
        return
    orjson.dumps(wire.call(Session(0, "1"), [Text(one) for one in said], how))
    assert said and all(isinstance(one, str) for one in said) and how["max_gen_length"] >= 1
    assert isinstance(translate.stop_of(body).cut("some text"), str)


def test_the_builtin_engine_never_divides_by_a_temperature_of_zero() -> None:
    assert translate.builtin_sampling({"temperature": 0})["temperature"] > 0
    said = translate.builtin_sampling({"ignore_eos": True, "stop_token_ids": [2]})
    assert said["ignore_tokenizer_eos"] is True and said["stop_token_ids"] == [2]
    for ids in (2, ["a"], {"a": 1}):
        with pytest.raises(Unspeakable, match="list of numbers"):
            translate.builtin_sampling({"stop_token_ids": ids})


@pytest.mark.parametrize(
    "stop, left", [(None, "one two"), ("two", "one "), (["x", " t", "wo"], "one"), (["", 3], "one two")]
)
def test_stop_strings_cut_the_text(stop: Any, left: str) -> None:
    assert translate.stop_of({"stop": stop}).cut("one two") == left
