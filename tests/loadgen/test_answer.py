import json

import pytest

from loadgen.answer import AnswerError, StreamedAnswer, model_ids, refusal, whole_answer


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n"


def test_a_stream_is_read_past_comments_usage_and_blank_lines() -> None:
    answer = StreamedAnswer()
    lines = [
        b": energy {}\n",
        b"\r\n",
        b"event: message\n",
        event({"choices": [{"delta": {"role": "assistant", "content": None}}]}),
        event({"choices": [{"delta": {"content": "Grüße, "}}]}),
        b'data:{"choices":[{"delta":{"content":"Welt"}}]}\r\n',
        event({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
        event({"choices": [], "usage": {"completion_tokens": 3}}),
        b"data: [DONE]\n",
    ]
    for line in lines:
        assert not answer.done
        answer.feed(line)
    assert answer.done and answer.close() == "Grüße, Welt"


def test_a_cut_stream_is_an_error() -> None:
    answer = StreamedAnswer()
    answer.feed(event({"choices": [{"delta": {"content": "half"}}]}))
    with pytest.raises(AnswerError, match="without"):
        answer.close()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (event({"error": {"message": "queue full\nmore", "code": 503}}), "^queue full$"),
        (event({"error": "plain"}), "^plain$"),
        (b"data: {half\n", "not JSON"),
        (b"data: 7\n", "not a JSON object"),
    ],
)
def test_an_error_event_is_an_error(line: bytes, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        StreamedAnswer().feed(line)


def test_whole_answers() -> None:
    assert whole_answer(b'{"choices": [{"message": {"content": "yes"}}]}') == "yes"
    assert whole_answer(b'{"choices": [{"message": {"content": null}}]}') == ""
    for body in (b"", b"[]", b'{"choices": []}', b'{"error": {"message": "no"}}'):
        with pytest.raises(AnswerError):
            whole_answer(body)


def test_a_refusal_is_one_line_with_the_status() -> None:
    assert str(refusal(404, b'{"error": {"message": "no model x"}}')) == "HTTP 404: no model x"
    assert str(refusal(404, b'{"detail": "Not Found"}')) == "HTTP 404"
    assert str(refusal(502, b"<html>")) == "HTTP 502: not JSON: b'<html>'"


def test_model_ids() -> None:
    assert model_ids(b'{"data": [{"id": "a"}, {"id": "b"}]}') == ["a", "b"]
    for body in (b"{}", b'{"data": [7]}', b"oops"):
        with pytest.raises(AnswerError):
            model_ids(body)
