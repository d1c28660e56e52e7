"""Keys, the admin's key, and who sees what, as a client on a real socket meets them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import RateLimitError
from stage import Engine, Gateway, chat_body, environment, joulegate, running, until

ADMIN = {"authorization": "Bearer sk-admin"}
ACME = {"authorization": "Bearer sk-acme"}
LAB = {"authorization": "Bearer sk-lab"}


def hashed(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


@pytest.fixture(scope="module")
def guarded(engine: Engine, second_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with two tenants and an admin, before one engine with a key of its own and one without."""
    config = {
        "engines": [
            {"name": "e1", "kind": "openai", "url": engine.url, "api_key": "sk-of-the-engine"},
            {"name": "e2", "kind": "openai", "url": second_engine.url},
        ],
        "keys": [
            {"tenant": "acme", "key": "sk-acme"},
            {"tenant": "lab", "key_hash": hashed("sk-lab"), "models": ["stub-3b"]},
        ],
        "admin": {"key_hash": hashed("sk-admin")},
    }
    with running(Gateway(config, tmp_path_factory.mktemp("guarded"))) as gateway:
        until(lambda: len(gateway.get("/v1/models", "sk-acme")["data"]) == 2)
        yield gateway


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


# Keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer sk-acm"}, {"x-api-key": hashed("sk-lab")}])
def test_nothing_is_served_without_a_key(guarded: Gateway, headers: dict[str, str]) -> None:
    refused = (401, "invalid_api_key")
    assert code(guarded.chat(headers)) == refused
    for path in ("/v1/models", "/energy/workflows", "/energy/runs", "/metrics", "/docs", "/openapi.json", "/admin/x"):
        assert code(guarded.http.get(path, headers=headers)) == refused
    assert code(guarded.http.post("/energy/runs/r/close", headers=headers)) == refused
    for path in ("/v1/models", "/energy/runs", "/metrics"):
        assert guarded.http.get(path, headers=headers).headers["www-authenticate"] == "Bearer"


def test_probes_need_no_key_and_learn_nothing(guarded: Gateway) -> None:
    assert guarded.get("/healthz") == {"status": "ok"}
    assert guarded.get("/readyz") == {"ready": True, "draining": False}
    assert guarded.get("/readyz", "sk-acme") == {"ready": True, "draining": False}
    assert guarded.get("/readyz", "sk-admin")["engines"] == {"e1": True, "e2": True}


def test_the_clients_key_never_goes_upstream(guarded: Gateway, engine: Engine, second_engine: Engine) -> None:
    for model, to in (("stub-7b", engine), ("stub-3b", second_engine)):
        for number, key in enumerate([ACME, {"x-api-key": "sk-acme"}, {**ACME, "x-api-key": "sk-acme"}]):
            mark = f"upstream-{model}-{number}"
            assert guarded.chat({**key, "x-request-id": mark}, model=model, max_tokens=1).status_code == 200
            (served,) = to.log(x_request_id=mark)
            assert "sk-acme" not in json.dumps(served)
            assert "x-api-key" not in served["headers"]
            own = "Bearer sk-of-the-engine" if to is engine else None
            assert served["headers"].get("authorization") == own


def test_a_key_of_few_models(guarded: Gateway, second_engine: Engine) -> None:
    assert [entry["id"] for entry in guarded.get("/v1/models", "sk-lab")["data"]] == ["stub-3b"]
    assert guarded.get("/v1/models/stub-3b", "sk-lab")["id"] == "stub-3b"
    assert code(guarded.http.get("/v1/models/stub-7b", headers=LAB)) == (404, "model_not_found")
    assert guarded.chat(LAB, model="stub-3b", max_tokens=1).status_code == 200
    for model in ("stub-7b", "stub", None, ""):
        for path in ("/v1/chat/completions", "/v1/embeddings", "/tokenize"):
            reply = guarded.http.post(path, json=chat_body(model=model), headers=LAB)
            assert code(reply) == (403, "model_not_allowed") and "stub-7b" not in reply.text.replace("'stub-7b'", "")


