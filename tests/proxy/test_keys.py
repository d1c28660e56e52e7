from pathlib import Path

import orjson
import pytest

from proxy.config import ConfigError, Key
from proxy.keys import Caller, Keys
from proxy.refusal import Refusal


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    file = tmp_path / "key"
    file.write_text("from-a-file\n")
    return Keys([Key(tenant="acme", key="sk-acme"), Key(tenant="lab", key_file=file, report=True)])


def test_without_keys_everybody_is_the_default_tenant() -> None:
    keys = Keys([])
    assert not keys
    assert keys.caller({b"authorization": b"Bearer whatever"}) == Caller("default")


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer from-a-file"},
        {b"authorization": b"bearer  from-a-file "},
        {b"x-api-key": b"from-a-file"},
        {b"authorization": b"Basic abc", b"x-api-key": b"from-a-file"},
    ],
)
def test_a_key_names_its_tenant(keys: Keys, headers: dict[bytes, bytes]) -> None:
    assert keys and keys.caller(headers) == Caller("lab", report=True)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "No API key"),
        ({b"authorization": b"Bearer "}, "No API key"),
        ({b"authorization": b"Bearer sk-acm"}, "Incorrect"),
        ({b"authorization": b"sk-acme"}, "No API key"),
        ({b"x-api-key": b"\xff\x00"}, "Incorrect"),
    ],
)
def test_anything_else_is_refused_without_repeating_it(keys: Keys, headers: dict[bytes, bytes], says: str) -> None:
    with pytest.raises(Refusal, match=says) as refusal:
        keys.caller(headers)
    error = orjson.loads(refusal.value.body())["error"]
    assert refusal.value.status == 401
    assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
    assert "acm" not in error["message"]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_key_opens_no_door(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    for key in (Key(tenant="acme", key=text), Key(tenant="acme", key_file=file)):
        with pytest.raises(ConfigError, match="acme"):
            Keys([key])


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (404, "invalid_request_error"), (429, "rate_limit_error")]
)
def test_a_refusal_is_an_openai_error_object(status: int, kind: str) -> None:
    refusal = Refusal(status, "no", "because", param="model", retry_after_s=3)
    assert orjson.loads(refusal.body()) == {
        "error": {"message": "no", "type": kind, "param": "model", "code": "because"}
    }
    assert refusal.headers() == [(b"retry-after", b"3")]
    assert Refusal(503, "no", "because").headers() == []
