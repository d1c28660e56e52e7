from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.frames import Frames, Usage, read_usage


def event(data: Any, name: str = "") -> bytes:
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + orjson.dumps(data) + b"\n\n"


def chat(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event(
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]} | more
    )


def text(piece: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": piece, "logprobs": None, "finish_reason": finish}
    return event({"id": "c1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]} | more)


def usage(prompt: int, output: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output} | more


def tool(arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **more, "function": {"arguments": arguments}}]}


DONE = b"data: [DONE]\n\n"
COMMENT = b': energy {"joules":1.5}\n\n'
USAGE_AT_END = event({"id": "c1", "choices": [], "usage": usage(7, 3, prompt_tokens_details={"cached_tokens": 4})})
SPEECH = {"type": "response.output_text.delta", "item_id": "i", "delta": "Hi"}
RESPONSE = {"id": "r", "object": "response", "text": {"format": {"type": "text"}}}
ANSWER = {"type": "output_text", "text": "HiHi", "annotations": []}
RESPONSE_USAGE = {"input_tokens": 7, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}


USAGE = Usage(7, 3, 4)


@dataclass
class Recorded:
    """A stream as an engine sends it, what a client should see of it, and what is in it."""

    frames: list[bytes]
    content: int
    usage: Usage | None = USAGE

    @property
    def whole(self) -> bytes:
        return b"".join(self.frames)

    @property
    def shown(self) -> bytes:
        return b"".join(frame for frame in self.frames if frame != USAGE_AT_END)


STREAMS = {
    "vllm chat": Recorded(
        [
            chat({"role": "assistant", "content": ""}, prompt_token_ids=None),
            *(chat({"content": piece}, token_ids=None) for piece in ("Hé", "\u4e2d\n\n\U0001f600", 'say "usage"')),
            chat({"content": ""}, "stop", stop_reason=None),
            USAGE_AT_END,
            DONE,
        ],
        content=3,
    ),
    "vllm completions": Recorded([text("a"), text("b"), text("", "length"), USAGE_AT_END, DONE], content=2),
    "llama.cpp chat": Recorded(
        [
            chat({"role": "assistant", "content": None}),
            chat({"content": "Hi"}),
            chat({}, "stop"),
            event({"choices": [], "usage": usage(7, 3), "timings": {"prompt_n": 3}}),
            DONE,
        ],
        content=1,
        usage=Usage(7, 3, None),
    ),
    "OpenAI with a tool": Recorded(
        [
            chat({"role": "assistant", "content": None, **tool("", id="t", type="function")}, usage=None),
            chat(tool('{"a":'), usage=None),
            chat(tool('"\\"content\\":\\"\\"}'), usage=None),
            chat({}, "tool_calls", usage=None),
            USAGE_AT_END,
            DONE,
        ],
        content=3,
    ),
    "reasoning": Recorded(
        [
            chat({"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None}),
            chat({"content": None, "reasoning_content": "hm", "tool_calls": None}),
            chat({"content": "", "reasoning_content": "so"}),
            chat({"content": "Yes", "reasoning_content": None, "tool_calls": []}),
            chat({"content": None, "reasoning_content": None, "tool_calls": None}, "stop"),
            USAGE_AT_END,
            DONE,
        ],
        content=3,
    ),
    "two choices": Recorded(
        [
            chat({"role": "assistant", "content": ""}),
            chat({"role": "assistant", "content": ""}, index=1),
            chat({"content": "a"}),
            chat({"content": "b"}, index=1),
            chat({}, "stop"),
            chat({}, "stop", index=1),
            USAGE_AT_END,
            DONE,
        ],
        content=2,
    ),
    "running usage": Recorded(
        [
            chat({"role": "assistant", "content": ""}, usage=usage(7, 0)),
            chat({"content": "a"}, usage=usage(7, 1)),
            chat({"content": ""}, "stop", usage=usage(7, 2)),
            USAGE_AT_END,
            DONE,
        ],
        content=1,
    ),
    "comments and keep-alives": Recorded(
        [b": hello\n\n", b"\n\n", chat({"content": "a"}), b": metadata: x\n\n", USAGE_AT_END, b": bye\n" + DONE, b"\n"],
        content=1,
    ),
    "no end": Recorded([chat({"content": "a"}), USAGE_AT_END], content=1),
    "Responses": Recorded(
        [
            event({"type": "response.created", "response": RESPONSE | {"usage": None}}, "response.created"),
            event({"type": "response.in_progress", "response": RESPONSE | {"usage": None}}, "response.in_progress"),
            event(SPEECH, "response.output_text.delta"),
            event(SPEECH, "response.output_text.delta"),
            event({"type": "response.output_text.done", "text": "HiHi"}, "response.output_text.done"),
            event({"type": "response.content_part.done", "part": ANSWER}, "response.content_part.done"),
            event({"type": "response.completed", "response": RESPONSE | {"output": [ANSWER], "usage": RESPONSE_USAGE}}),
        ],
        content=2,
    ),
}
ALL = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)


def relay(frames: Frames, pieces: list[bytes]) -> bytes:
    return b"".join([*map(frames.feed, pieces), frames.finish()])


@ALL
def test_only_the_usage_frame_that_we_asked_for_is_kept_back(stream: Recorded) -> None:
    shown, hidden = Frames(), Frames(hide_usage=True)
    assert relay(shown, [stream.whole]) == stream.whole
    expected = stream.whole.replace(stream.frames[-2], b"") if "timings" in str(stream.whole) else stream.shown
    assert relay(hidden, [stream.whole]) == expected
    assert shown.usage == hidden.usage == stream.usage
    assert shown.content == hidden.content == stream.content
    assert shown.done == hidden.done == (b"[DONE]" in stream.whole)
    assert shown.error is hidden.error is None


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(STREAMS)), crlf=st.booleans(), comment=st.booleans())
def test_how_the_bytes_are_cut_changes_nothing(data: st.DataObject, name: str, crlf: bool, comment: bool) -> None:
    whole = STREAMS[name].whole.replace(b"\n", b"\r\n") if crlf else STREAMS[name].whole
    hide = data.draw(st.booleans())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=30)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    def frames() -> Frames:
        return Frames(hide, (lambda: COMMENT) if comment else None)

    at_once, cut, bytewise = frames(), frames(), frames()
    expected = relay(at_once, [whole])
    assert relay(cut, pieces) == expected
    assert relay(bytewise, [whole[i : i + 1] for i in range(len(whole))]) == expected
    for other in (cut, bytewise):
        assert (other.content, other.usage, other.done) == (at_once.content, at_once.usage, at_once.done)
    assert (at_once.content, at_once.usage) == (STREAMS[name].content, STREAMS[name].usage)
    assert expected.count(COMMENT) == comment


