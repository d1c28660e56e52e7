from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.frames import Frames
from proxy.nodes.answer import Answer, HeardFrames

RECORDED = Path(__file__).parents[2] / "e2e/recorded"
TOOL: dict[str, Any] = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}


def message(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def item(*content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "content": list(content)}


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (message(content="hello"), "hello"),
        (message(content=""), ""),
        (message(content=None), ""),
        (message(content="I call", **TOOL), "I call"),
        (message(content=None, **TOOL), None),
        (message(content=[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}]), "so"),
        (message(content=[{"type": "thinking", "thinking": "hm"}]), None),
        (message(content="", tool_calls=[]), ""),
        (message(content=None, refusal="no"), None),
        (message(content=None, reasoning_content="thinking, and the tokens are spent"), None),
        ({"choices": [{"index": 1, "text": "second"}, {"index": 0, "text": "first"}]}, "first"),
        ({"choices": [{"text": "no index"}, {"text": "another"}]}, "no index"),
        (
            {
                "output": [
                    {"type": "reasoning"},
                    item({"type": "output_text", "text": "hel"}),
                    item({"type": "output_text", "text": "lo"}),
                ]
            },
            "hello",
        ),
        ({"output": [{"type": "function_call", "name": "f"}]}, None),
        ({"output": [item({"type": "refusal", "refusal": "no"})]}, None),
        ({"output": [item()]}, ""),
        ({"output": [item({"type": "output_text", "text": "cut"})], "status": "incomplete"}, "cut"),
        ({"output": [], "status": "queued", "background": True}, None),
        ({"output": [item({"type": "output_text", "text": "hal"})], "status": "failed"}, None),
        ({"object": "list", "data": [{"embedding": [0.5]}]}, None),
        ({"choices": [None, 3]}, None),
        ({"choices": {"index": 0}}, None),
        ([], None),
        (None, None),
    ],
)
def test_of_a_whole_reply(reply: Any, text: str | None) -> None:
    answer = Answer()
    answer.whole(reply)
    assert answer.text == text


def sse(event: Any) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def delta(index: int = 0, **delta: Any) -> bytes:
    return sse({"choices": [{"index": index, "delta": delta, "finish_reason": None}]})


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (
            [delta(role="assistant", content=""), delta(content="hel"), delta(1, content="no"), delta(content="lo")],
            "hello",
        ),
        ([delta(role="assistant", content=""), delta(), b"data: [DONE]\n\n"], ""),
        ([delta(role="assistant", content=None), delta(**TOOL)], None),
        ([delta(role="assistant"), delta(reasoning="hm")], None),
        ([sse({"choices": [{"index": 0, "text": "a"}]}), b": comment\n\n", sse({"choices": [], "usage": {}})], "a"),
        ([b'data: {"error"', b"data: 3\n\n", sse([1])], None),
        ([sse({"type": "response.refusal.delta", "delta": "no"})], None),
    ],
)
def test_of_a_stream_whatever_its_pieces(frames: list[bytes], text: str | None) -> None:
    for size in (1, 7, 10_000):
        answer = Answer()
        heard = HeardFrames(False, None, answer)
        whole = b"".join(frames)
        passed = b"".join(heard.feed(whole[at : at + size]) for at in range(0, len(whole), size)) + heard.finish()
        assert passed == whole and answer.text == text


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.sse")), ids=lambda path: path.stem)
def test_of_recorded_streams_and_they_pass_as_ever(path: Path) -> None:
    stream, answer = path.read_bytes(), Answer()
    heard, plain = HeardFrames(True, None, answer), Frames(True)
    assert heard.feed(stream) + heard.finish() == plain.feed(stream) + plain.finish()
    assert (heard.content, heard.usage, heard.done) == (plain.content, plain.usage, plain.done)
    if "tools" in path.stem:
        assert answer.text is None
    else:
        assert answer.text is not None and len(answer.text) > 3
        if "responses" in path.stem:  # it says at its end what it has said
            last = next(line for line in reversed(stream.splitlines()) if line.startswith(b"data: {"))
            whole = Answer()
            whole.whole(orjson.loads(last[6:])["response"])
            assert answer.text == whole.text
