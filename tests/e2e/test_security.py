"""Keys, the admin's key, TLS and limits, as a client on a real socket meets them."""

import asyncio
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from aiohttp import web
from openai import OpenAI, RateLimitError
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
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


def test_probes_need_no_key_and_learn_nothing(guarded: Gateway) -> None:
    assert guarded.get("/healthz") == {"status": "ok"}
    assert guarded.get("/readyz") == {"ready": True}
    assert guarded.get("/readyz", "sk-acme") == {"ready": True}
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


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_a_minute(rationed: Callable[..., Gateway], stream: bool) -> None:
    gateway = rationed(tokens_per_minute=60)
    body = {"content": "word " * 50, "max_tokens": 40, "stream": stream}
    assert gateway.chat(ACME, **body).status_code == 200
    reply = gateway.chat(ACME, **body)
    assert code(reply) == (429, "rate_limit_exceeded")
    assert 25 <= int(reply.headers["retry-after"]) <= 31, "50 + 40 of 60 tokens leave a debt of 30"


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


# Limits -------------------------------------------------------------------------------------------------------------


def connected(gateway: Gateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def raw(gateway: Gateway, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back for these bytes until the gateway ends the connection."""
    answer = b""
    with connected(gateway) as sock:
        for part in parts:
            sock.sendall(part)
            time.sleep(pause_s)
        while data := sock.recv(65536):
            answer += data
    return answer


def sent_until_refused(gateway: Gateway, begin: bytes, more: bytes) -> int:
    """How many bytes the gateway took before it ended the connection; an endless sender would send 64 MiB."""
    sent = 0
    with connected(gateway) as sock:
        try:
            sock.sendall(begin)
            while sent < 64 * 2**20:
                sock.sendall(more)
                sent += len(more)
        except ConnectionError:
            pass
    return sent


def test_headers_that_are_too_large(gateway: Gateway) -> None:
    for headers in ({"x-long": "x" * 40_000}, {f"x-{n}": "" for n in range(1000)}):
        for path in ("/v1/models", "/energy/runs", "/healthz"):
            assert code(gateway.http.get(path, headers=headers)) == (431, "headers_too_large")
    assert gateway.http.get("/healthz", headers={"x-long": "x" * 8000}).status_code == 200
    assert code(gateway.http.get("/energy/runs", params={"workflow": "x" * 40_000})) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /healthz HTTP/1.1\r\nx-endless: ",
        b"GET /",
        b"GET /healthz HTTP/1.1\r\na: b\r\n",
        b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-t: ",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2;",
    ],
    ids=["a header", "a path", "headers", "nothing", "a trailer", "a chunk's extension"],
)
def test_what_has_no_end_is_ended(gateway: Gateway, begin: bytes) -> None:
    more = {b"\r\n": b"\r\n"}.get(begin, b"a: b\r\n" if b"a: b" in begin else b"x") * 4000
    assert sent_until_refused(gateway, begin, more) < 16 * 2**20, "less than the buffers between us hold"
    assert gateway.http.get("/healthz").status_code == 200


def test_an_endless_head_is_told_why(gateway: Gateway) -> None:
    answer = raw(gateway, b"GET /healthz HTTP/1.1\r\nx: " + b"x" * 20_000, b"x" * 20_000, pause_s=0.2)
    assert answer.startswith(b"HTTP/1.1 431 ") and b'"headers_too_large"' in answer


def test_a_head_that_takes_too_long(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
    gateway = make_gateway({"engines": engines, "limits": {"header_seconds": 0.3}})
    assert raw(gateway, b"GET /healthz HT").startswith(b"HTTP/1.1 408 ")
    assert raw(gateway) == b"", "a connection that was made in advance is closed without a word"
    answer = raw(gateway, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /", pause_s=0.1)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in answer
    slow_body = chat_body(stream=True, max_tokens=200)
    assert gateway.http.post("/v1/chat/completions", json=slow_body).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False])
def test_json_that_is_nested_too_deep(gateway: Gateway, stream: bool) -> None:
    for depth, status in ((62, 200), (63, 400), (300, 400), (1100, 400)):
        deep = json.loads("[" * depth + "]" * depth) if depth < 500 else None
        text = json.dumps(chat_body(stream=stream, max_tokens=1, metadata={"deep": "@"}))
        body = text.replace('"@"', "[" * depth + "]" * depth)
        assert deep is None or json.loads(body)["metadata"]["deep"] == deep
        assert gateway.http.post("/v1/chat/completions", content=body).status_code == status


def test_an_upgrade_writes_no_log(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway({"engines": [{"name": "e1", "kind": "openai", "url": engine.url}]})
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "a", "sec-websocket-version": "13"}
    for path in ("/v1/models", "/healthz"):
        assert gateway.http.get(path, headers=upgrade).status_code == 200
    assert "pgrade" not in gateway.log()


# Names that are no good ---------------------------------------------------------------------------------------------

HOSTILE = [
    'quote" and \\ backslash',
    "'; DROP TABLE runs; --",
    '"} 1\njoulegate_forged_total{x="y',
    "line\r\nbreak: header",
    "\x1b[31mred\x1b[0m",
    "nul\x00nul",
    "\u2028\u202e\u0085",
    "{{7*7}}${jndi:ldap://x}%s%n",
    "[bold red]markup[/]",
    "../../etc/passwd",
    "x" * 200,
    "émoji 🔥",
]


def test_hostile_names_are_data_everywhere(make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """An engine that names no models takes every model's name; runs, workflows and steps come as headers and bodies."""
    with nameless_engine() as url:
        gateway = make_gateway({"engines": [{"name": "e1", "kind": "openai", "url": url}]})
        seen = 0
        for name in HOSTILE:
            identity = {"workflow_id": name, "workflow_name": name, "workflow_step": name}
            replies = [gateway.chat(model=name), gateway.chat(metadata=identity)]
            if name.isascii() and name.isprintable():
                own = {f"x-workflow-{field}": name for field in ("id", "name", "step", "node", "parent")}
                replies.append(gateway.chat(own))
            assert [reply.status_code for reply in replies[:2]] == [200 if name.isprintable() else 400, 200], name
            assert {reply.status_code for reply in replies[2:]} <= {200}, name
            seen += sum(reply.status_code == 200 for reply in replies)
        ledger = until(lambda: gateway.ledger() if settled(gateway) == seen else None)
        for accept in ("text/plain", "application/openmetrics-text"):
            parse = openmetrics.text_string_to_metric_families if "open" in accept else text_string_to_metric_families
            families = list(parse(gateway.http.get("/metrics", headers={"accept": accept}).text))
            assert len(families) > 20 and not [family.name for family in families if "forged" in family.name]
        assert {'quote" and \\ backslash', "'; DROP TABLE runs; --"} <= {one["workflow"] for one in ledger["workflows"]}
        for name in HOSTILE:
            if name.isascii() and name.isprintable():
                found = gateway.http.get("/energy/runs", params={"workflow": name}).json()["runs"]
                assert {run["workflow"] for run in found} == {name}
        log = gateway.log() + gateway.said()
        assert not [name for name in HOSTILE if name in log]
        assert not any(mark in log for mark in ("\x1b[31m", "\x00", "forged"))


def settled(gateway: Gateway) -> int:
    return sum(flow["requests"] for flow in gateway.get("/energy/workflows")["workflows"])


# TLS ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    """A certificate for 127.0.0.1 and its key, as files."""
    leaf = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return {"certificate": str(chain), "key": str(key)}


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


def test_the_listener_speaks_tls(tmp_path: Path, engine: Engine, certificate: dict[str, str], ca: str) -> None:
    engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
    gateway = Gateway({"engines": engines, "listen": {"port": 0, "tls": certificate}}, tmp_path)
    gateway.verify = ssl.create_default_context(cafile=ca)
    with running(gateway):
        assert gateway.url.startswith("https://")
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", http_client=trusting(ca))
        stream = client.completions.create(model="stub-7b", prompt="x", max_tokens=3, stream=True)
        assert "".join(part.choices[0].text for part in stream) == "joule " * 3
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{gateway.url}/healthz")
        with pytest.raises(httpx.HTTPError):
            httpx.get(gateway.url.replace("https", "http") + "/healthz")
        old = ssl.create_default_context(cafile=ca)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(f"{gateway.url}/healthz", verify=old).status_code == 200


def trusting(ca: str) -> Any:
    import httpx2

    return httpx2.Client(verify=ssl.create_default_context(cafile=ca))


@pytest.mark.parametrize("asks_for_ours", [False, True])
def test_engines_behind_tls(
    make_gateway: Callable[..., Gateway],
    authority: trustme.CA,
    certificate: dict[str, str],
    ca: str,
    asks_for_ours: bool,
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    context.load_cert_chain(certificate["certificate"], certificate["key"])
    context.verify_mode = ssl.CERT_REQUIRED if asks_for_ours else ssl.CERT_NONE

    own = certificate if asks_for_ours else {}
    trust = {"good": {"ca": ca, **own}, "lax": {"verify": False, **own}, "stranger": own}
    trust |= {"silent": {"ca": ca}} if asks_for_ours else {}
    with nameless_engine(context) as url:
        engines = [
            {"name": name, "kind": "openai", "url": url, "models": [name], "tls": tls} for name, tls in trust.items()
        ]
        gateway = make_gateway({"engines": engines})
        up = {name: name in ("good", "lax") for name in trust}
        until(lambda: gateway.get("/readyz")["engines"] == up)
        for name in trust:
            assert gateway.chat(model=name).status_code in ((200,) if up[name] else (502, 503))


def test_a_listener_whose_files_are_no_good(tmp_path: Path, engine: Engine, certificate: dict[str, str]) -> None:
    engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
    listen = {"port": 0, "tls": {**certificate, "key": str(tmp_path / "none")}}
    gateway = Gateway({"engines": engines, "listen": listen}, tmp_path)
    for command in (("check", str(gateway.file)), ("serve", "-c", str(gateway.file))):
        done = joulegate(*command, env=gateway.env)
        assert done.returncode == 1
        (said,) = done.stderr.splitlines()
        assert said.endswith(f"listen.tls.key: {tmp_path}/none cannot be read: No such file or directory")


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


class nameless_engine:  # noqa: N801: it is used like a function
    """An engine in this process that lists no models and answers every name, over TLS when given a context."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context

    def __enter__(self) -> str:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> str:
        async def chat(request: web.Request) -> web.Response:
            asked = (await request.json()).get("model")
            choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            return web.json_response({"id": "1", "model": asked, "choices": [choice], "usage": usage})

        async def models(_: web.Request) -> web.Response:
            return web.json_response({"object": "list", "data": []})

        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        app.router.add_get("/v1/models", models)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context).start()
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self._runner.addresses[0][1]}"

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