@pytest.mark.scripted
def test_a_model_named_twice_gets_round_nothing(guarded: Gateway, second_engine: Engine) -> None:
    twice = b'{"model": "stub-7b", "prompt": "x", "max_tokens": 1, "model": "stub-3b"}'
    reply = guarded.http.post("/v1/completions", content=twice, headers={**LAB, "x-request-id": "twice"})
    assert reply.status_code == 200
    (served,) = second_engine.log(x_request_id="twice")
    assert int(served["headers"]["content-length"]) < len(twice), "what goes upstream names one model alone"


def test_a_new_key_and_its_hash_fit_together(tmp_path: Path, engine: Engine) -> None:
    made = [joulegate("key", env=environment(tmp_path)).stdout for _ in range(2)]
    key, key_hash = (line.split()[1] for line in made[0].splitlines())
    assert key_hash == hashed(key) and len(key) > 40 and made[0] != made[1]
    config = {"engines": [{"name": "e1", "kind": "openai", "url": engine.url}]}
    with running(Gateway({**config, "keys": [{"tenant": "a", "key_hash": key_hash}]}, tmp_path)) as gateway:
        assert gateway.openai(key).models.list().data[0].id == "stub-7b"
        assert "no admin key: /metrics, /docs and the machine's totals are closed to everybody" in gateway.said()


# Who sees what ------------------------------------------------------------------------------------------------------


def test_a_tenant_sees_its_own_runs_and_nothing_else(guarded: Gateway) -> None:
    for who, model in ((ACME, "stub-7b"), (LAB, "stub-3b")):
        run = {"x-workflow-id": "shared-id", "x-workflow-name": f"of-{model}", "x-workflow-final": "true"}
        reply = guarded.chat({**who, **run}, model=model, max_tokens=1)
        request = reply.headers["x-joulegate-request-id"]
        other = LAB if who is ACME else ACME

        def seen(who: dict[str, str] = who, request: str = request) -> bool:
            return guarded.http.get(f"/energy/requests/{request}", headers=who).status_code == 200

        until(seen)
        assert code(guarded.http.get(f"/energy/requests/{request}", headers=other)) == (404, "request_not_found")
        assert guarded.http.get(f"/energy/requests/{request}", headers=ADMIN).status_code == 200
    for key, own, others in (("sk-acme", "of-stub-7b", "of-stub-3b"), ("sk-lab", "of-stub-3b", "of-stub-7b")):
        for path in ("/energy/workflows", "/energy/runs", "/energy/runs/shared-id"):
            text = json.dumps(guarded.get(path, key))
            assert own in text and others not in text
    both = json.dumps(guarded.get("/energy/runs", "sk-admin"))
    assert "of-stub-7b" in both and "of-stub-3b" in both
    assert code(guarded.http.get("/energy/runs?tenant=lab", headers=ACME)) == (403, "tenant_not_allowed")
    assert {run["tenant"] for run in guarded.get("/energy/runs?tenant=lab", "sk-admin")["runs"]} == {"lab"}


@pytest.mark.parametrize(
    "path", ["/energy/engines", "/energy/balance", "/metrics", "/docs", "/openapi.json", "/admin/reload", "/else"]
)
def test_the_machine_is_the_admins(guarded: Gateway, path: str) -> None:
    assert code(guarded.http.get(path, headers=ACME)) == (403, "admin_only")
    assert guarded.http.get(path, headers=ADMIN).status_code not in (401, 403)


def test_the_admin_key_sends_no_requests(guarded: Gateway) -> None:
    assert code(guarded.chat(ADMIN)) == (403, "admin_key")
    assert code(guarded.http.get("/v1/models", headers=ADMIN)) == (403, "admin_key")


