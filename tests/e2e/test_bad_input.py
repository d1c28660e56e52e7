"""Whatever is wrong, it is said in one line or one error object, and never with a traceback."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from stage import Gateway, chat_body, environment, joulegate, until

ENGINE = {"name": "e1", "kind": "openai", "url": "http://127.0.0.1:9"}


def refusal(reply: Any) -> tuple[int, str]:
    """Status and message of an OpenAI error object."""
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    return reply.status_code, error["message"]


def test_an_unknown_model(gateway: Gateway) -> None:
    until(lambda: len(gateway.get("/v1/models")["data"]) == 2)
    for reply in (gateway.chat(model="gpt-9"), gateway.chat(model="gpt-9", stream=True)):
        assert refusal(reply) == (404, "The model 'gpt-9' does not exist; served: stub-3b, stub-7b")
        assert (reply.json()["error"]["code"], reply.json()["error"]["param"]) == ("model_not_found", "model")


def test_a_model_that_is_no_name(gateway: Gateway) -> None:
    assert refusal(gateway.http.post("/v1/chat/completions", json={"model": 7}))[0] == 400


@pytest.mark.parametrize("body", [b"", b"{", b"model=stub-7b", b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_not_a_json_object(gateway: Gateway, body: bytes) -> None:
    status, message = refusal(gateway.http.post("/v1/chat/completions", content=body))
    assert status == 400 and "JSON" in message and "\n" not in message


@pytest.mark.scripted
def test_unusual_but_valid_json_is_the_engines_to_judge(gateway: Gateway) -> None:
    reply = gateway.chat(max_tokens=1, metadata=None, stream_options="no object", session_id=7)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/nothing", "/v1/chat/completions/", "/v1/models/none", "/v1/modelsstub-7b", "/nothing"]
)
def test_an_unknown_path(gateway: Gateway, path: str) -> None:
    assert refusal(gateway.http.get(path))[0] == 404


def test_a_wrong_method(gateway: Gateway) -> None:
    for method, path, allowed in (
        ("GET", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("PUT", "/healthz", "GET"),
    ):
        reply = gateway.http.request(method, path)
        assert refusal(reply)[0] == 405 and reply.headers["allow"] == allowed


def test_who_asks_for_the_head_alone(gateway: Gateway) -> None:
    """As some load balancers do to see whether we are well."""
    for path in ("/healthz", "/v1/models", "/energy/runs"):
        head, whole = gateway.http.head(path), gateway.http.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize("path", ["/energy/runs", "/energy/runs/x", "/energy/balance", "/energy/requests/x"])
def test_a_wrong_method_on_figures(gateway: Gateway, path: str) -> None:
    assert refusal(gateway.http.delete(path)) == (405, "this path does not take DELETE")


def test_figures_that_there_are_none_of(gateway: Gateway) -> None:
    assert refusal(gateway.http.get("/energy/nothing")) == (404, "no such path")


@pytest.mark.parametrize("path", ["/energy/runs?since=yesterday", "/energy/runs?limit=0", "/energy/runs/x?wait=99"])
def test_a_wrong_parameter(gateway: Gateway, path: str) -> None:
    assert refusal(gateway.http.get(path))[0] == 400


@pytest.mark.parametrize("path", ["/energy/runs/none", "/energy/requests/none"])
def test_figures_of_what_never_was(gateway: Gateway, path: str) -> None:
    assert refusal(gateway.http.get(path))[0] == 404


def test_a_body_that_is_too_large(make_gateway: Any, engine: Any) -> None:
    gateway = make_gateway({"engines": [{**ENGINE, "url": engine.url}], "limits": {"body_bytes": 2000}})
    expected = (413, "the body is larger than 2000 bytes")
    body = b'{"model": "stub-7b", "prompt": "' + b"x" * 3000
    assert refusal(gateway.http.post("/v1/completions", content=body)) == expected
    assert refusal(gateway.http.post("/v1/completions", content=iter([body[:100], body[100:]]))) == expected
    assert gateway.chat(max_tokens=1).status_code == 200


def test_no_engine_is_up(make_gateway: Any) -> None:
    gateway = make_gateway({"engines": [ENGINE]}, ready=False)
    reply = gateway.chat()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_engine")
    assert "retry-after" in reply.headers
    assert gateway.http.get("/readyz").status_code == 503
    assert gateway.http.get("/healthz").status_code == 200


# The command line ---------------------------------------------------------------------------------------------------


def complaint(folder: Path, config: Any, command: str = "check", env: Mapping[str, str] | None = None) -> list[str]:
    """What the command says about a configuration that it must refuse: a line a fault, without the file's name."""
    file = folder / "joulegate.yaml"
    file.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    arguments = [command, str(file)] if command == "check" else [command, "-c", str(file)]
    done = joulegate(*arguments, env={**environment(folder), **(env or {})})
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().removeprefix("joulegate: ").splitlines()
    return [line.removeprefix(f"{file}: ") for line in lines]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"engines": [{**ENGINE, "slts": 2}]}, "engine e1: unknown key 'slts'; did you mean 'slots'?"),
        ("just words", "a configuration is a mapping with at least `engines`"),
        (
            {"engines": [{**ENGINE, "kind": "vlm"}]},
            "engine e1: unknown kind 'vlm'; known kinds: embedded, llamacpp, openai, parrot, vllm",
        ),
        (
            {"engines": [ENGINE], "policy": {"name": "statik"}},
            "unknown policy 'statik', did you mean 'static'?; known: clocks, company, hierarchical, observe, paper,"
            " powercap, static",
        ),
    ],
    ids=["a typo", "no mapping", "an unknown kind", "an unknown policy"],
)
def test_a_configuration_with_a_fault(tmp_path: Path, config: Any, said: str) -> None:
    assert complaint(tmp_path, config)[0] == said


