from pathlib import Path
from typing import Any

import pytest

from proxy.config import Config, ConfigError, Key, load, parse

ENGINE = {"name": "e1", "kind": "openai", "url": "http://127.0.0.1:9000"}
MINIMAL = """
listen: {host: 127.0.0.1, port: 8080}
engines: [{name: e1, kind: openai, url: "http://127.0.0.1:9000"}]
"""


def faults(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(data)
    return str(error.value).splitlines()


def test_the_minimal_file_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "joulegate.yaml"
    file.write_text(MINIMAL)
    config = load(file)
    assert (config.listen.port, config.engines[0].url) == (8080, "http://127.0.0.1:9000")
    assert config.policy.name == "observe" and config.keys == ()
    assert {name: host.local for name, host in config.known_hosts().items()} == {"local": True}
    assert parse({"engines": [ENGINE]}).listen.host == "127.0.0.1"


def test_the_example_that_we_ship_is_valid() -> None:
    assert load(Path(__file__).parents[2] / "joulegate.example.yaml").engines


def test_environment_overlays_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOULEGATE_LISTEN__PORT", "9999")
    monkeypatch.setenv("JOULEGATE_LIMITS__IN_FLIGHT", "")
    config = parse({"engines": [ENGINE], "listen": {"host": "127.0.0.2", "port": 1}, "limits": {"in_flight": 4}})
    assert (config.listen.host, config.listen.port, config.limits.in_flight) == ("127.0.0.2", 9999, 4)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"engins": []}, "unknown key 'engins'; did you mean 'engines'?"),
        ({"listen": {"prot": 1}}, "unknown key 'listen.prot'; did you mean 'port'?"),
        ({"engines": [{**ENGINE, "modles": ["m"]}]}, "unknown key 'engines.0.modles'; did you mean 'models'?"),
        ({"workflows": {"search": {"slo": {"ttft_p59": 1}}}}, "did you mean 'ttft_p95'?"),
        ({"hosts": {"h1": {"zzz": 1}}}, "unknown key 'hosts.h1.zzz'; known: cpu_watts, local, pue, zeusd"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(data: dict[str, Any], says: str) -> None:
    assert any(says in line for line in faults({"engines": [ENGINE], **data}))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "engines is missing"),
        ({"engines": []}, "engines"),
        ({"engines": [{"name": "e1"}]}, "engines.0.kind is missing"),
        ({"engines": [ENGINE, ENGINE]}, "two engines are called e1"),
        ({"engines": [{**ENGINE, "url": "gpu1:8000"}]}, "url must begin with http:// or https://, not 'gpu1:8000'"),
        ({"engines": [{**ENGINE, "model_path": "/m.gguf"}]}, "model_path is for kind embedded alone"),
        ({"engines": [{**ENGINE, "devices": ["gpu:0"]}]}, "device 'gpu:0' is not of the form host/gpu:0"),
        ({"engines": [{**ENGINE, "devices": ["h9/gpu:0"]}]}, "unknown host; known: local"),
        ({"engines": [{**ENGINE, "name": "e 1"}]}, "(got 'e 1')"),
        ({"hosts": {"h1": {"local": True, "zeusd": "h1:4938"}}}, "not both"),
        ({"listen": {"port": 70000}}, "(got 70000)"),
        ({"energy": {"interval": 0}}, "energy.interval"),
        ({"energy": {"settle": float("nan")}}, "energy.settle"),
        ({"keys": [{"tenant": "acme"}]}, "the key of tenant acme: give either key, key_file or key_hash"),
        ({"keys": [{"tenant": "acme", "key": "a", "key_file": "b"}]}, "give either key, key_file or key_hash"),
        ({"admin": {}}, "the admin key: give either key, key_file or key_hash"),
        ({"listen": {"host": "0.0.0.0"}}, "listen.host '0.0.0.0' can be reached from other machines"),
        ({"listen": {"host": ""}}, "there are no keys"),
        ({"listen": {"host": "gateway.example"}}, "or say listen.open: true"),
        ({"listen": {"tls": {"certificate": "a"}}}, "listen.tls.key is missing"),
        ({"engines": [{**ENGINE, "tls": {}}]}, "engine e1: tls needs an https url"),
        ({"engines": [{**ENGINE, "tls": {"key": "k"}}]}, "a key is of no use without its certificate"),
        ({"engines": [{**ENGINE, "tls": {"ca": "c", "verify": False}}]}, "leave one of them out"),
        ({1: 2}, "keywords must be strings"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(data: dict[Any, Any], says: str) -> None:
    whole = data if "engines" in data or not data else {"engines": [ENGINE], **data}
    assert any(says in line and line.startswith("configuration: ") for line in faults(whole))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_the_loopback_needs_no_keys(host: str) -> None:
    assert parse({"engines": [ENGINE], "listen": {"host": host}}).listen.is_loopback()


@pytest.mark.parametrize("enough", [{"keys": [{"tenant": "a", "key": "k"}]}, {"listen": {"host": "::", "open": True}}])
def test_beyond_the_loopback_it_takes_keys_or_a_word(enough: dict[str, Any]) -> None:
    assert not parse({"engines": [ENGINE], "listen": {"host": "::"}, **enough}).listen.is_loopback()


def test_every_fault_is_said_at_once() -> None:
    assert len(faults({"engines": [ENGINE], "listen": {"port": "x"}, "polcy": {}, "limits": {"queue": -1}})) == 3


@pytest.mark.parametrize(
    "data",
    [
        {"keys": ["sk-secret"]},
        {"keys": "sk-secret"},
        {"keys": [{"tenant": "acme", "key": ["sk-secret"]}]},
        {"keys": [{"tenant": "acme", "key_hash": "sk-secret"}]},
        {"admin": "sk-secret"},
        {"admin": {"key": ["sk-secret"]}},
        {"engines": [{**ENGINE, "api_key": {"sk-secret": 1}}]},
    ],
)
def test_no_message_repeats_a_secret(data: dict[str, Any]) -> None:
    assert "sk-secret" not in "\n".join(faults({"engines": [ENGINE], **data}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"engines: [", "not valid YAML in line"),
        (b"- a\n- b\n", "a configuration is a mapping"),
        (b"", "a configuration is a mapping"),
        (b"\xff\xfe\x00binary", "not valid YAML"),
        (b"engines: 2024-99-99", "not valid YAML"),
        (b"engines: \x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_a_line(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "joulegate.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as error:
        load(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load(tmp_path / "nowhere.yaml")


def test_secrets_come_from_files_without_their_newline(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("sk-1\n")
    config = parse({"engines": [{**ENGINE, "api_key_file": str(file)}], "keys": [{"tenant": "a", "key_file": file}]})
    assert config.engines[0].secret() == "sk-1"
    assert config.keys[0].digest() == Key(tenant="a", key="sk-1").digest() != Key(tenant="a", key="sk-1\n2").digest()
    assert parse({"engines": [ENGINE]}).engines[0].secret() is None


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_secret_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    config = parse({"engines": [{**ENGINE, "api_key_file": str(file)}]})
    with pytest.raises(ConfigError, match=r"secret file .* cannot be read"):
        config.engines[0].secret()


def test_a_policy_keeps_its_own_options() -> None:
    config: Config = parse({"engines": [ENGINE], "policy": {"name": "static", "in_flight": {"search": 2}}})
    assert config.policy.options() == {"in_flight": {"search": 2}}