# Allowances ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rationed(make_gateway: Callable[..., Gateway], engine: Engine) -> Callable[..., Gateway]:
    """`rationed(requests_per_minute=2)`: a gateway whose one key, `sk-acme`, may have no more."""

    def make(**allowance: int) -> Gateway:
        engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
        keys = [{"tenant": "acme", "key": "sk-acme", **allowance}]
        return make_gateway({"engines": engines, "keys": keys, "admin": {"key": "sk-admin"}})

    return make


def test_requests_a_minute(rationed: Callable[..., Gateway]) -> None:
    gateway = rationed(requests_per_minute=2)
    assert [gateway.chat(ACME, max_tokens=1).status_code for _ in range(2)] == [200, 200]
    reply = gateway.chat(ACME)
    assert code(reply) == (429, "rate_limit_exceeded") and reply.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(reply.headers["retry-after"]) <= 30
    assert gateway.http.get("/v1/models", headers=ACME).status_code == 200
    with pytest.raises(RateLimitError):
        gateway.openai("sk-acme").completions.create(model="stub-7b", prompt="x")


@pytest.mark.scripted
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_a_minute(rationed: Callable[..., Gateway], stream: bool) -> None:
    gateway = rationed(tokens_per_minute=60)
    body = {"content": "word " * 50, "max_tokens": 40, "stream": stream}
    assert gateway.chat(ACME, **body).status_code == 200
    reply = gateway.chat(ACME, **body)
    assert code(reply) == (429, "rate_limit_exceeded")
    assert 25 <= int(reply.headers["retry-after"]) <= 31, "50 + 40 of 60 tokens leave a debt of 30"


@pytest.mark.scripted
def test_slots_come_back_whatever_becomes_of_a_request(rationed: Callable[..., Gateway]) -> None:
    gateway = rationed(in_flight=1)
    with gateway.http.stream("POST", "/v1/chat/completions", json=stalled(), headers=ACME) as reply:
        assert reply.status_code == 200
        refused = gateway.chat(ACME)
        assert code(refused) == (429, "rate_limit_exceeded") and refused.headers["retry-after"] == "1"
    until(lambda: gateway.chat(ACME, max_tokens=1).status_code == 200)
    for status, spoilt in [
        (200, {"max_tokens": 1}),
        (400, {"model": 7}),
        (404, {"model": "none"}),
        (400, {"stub": {"refuse": 400}}),
        (500, {"stub": {"refuse": 500}}),
        (502, {"stub": {"die_at_once": True}}),
        (200, {"stub": {"die_after": 1}, "stream": True}),
        (200, {"stub": {"refuse_in_stream": 400}, "stream": True}),
    ]:
        assert gateway.chat(ACME, **spoilt).status_code == status
    assert gateway.http.post("/v1/chat/completions", content=b"{", headers=ACME).status_code == 400
    assert gateway.http.post("/v1/nothing", headers=ACME).status_code == 404
    assert gateway.chat(ACME, max_tokens=1).status_code == 200


def stalled() -> dict[str, Any]:
    return chat_body(stream=True, stub={"stall_after": 1})


# The listener's door ------------------------------------------------------------------------------------------------


def test_beyond_the_loopback_it_wants_keys_or_a_word(tmp_path: Path, engine: Engine) -> None:
    config = {
        "engines": [{"name": "e1", "kind": "openai", "url": engine.url}],
        "listen": {"host": "0.0.0.0", "port": 0},
        "ledger": {"path": str(tmp_path / "ledger.sqlite")},
    }
    gateway = Gateway(config, tmp_path)
    done = joulegate("serve", "-c", str(gateway.file), env=gateway.env)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "listen.host '0.0.0.0' can be reached from other machines and there are no keys: "
        "configure keys, or say listen.open: true to let everybody in"
    )
    with running(Gateway(config, tmp_path, {"JOULEGATE_LISTEN__OPEN": "true"})) as opened:
        assert opened.http.get("/healthz").status_code == 200