def test_every_fault_of_a_configuration_has_a_line(tmp_path: Path) -> None:
    said = complaint(tmp_path, {"engins": [ENGINE], "listen": {"port": 99_999}})
    assert sorted(line.partition(":")[0] for line in said) == [
        "engines is missing",
        "listen.port",
        "unknown key 'engins'; did you mean 'engines'?",
    ]


def test_a_typo_in_an_engine_is_said_once(tmp_path: Path) -> None:
    assert complaint(tmp_path, {"engines": [{**ENGINE, "ulr": "x"}]}) == [
        "engine e1: unknown key 'ulr'; did you mean 'url'?"
    ]
    assert complaint(tmp_path, {"engines": [ENGINE, ENGINE]}) == ["two engines are called e1"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"keys": [{"tenant": "a", "key": "k"}, {"tenant": "b", "key": "k"}]},
            "the key of tenant b is somebody else's",
        ),
        ({"keys": [{"tenant": "a", "key": " "}]}, "the key of tenant a is empty"),
        ({"listen": {"tls": {"certificate": "/none.crt", "key": "/none.key"}}}, "listen.tls.certificate: /none.crt"),
        ({"engines": [{**ENGINE, "url": "https://h", "tls": {"ca": "/none.pem"}}]}, "engine e1: tls.ca: /none.pem"),
        ({"engines": [{"name": "e", "kind": "embedded", "model_path": "/none.gguf"}]}, "the model file /none.gguf"),
        ({"hosts": {"h1": {"pue": 1.2}}}, "host h1: nothing of it can be read; give local: true, or zeusd"),
        ({"ledger": {"path": "/dev/null/ledger.sqlite"}}, "/dev/null is not a folder; set ledger.path"),
    ],
    ids=["a key twice", "an empty key", "no certificate", "no ca", "no model", "a blind host", "no folder"],
)
def test_check_refuses_what_serve_refuses(tmp_path: Path, config: Any, says: str) -> None:
    whole = {**served(tmp_path, ENGINE), **config}
    (checked,) = complaint(tmp_path, whole)
    (refused,) = complaint(tmp_path, whole, "serve")
    assert checked == refused and says in checked


def test_check_is_content_while_a_gateway_runs(make_gateway: Any, engine: Any) -> None:
    gateway = make_gateway({"engines": [{**ENGINE, "url": engine.url}]})
    done = joulegate("check", str(gateway.file), env=gateway.env)
    assert (done.returncode, done.stderr) == (0, "") and "is right: engines e1 (openai)" in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LISTEN", "foo", "JOULEGATE_LISTEN: is not valid JSON; for a single value"),
        ("ENGINES", "[{bad", "JOULEGATE_ENGINES: is not valid JSON"),
        ("LISTEN__PORT", "http", "JOULEGATE_LISTEN__PORT: must be a whole number (got 'http')"),
        ("LISTN", "{}", "JOULEGATE_LISTN: no such variable; did you mean JOULEGATE_LISTEN?"),
    ],
)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_wrong_variable(tmp_path: Path, command: str, name: str, value: str, says: str) -> None:
    config = served(tmp_path, ENGINE)
    (said,) = complaint(tmp_path, config, command, {f"JOULEGATE_{name}": value})
    assert said.startswith(says)