@ALL
def test_the_comment_stands_right_before_the_end(stream: Recorded) -> None:
    out = relay(Frames(comment=lambda: COMMENT), [stream.whole])
    assert out.replace(COMMENT, b"", 1) == stream.whole
    if b"[DONE]" in stream.whole:
        before, _, after = out.partition(COMMENT)
        assert before.endswith(b"\n\n") and b"data: [DONE]\n\n" in after
    else:
        assert out.endswith(COMMENT)


@pytest.mark.parametrize("tail", [b'data: {"x":1}', b'data: {"x":1}\n', b": half a comm", b"data: [DONE]", b"\n"])
def test_a_stream_that_breaks_off_inside_a_frame_keeps_its_comment_apart(tail: bytes) -> None:
    begun = chat({"content": "a"})
    assert relay(Frames(hide_usage=True), [begun + tail]) == begun + tail
    lines = relay(Frames(comment=lambda: COMMENT), [begun, tail]).split(b"\n")
    assert COMMENT.strip() in lines
    for line in tail.split(b"\n"):
        assert line in lines


def test_a_usage_frame_at_the_very_end_needs_no_blank_line() -> None:
    frames = Frames(hide_usage=True)
    assert relay(frames, [chat({"content": "a"}) + USAGE_AT_END.strip()]) == chat({"content": "a"})
    assert frames.usage == Usage(7, 3, 4)


def test_nothing_is_held_back_when_nothing_is_edited() -> None:
    frames = Frames()
    assert [frames.feed(piece) for piece in (b"da", b"ta: {", b"}\n")] == [b"da", b"ta: {", b"}\n"]
    assert frames.finish() == b""


def test_a_frame_too_large_to_be_ours_passes_in_pieces() -> None:
    piece = b"data: " + b"x" * (3 * 2**20)
    frames = Frames(hide_usage=True)
    assert relay(frames, [piece, piece, piece, b"\n\n", DONE]) == piece * 3 + b"\n\n" + DONE
    assert frames.done


@pytest.mark.parametrize(
    "frame",
    [
        b'data: {"error": {"message": "full", "code": 429}}\n\n',
        b'data:{"error":{"message":"full"}}\n\n',
        b'data: {"object":"error","message":"full"}\n\n',
        b'event: error\ndata: {"type":"error","message":"full"}\n\n',
    ],
)
def test_an_error_in_the_place_of_the_first_frame_is_seen(frame: bytes) -> None:
    frames = Frames(hide_usage=True)
    assert frames.feed(b": ping\n\n" + frame) == b": ping\n\n" + frame
    assert frames.error is not None and b"full" in frames.error
    assert orjson.loads(frames.error) and frames.content == 0


