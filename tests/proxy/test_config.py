from pathlib import Path
from typing import Any

import pytest

from proxy.budget import Period, Terms
from proxy.config import Config, ConfigError, Key, Relative, load, parse
from proxy.keys import Keys

ENGINE = {"name": "e1", "kind": "openai", "url": "http://127.0.0.1:9000"}
PARROT = {"name": "p", "kind": "parrot", "url": "http://127.0.0.1:9000"}
EGRESS = {"engine": "e1", "key": "0123456789abcdef"}
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
        ({"engines": [{**ENGINE, "modles": ["m"]}]}, "engine e1: unknown key 'modles'; did you mean 'models'?"),
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
        ({"engines": [{"name": "e1"}]}, "engine e1: kind is missing"),
        ({"engines": [ENGINE, ENGINE]}, "two engines are called e1"),
        ({"engines": [{**ENGINE, "url": "gpu1:8000"}]}, "url must begin with http:// or https://, not 'gpu1:8000'"),
        ({"limits": {"paths": ["/rerank", "score"]}}, "limits: paths must begin with /, as in '/rerank', not 'score'"),
        ({"engines": [{**ENGINE, "model_path": "/m.gguf"}]}, "model_path is for kind embedded alone"),
        ({"engines": [{**ENGINE, "egress": EGRESS}]}, "egress is for kind parrot alone"),
        ({"engines": [{**PARROT, "egress": EGRESS}]}, "egress.engine 'e1' is no other engine; known: none"),
        ({"engines": [ENGINE, PARROT, {**PARROT, "name": "q", "egress": {**EGRESS, "engine": "p"}}]}, "known: e1"),
        ({"engines": [ENGINE, {**PARROT, "egress": {"engine": "e1"}}]}, "an egress needs a key"),
        ({"engines": [ENGINE, {**PARROT, "egress": {**EGRESS, "key_file": "k"}}]}, "an egress needs a key"),
        ({"engines": [ENGINE, {**PARROT, "egress": EGRESS, "devices": ["local/gpu:0"]}]}, "those of engine e1"),
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
        ({1: 2}, "unknown key 1"),
        ({"_env_file": "/etc/passwd"}, "unknown key '_env_file'"),
        ({"engines": []}, "engines: must not be empty"),
        ({"engines": "e1"}, "engines: must be a list, as in [a, b] (got 'e1')"),
        ({"engines": ["e1"]}, "engines.0: must be a mapping, as in {key: value} (got 'e1')"),
        ({"engines": [{**ENGINE, "tls": {"caa": "c"}}]}, "engine e1: unknown key 'tls.caa'; did you mean 'ca'?"),
        ({"listen": 8080}, "listen: must be a mapping, as in {key: value} (got 8080)"),
        ({"hosts": {"h1": None}}, "hosts.h1: must be a mapping, as in {key: value} (it is empty)"),
        ({"hosts": {"h 1": {}}}, "hosts: the name 'h 1' must be 1 to 64 letters, digits"),
        ({"limits": {"queue": 1.5}}, "limits.queue: must be a whole number (got 1.5)"),
        ({"limits": {"json_depth": 500}}, "limits.json_depth: must be at most 200 (got 500)"),
        ({"routing": {"affinity": "run"}}, "routing.affinity: must be 'none', 'session' or 'prefix' (got 'run')"),
        ({"keys": [{"tenant": "acme", "key": "k", "budget": {"warn": 0.5}}]}, "a budget needs a limit: give hour, day"),
        ({"keys": [{"tenant": "acme", "key": "k", "budget": {"hour": 0}}]}, "budget.hour: must be at least 1e-06"),
        ({"keys": [{"tenant": "acme", "key": "k", "budget": {"run": 1}}]}, "unknown key 'budget.run'; "),
        ({"workflows": {"w": {"budget": {}}}}, "workflows.w.budget.run is missing"),
        ({"workflows": {"w": {"budget": {"run": float("inf")}}}}, "workflows.w.budget.run: must be at most 1e+12"),
        ({"workflows": {"w": {"budget": {"run": 1, "warn": 2}}}}, "workflows.w.budget.warn: must be at most 1"),
        ({"keys": [{"tenant": "acme", "key_hash": "x"}]}, "the key of tenant acme: key_hash: must be sha256: and 64"),
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


def test_a_typo_in_the_only_engine_is_one_fault() -> None:
    assert faults({"engines": [{**ENGINE, "ulr": "http://127.0.0.1:1"}]}) == [
        "configuration: engine e1: unknown key 'ulr'; did you mean 'url'?"
    ]