# Without a file -----------------------------------------------------------------------------------------------------


@contextmanager
def serving_without_a_file(folder: Path, url: str, *before: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`joulegate serve` with an engine that the environment names; both of its streams go where a terminal has them."""
    engines = json.dumps([{**ENGINE, "url": url}])
    env = {**environment(folder), "JOULEGATE_ENGINES": engines, "JOULEGATE_LISTEN__PORT": "0"}
    terminal = folder / "terminal.txt"
    command = [*before, sys.executable, "-m", "joulegate", "serve"]
    with terminal.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, text=True, preexec_fn=heed_hangups)
    try:
        until(lambda: " listens on " in terminal.read_text(), 60)
        yield process, terminal
    finally:
        process.kill()
        process.wait()


def heed_hangups() -> None:
    """Whoever runs the tests may have been started to outlive its terminal, and that is inherited."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_the_quality_of_joules_is_the_first_thing_said(tmp_path: Path, engine: Any) -> None:
    with serving_without_a_file(tmp_path, engine.url) as (_, terminal):
        until(lambda: "policy observe: " in terminal.read_text())
        said = terminal.read_text()
    assert said.startswith("local: ")
    assert said.index("local: ") < said.index(" listens on ") < said.index("policy observe: ")


def test_a_terminal_that_closes_ends_a_gateway_without_a_file(tmp_path: Path, engine: Any) -> None:
    with serving_without_a_file(tmp_path, engine.url) as (process, terminal):
        process.send_signal(signal.SIGHUP)
        assert process.wait(40) == 0, terminal.read_text()
        assert "Traceback" not in terminal.read_text()


def test_one_that_was_started_to_outlive_its_terminal_does(tmp_path: Path, engine: Any) -> None:
    ignoring = ("/bin/sh", "-c", "trap '' HUP; exec \"$@\"", "sh")  # as nohup does
    with serving_without_a_file(tmp_path, engine.url, *ignoring) as (process, terminal):
        process.send_signal(signal.SIGHUP)
        url = terminal.read_text().partition(" listens on ")[2].partition("/v1 ")[0]
        for _ in range(3):  # one that ends is done before its loop comes to a third request
            assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/readyz").json()["draining"] is False


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for arguments in (["check", "none.yaml"], ["serve", "-c", "none.yaml"], ["energy", "--ledger", "none.sqlite"]):
        done = joulegate(*arguments, env=environment(tmp_path))
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 1 and "none." in line and "Traceback" not in line


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (said,) = complaint(tmp_path, {"engines": [ENGINE], "listen": {"port": port}}, "serve")
    assert said == f"port {port} on 127.0.0.1 is in use; choose another as listen.port"


def test_a_missing_model_file(tmp_path: Path) -> None:
    engine = {"name": "e1", "kind": "embedded", "model_path": str(tmp_path / "none.gguf")}
    (said,) = complaint(tmp_path, served(tmp_path, engine), "serve")
    assert said == f"the model file {tmp_path}/none.gguf cannot be read: No such file or directory"


def test_a_model_with_the_wrong_hash(tmp_path: Path) -> None:
    model = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model.write_bytes(b"GGUF and something else")
    engine = {"name": "e1", "kind": "embedded"}
    (said,) = complaint(tmp_path, served(tmp_path, engine), "serve", {"JOULEGATE_MODEL_DIR": str(tmp_path)})
    assert said.startswith(f"{model} has sha256 ") and said.endswith("; delete it and try again")


def test_a_ledger_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("this is no database, and long enough to be seen as none " * 20)
    for command in ("check", "serve"):
        (said,) = complaint(tmp_path, served(tmp_path, ENGINE), command)
        assert said.startswith(f"{tmp_path}/ledger.sqlite: the ledger cannot be used: file is not a database; move it")


def served(folder: Path, engine: Mapping[str, Any]) -> dict[str, Any]:
    return {"engines": [engine], "listen": {"port": 0}, "ledger": {"path": str(folder / "ledger.sqlite")}}


def test_bad_requests_end_up_in_no_ones_way(gateway: Gateway) -> None:
    """After all of the above the same gateway still serves."""
    assert gateway.http.post("/v1/chat/completions", json=chat_body(max_tokens=1)).status_code == 200
    until(gateway.idle)
