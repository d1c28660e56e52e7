import json

import pytest

from loadgen.answer import AnswerError, StreamedAnswer, Usage, model_ids, refusal, whole_answer


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
        event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}),
        b"data: [DONE]\n",
    ]
    for line in lines:
        assert not answer.done
        answer.feed(line)
    assert answer.done and answer.close() == "Grüße, Welt"
    assert answer.pieces == ["Grüße, ", "Welt"] and answer.usage == Usage(7, None, 3)


def test_where_a_stream_is_cut_into_packets_does_not_matter() -> None:
    whole = b"".join([event({"choices": [{"text": "a b"}]}), event({"choices": [{"text": " c"}]}), b"data: [DONE]\n\n"])
    for size in (1, 7, 40):
        answer = StreamedAnswer()
        for start in range(0, len(whole), size):
            answer.feed(whole[start : start + size])
        assert answer.close() == "a b c" and len(answer.pieces) == 2


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
    assert whole_answer(b'{"choices": [{"message": {"content": "yes"}}]}') == ("yes", Usage())
    assert whole_answer(b'{"choices": [{"message": {"content": null}}]}') == ("", Usage())
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
    counted = json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode()
    assert whole_answer(counted) == ("a", Usage(9, 4, 1))
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