def test_a_fault_of_the_whole_has_no_empty_place() -> None:
    assert faults({"engines": [ENGINE, ENGINE]}) == ["configuration: two engines are called e1"]
    assert faults({"engines": [{**ENGINE, "url": "x"}]}) == [
        "configuration: engine e1: url must begin with http:// or https://, not 'x'"
    ]


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"LISTEN": "foo"},
            "JOULEGATE_LISTEN: is not valid JSON; for a single value of it use JOULEGATE_LISTEN__ and its key",
        ),
        ({"ENGINES": "[{bad"}, "JOULEGATE_ENGINES: is not valid JSON"),
        ({"KEYS": '[{"key": "sk-secret"'}, "JOULEGATE_KEYS: is not valid JSON"),
        ({"ADMIN": "sk-secret"}, "JOULEGATE_ADMIN: must be a mapping, as in {key: value}"),
        ({"LISTEN__TLS": "x"}, "JOULEGATE_LISTEN__TLS: must be a mapping, as in {key: value} (got 'x')"),
        ({"LISTEN__PORT": "http"}, "JOULEGATE_LISTEN__PORT: must be a whole number (got 'http')"),
        ({"LISTEN__PROT": "1"}, "JOULEGATE_LISTEN__PROT: unknown key 'prot'; did you mean 'port'?"),
        ({"LISTEN": '{"prot": 1}'}, "JOULEGATE_LISTEN: unknown key 'prot'; did you mean 'port'?"),
        (
            {"ENGINES": '[{"name": "x", "kind": "openai", "ulr": "http://h"}]'},
            "JOULEGATE_ENGINES: engine x: unknown key 'ulr'; did you mean 'url'?",
        ),
        ({"LISTN": "{}"}, "JOULEGATE_LISTN: no such variable; did you mean JOULEGATE_LISTEN?"),
        ({"LIMIT__QUEUE": "9"}, "JOULEGATE_LIMIT__QUEUE: no such variable; did you mean JOULEGATE_LIMITS__QUEUE?"),
        ({"LISTEN_PORT": "9"}, "JOULEGATE_LISTEN_PORT: no such variable; did you mean JOULEGATE_LISTEN__PORT?"),
    ],
)
def test_a_fault_of_the_environment_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"JOULEGATE_{name}", value)
    assert faults({"engines": [ENGINE]}) == [says]


def test_the_file_is_blamed_for_what_stands_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOULEGATE_LISTEN", '{"port": 9}')
    assert faults({"engines": [ENGINE], "listen": {"prot": 1}}) == [
        "configuration: unknown key 'listen.prot'; did you mean 'port'?"
    ]


def test_variables_of_others_do_not_disturb(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    theirs = ("URL", "KEY", "MODEL_DIR", "SOAK_ROUNDS", "FUZZ", "SERVICE_HOST", "PORT_8080_TCP", "PORT_8080_TCP_ADDR")
    for name in theirs:
        monkeypatch.setenv(f"JOULEGATE_{name}", "tcp://10.0.0.1")
    parse({"engines": [ENGINE]})
    assert not caplog.records
    monkeypatch.setenv("JOULEGATE_WHATEVER", "1")
    parse({"engines": [ENGINE]})
    (warning,) = caplog.records
    assert warning.getMessage().startswith("not a variable of ours, and ignored: JOULEGATE_WHATEVER; known: ")


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


def test_budgets_are_read_as_microjoules() -> None:
    key = {"tenant": "acme", "key": "k", "budget": {"hour": 1.5, "month": 2e6, "cap_tokens": 9, "stop": True}}
    workflows = {"agent": {"budget": {"run": 20, "warn": 0.5}}, "free": {}}
    config = parse({"engines": [ENGINE], "keys": [key], "workflows": workflows})
    budget = config.keys[0].budget
    assert budget and budget.terms() == Terms({Period.HOUR: 1_500_000, Period.MONTH: 2 * 10**12}, 0.8, 9, True)
    assert config.run_budgets() == {"agent": Terms({Period.RUN: 20_000_000}, 0.5)}
    ((tenant, terms),) = Keys(config.keys).budgets
    assert (tenant, terms) == ("acme", budget.terms())


def test_a_policy_keeps_its_own_options() -> None:
    config: Config = parse({"engines": [ENGINE], "policy": {"name": "static", "in_flight": {"search": 2}}})
    assert config.policy.options() == {"in_flight": {"search": 2}}


@pytest.mark.parametrize(
    ("given", "is_taken_as"),
    [(2, 2.0), ("0.5", 0.5), ("5x isolated", Relative(5.0)), ("2.5 x  isolated", Relative(2.5))],
)
def test_an_objective_is_seconds_or_a_multiple_of_what_it_takes_alone(given: Any, is_taken_as: Any) -> None:
    config = parse({"engines": [ENGINE], "workflows": {"search": {"slo": {"run_p95": given}}}})
    assert config.workflows["search"].slo.run_p95 == is_taken_as


@pytest.mark.parametrize("given", [0, -1, True, "soon", "x isolated", "5 times", ".nan", "inf", [2]])
def test_an_objective_that_is_neither_is_refused(given: Any) -> None:
    (line,) = faults({"engines": [ENGINE], "workflows": {"search": {"slo": {"ttft_p95": given}}}})
    assert 'workflows.search.slo.ttft_p95: must be seconds, more than 0, or a multiple as in "5x isolated"' in line


def test_the_gateways_own_keys_of_a_policy_are_not_the_policys() -> None:
    policy = {"name": "static", "dry_run": True, "allow_clocks": True, "dwell": 30, "in_flight": {"search": 2}}
    config = parse({"engines": [ENGINE], "policy": policy})
    assert config.policy.options() == {"in_flight": {"search": 2}}
    assert (config.policy.dry_run, config.policy.allow_clocks, config.policy.dwell) == (True, True, 30.0)
