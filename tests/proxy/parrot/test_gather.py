"""A stream, gathered into one answer, however its bytes are cut."""

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.parrot.answer import estimate
from proxy.parrot.gather import Gather

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def stream(words: list[str], finish: str | None = "stop", end: bytes = b"\n\n", done: bool = True) -> bytes:
    envelope = {"id": "c", "object": "chat.completion.chunk", "created": 3, "model": "m", "system_fingerprint": "fp"}
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
    frames = [envelope | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if finish is not None:
        frames.append(envelope | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        frames.append(envelope | {"choices": [], "usage": USAGE})
    said = b"".join(b"data: " + orjson.dumps(frame) + end for frame in frames)
    return b": hello" + end + said + (b"data: [DONE]" + end if done else b"")


@given(
    words=st.lists(st.text(min_size=1), max_size=5),
    end=st.sampled_from([b"\n\n", b"\r\n\r\n"]),
    cuts=st.lists(st.integers(0, 1200), max_size=8),
)
def test_the_whole_answer_is_gathered_however_it_is_cut(words: list[str], end: bytes, cuts: list[int]) -> None:
    whole = stream(words, "length", end)
    gather = Gather()
    edges = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    for a, b in pairwise(edges):
        gather.feed(whole[a:b])
    said = gather.finish()
    assert said is not None and said.text == "".join(words) and said.finish == "length"
    assert said.usage == USAGE and said.more == {"system_fingerprint": "fp"}
    assert gather.frames.content == len(words)


@pytest.mark.parametrize(
    "whole", [b"", stream(["a"], None, done=False), b'data: {"error": {"message": "no", "code": 503}}\n\n']
)
def test_what_did_not_come_to_its_end_is_no_answer(whole: bytes) -> None:
    gather = Gather()
    gather.feed(whole)
    assert gather.finish() is None


@pytest.mark.parametrize(
    "names", [["reasoning_content"], ["reasoning"], ["reasoning_content", "reasoning"], ["refusal"]]
)
def test_what_is_no_text_is_kept_apart_from_it_under_its_own_name(names: list[str]) -> None:
    gather = Gather()
    for delta in ({"content": "", **dict.fromkeys(names, "h")}, dict.fromkeys(names, "m"), {"content": "yes"}):
        frame = {"id": "c", "choices": [{"delta": delta, "finish_reason": "stop"}]}
        gather.feed(b"data: " + orjson.dumps(frame) + b"\n\n")
    said = gather.finish()
    assert said is not None and (said.beside, said.text) == (dict.fromkeys(names, "hm"), "yes")
    message = {"role": "assistant", "content": "yes", **dict.fromkeys(names, "hm")}
    assert said.whole("/v1/chat/completions")["choices"][0]["message"] == message
    first = said.stream("/v1/chat/completions").partition(b"\n\n")[0].removeprefix(b"data: ")
    assert orjson.loads(first)["choices"][0]["delta"] == message


@given(prompt=st.text(), text=st.text(), most=st.integers(1, 100))
def test_an_estimate_adds_up_and_keeps_to_what_was_asked_for(prompt: str, text: str, most: int) -> None:
    usage = estimate(prompt, text, most)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= usage["completion_tokens"] <= most and (usage["prompt_tokens"] > 0) is bool(prompt)