def test_an_error_later_on_is_seen_too() -> None:
    frames = Frames()
    frames.feed(chat({"role": "assistant", "content": ""}) + b'data: {"error": {"message": "broke"}}\n\n')
    assert frames.error == b'{"error": {"message": "broke"}}'


@pytest.mark.parametrize("named", [b"event: response.failed\n", b""])
def test_a_response_that_failed_is_an_error_too(named: bytes) -> None:
    frames = Frames()
    failed = b'{"type":"response.failed","response":{"error":{"code":"server_error"},"usage":null}}'
    frames.feed(b'event: response.created\ndata: {"type":"response.created","response":{"error":null}}\n\n')
    assert frames.error is None
    frames.feed(named + b"data: " + failed + b"\n\n")
    assert frames.error == failed


def test_a_word_in_an_answer_is_no_error() -> None:
    frames = Frames()
    frames.feed(chat({"content": '{"error": 1}'}))
    assert frames.error is None and frames.content == 1


@pytest.mark.parametrize(
    ("last", "complete"),
    [
        (chat({}, "stop"), True),
        (chat({"content": "x"}, "length"), True),
        (chat({"content": "x"}), False),
        (chat({"content": "x"}) + DONE, True),
        (b'event: response.in_progress\ndata: {"type":"response.in_progress","response":{}}\n\n', False),
        (b'event: response.output_text.done\ndata: {"type":"response.output_text.done","text":"a"}\n\n', False),
        (b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":null}}\n\n', True),
        (b'data: {"type": "response.incomplete", "response": {"usage": {"input_tokens": 1}}}\n\n', True),
        (b"", False),
    ],
)
def test_an_answer_is_complete_with_a_reason_or_with_done(last: bytes, complete: bool) -> None:
    frames = Frames()
    frames.feed(chat({"content": "a"}) + last)
    frames.finish()
    assert frames.complete is complete


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"usage": usage(7, 3)}, Usage(7, 3, None)),
        ({"usage": {"prompt_tokens": 7}}, Usage(7, 0, None)),
        ({"usage": RESPONSE_USAGE}, Usage(7, 3, 4)),
        ({"response": {"usage": RESPONSE_USAGE}}, Usage(7, 3, 4)),
        ({"usage": usage(7, 3, prompt_tokens_details=None)}, Usage(7, 3, None)),
        ({"usage": usage(-7, -3)}, Usage(0, 0, None)),
        ({"usage": usage(7, 3, prompt_tokens_details={"cached_tokens": 9})}, Usage(7, 3, 7)),
        ({"usage": usage(7, 3, prompt_tokens_details={"cached_tokens": -1})}, Usage(7, 3, 0)),
        ({"usage": usage(2**63, 3)}, None),
        ({"usage": {"prompt_tokens": "7"}}, None),
        ({"usage": {"prompt_tokens": 7.5}}, None),
        ({"usage": [7, 3]}, None),
        ({"usage": None}, None),
        ({"response": [1]}, None),
        ([1, 2], None),
        ("usage", None),
        (None, None),
    ],
)
def test_usage_in_the_words_of_either_api(reply: Any, expected: Usage | None) -> None:
    assert read_usage(reply) == expected


@given(st.lists(st.sampled_from([b"data: ", b"\n", b"\r", b'{"usage":', b"{}", b"[DONE]", b"}", b"\xff", b'"error"'])))
def test_no_bytes_break_a_stream(pieces: list[bytes]) -> None:
    frames = Frames(hide_usage=True)
    out = relay(frames, pieces)
    assert out == b"".join(pieces) or frames.usage is not None


def test_a_frame_cut_off_in_the_middle_of_its_content_is_no_output() -> None:
    frames = Frames()
    assert relay(frames, [b'data: {"choices":[{"delta":{"content":"']) == b'data: {"choices":[{"delta":{"content":"'
    assert frames.content == 0


@pytest.mark.parametrize(
    ("frame", "counts"),
    [
        (b'data: {"object":"text_completion","choices":[{"index":0,"text":"","finish_reason":null}]}\n\n', True),
        (b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":null}]}\n\n', True),
        (b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n', False),
        (b'data: {"object":"text_completion","choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\n', False),
    ],
)
def test_a_token_without_text_is_a_token(frame: bytes, counts: bool) -> None:
    frames = Frames()
    frames.feed(frame)
    assert frames.content == counts
