"""Another configuration for a gateway that runs: taken whole or not at all, and no request notices."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stage import Engine, Gateway, chat_body, residual_uj, until

GPU = "local/gpu:0"


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Engine]]:
    engines = [Engine("stub-7b", step_ms=10) for _ in range(2)]
    yield engines
    for engine in engines:
        engine.close()


def config(*engines: tuple[str, Engine], devices: list[str] | None = None, **more: Any) -> dict[str, Any]:
    counted = {} if devices is None else {"devices": devices}
    return {
        "engines": [
            {"name": name, "kind": "vllm", "url": engine.url, "models": ["stub-7b"], **counted}
            for name, engine in engines
        ],
        **more,
    }


def reload(gateway: Gateway, to: dict[str, Any]) -> str:
    gateway.configure(to)
    reply = gateway.http.post("/admin/reload")
    assert reply.status_code == 200, reply.text
    return reply.json()["changes"]


def names(gateway: Gateway) -> list[str]:
    return [engine["name"] for engine in gateway.get("/energy/engines")["engines"] if engine["up"] is not None]


def test_engines_come_and_go_and_requests_end_where_they_began(
    make_gateway: Callable[..., Gateway], engines: list[Engine]
) -> None:
    gateway = make_gateway(config(("a", engines[0])))
    with gateway.http.stream(
        "POST", "/v1/chat/completions", json=chat_body(stream=True, max_tokens=300), headers={"x-workflow-id": "stays"}
    ) as stream:
        parts = stream.iter_text()
        text = next(parts)
        assert reload(gateway, config(("b", engines[1]))) == "engine b added; engine a removed"
        assert names(gateway) == ["b"]
        reply = gateway.chat({"x-workflow-id": "moves"}, max_tokens=1)
        assert reply.status_code == 200 and len(engines[1].log(x_workflow_id="moves")) == 1
        text += "".join(parts)
    assert text.count('"content":"joule "') == 300 and "error" not in text
    (request,) = gateway.run("stays")["requests"]
    assert (request["engine"], request["outcome"], request["output_tokens"]) == ("a", "ok", 300)
    until(lambda: "engine a has left" in gateway.log())
    assert gateway.request(gateway.chat(max_tokens=1))["engine"] == "b"


def test_an_engine_that_moves_keeps_its_name(make_gateway: Callable[..., Gateway], engines: list[Engine]) -> None:
    gateway = make_gateway(config(("a", engines[0])))
    gateway.chat(max_tokens=1)
    assert reload(gateway, config(("a", engines[1]))) == "engine a changed"
    reply = gateway.chat({"x-workflow-id": "elsewhere"}, max_tokens=3)
    figures = gateway.request(reply)
    assert (figures["engine"], figures["output_tokens"]) == ("a", 3)
    assert len(engines[1].log(x_workflow_id="elsewhere")) == 1
    until(lambda: "engine a has left" in gateway.log())
    assert gateway.chat(max_tokens=1).status_code == 200


def test_sighup_takes_keys_limits_policy_workflows_and_routing(
    make_gateway: Callable[..., Gateway], engines: list[Engine]
) -> None:
    gateway = make_gateway(config(("a", engines[0])))
    assert gateway.chat(max_tokens=9, stub={"usage": True}).status_code == 200
    gateway.configure(
        config(
            ("a", engines[0]),
            keys=[{"tenant": "t", "key": "secret-of-t"}],
            limits={"body_bytes": 2048},
            policy={"name": "static", "max_tokens": {"short": 2}},
            workflows={"short": {"quiet": 1}},
            routing={"affinity": "session"},
        )
    )
    gateway.process.send_signal(signal.SIGHUP)
    until(lambda: "configuration read again" in gateway.log())
    assert gateway.chat(max_tokens=1).status_code == 401
    key = {"authorization": "Bearer secret-of-t"}
    assert gateway.chat(key, content="x" * 4000).status_code == 413

    def cut_short() -> bool:
        reply = gateway.chat({**key, "x-workflow-name": "short"}, max_tokens=9)
        return reply.json()["usage"]["completion_tokens"] == 2

    until(cut_short)
    for part in ("workflows", "policy", "keys", "limits", "routing"):
        assert f"{part} changed" in gateway.log()


def test_a_reload_forgives_no_key_what_it_has_used(make_gateway: Callable[..., Gateway], engines: list[Engine]) -> None:
    admin = {"authorization": "Bearer secret-of-admin"}
    key = {"authorization": "Bearer secret-of-t"}
    once = {"tenant": "t", "key": "secret-of-t", "requests_per_minute": 1}
    kept: dict[str, Any] = {"keys": [once], "admin": {"key": "secret-of-admin"}}
    gateway = make_gateway(config(("a", engines[0]), **kept))
    assert gateway.chat(key, max_tokens=1).status_code == 200
    gateway.configure(config(("a", engines[0]), **kept, limits={"queue": 7}))
    assert gateway.http.post("/admin/reload", headers=admin).json() == {"changes": "limits changed"}
    assert gateway.chat(key, max_tokens=1).status_code == 429


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"engins": []}, "unknown key 'engins'"),
        ({"engines": []}, "engines"),
        ({"policy": {"name": "nobody"}}, "unknown policy 'nobody'"),
        ({"keys": [{"tenant": "t", "key_file": "/nowhere"}]}, "/nowhere"),
        ({"listen": {"host": "127.0.0.1", "port": 1}}, "listen: cannot be changed while the gateway runs"),
        ({"energy": {"interval": 0.5}}, "energy: cannot be changed while the gateway runs"),
        ({"hosts": {"h": {"local": True}}}, "hosts: cannot be changed while the gateway runs"),
    ],
    ids=str,
)
def test_a_wrong_file_changes_nothing_and_says_why(
    unmoved: Gateway, engines: list[Engine], change: dict[str, Any], says: str
) -> None:
    unmoved.configure(config(("b", engines[1]), limits={"body_bytes": 1024}) | change)
    reply = unmoved.http.post("/admin/reload")
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_configuration")
    assert says in reply.json()["error"]["message"]
    assert names(unmoved) == ["a"] and unmoved.chat(max_tokens=1, content="x" * 4000).status_code == 200


def test_each_fault_is_a_line_of_the_log(unmoved: Gateway, engines: list[Engine]) -> None:
    unmoved.configure(config(("a", engines[0]), listen={"port": 1}, energy={"interval": 0.5}))
    unmoved.process.send_signal(signal.SIGHUP)
    until(lambda: unmoved.log().count("configuration not taken:") >= 2)
    unmoved.file.write_text("engines: [")
    unmoved.process.send_signal(signal.SIGHUP)
    until(lambda: "not valid YAML" in unmoved.log())
    assert unmoved.chat(max_tokens=1).status_code == 200


@pytest.fixture(scope="module")
def unmoved(engines: list[Engine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    from stage import running

    with running(Gateway(config(("a", engines[0])), tmp_path_factory.mktemp("unmoved"))) as gateway:
        yield gateway


def test_nothing_is_dropped_and_no_joule_lost_while_it_is_reloaded_again_and_again(
    make_gateway: Callable[..., Gateway], engines: list[Engine], nvml: Any
) -> None:
    nvml.set_power_w(0, 300)
    gateway = make_gateway(config(("a", engines[0]), devices=[GPU]), env=nvml.env)
    over, codes = threading.Event(), list[int]()

    def ask() -> None:
        while not over.is_set():
            codes.append(gateway.chat(max_tokens=2, stream=True).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(6):
            reload(gateway, config((f"r{number}", engines[number % 2]), devices=[GPU]))
        reload(gateway, config(("a", engines[0]), ("b", engines[1]), devices=[GPU]))
        until(lambda: len(codes) > 40)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(codes) == {200}
    until(lambda: gateway.log().count("has left") == 7)
    until(gateway.idle)
    books = gateway.balance()[GPU]
    assert residual_uj(books) == 0 and books["gap_j"] == 0 and books["workflow_j"] > 0


def test_only_this_machine_may_ask_for_it(make_gateway: Callable[..., Gateway], engines: list[Engine]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; it only chooses the address that we would send from
        except OSError:
            pytest.skip("this machine has no address but its loopback")
        address = probe.getsockname()[0]
    gateway = make_gateway(config(("a", engines[0]), listen={"open": True, "host": "0.0.0.0", "port": 0}))
    outside = f"http://{address}:{gateway.url.rpartition(':')[2]}"
    reply = gateway.http.post(f"{outside}/admin/reload")
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "not_allowed")
    assert gateway.http.get(f"{outside}/healthz").status_code == 200
