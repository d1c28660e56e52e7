"""Engines that fail and clients that leave: who gets what, what is tried again, and who pays."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from stage import Engine, Gateway, chat_body, residual_uj, running, uj, until

GPU = "local/gpu:0"


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    """Two that serve the same model; the tests here script and watch them."""
    pair = Engine("stub-7b", step_ms=20), Engine("stub-7b", step_ms=20)
    yield pair
    for engine in pair:
        engine.close()


@pytest.fixture(scope="module")
def one_engine() -> Iterator[Engine]:
    engine = Engine("stub-7b", step_ms=20)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def metered(
    engines: tuple[Engine, Engine],
    one_engine: Engine,
    nvml_library: Path,
    nvml_play: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Gateway, Gateway]]:
    """Gateways on a measured GPU: before the two engines, and before one alone that lets two requests in at once."""
    folders = [tmp_path_factory.mktemp(name) for name in ("two", "one")]
    two = [
        {"name": f"e{n}", "kind": "vllm", "url": engine.url, "devices": [GPU]} for n, engine in enumerate(engines, 1)
    ]
    one = [{"name": "e1", "kind": "vllm", "url": one_engine.url, "devices": [GPU]}]
    plays = [nvml_play.NvmlPlay(nvml_library, folder / "nvml.state") for folder in folders]
    for play in plays:
        play.set_power_w(0, 300)
    # What is said of an engine at its start is that it is up: one that is scripted to fail stays in the choice.
    with (
        running(Gateway({"engines": two, "breaker": {"failures": 1000}}, folders[0], plays[0].env)) as before_two,
        running(Gateway({"engines": one, "limits": {"in_flight": 2}}, folders[1], plays[1].env)) as before_one,
    ):
        until(lambda: all(engine["up"] for engine in before_two.get("/energy/engines")["engines"]))
        yield before_two, before_one


@pytest.fixture
def pair(metered: tuple[Gateway, Gateway], engines: tuple[Engine, Engine]) -> Iterator[Gateway]:
    """The gateway before two engines, both well."""
    for engine in engines:
        engine.script()
    yield metered[0]
    for engine in engines:
        engine.script()


@pytest.fixture
def alone(metered: tuple[Gateway, Gateway], one_engine: Engine) -> Gateway:
    """The gateway before one engine, which is well."""
    one_engine.script()
    return metered[1]


def content(text: str) -> str:
    return "joule " * text.count('"content":"joule "')


# Engines that fail --------------------------------------------------------------------------------------------------


def test_what_failed_before_its_first_byte_is_tried_on_another_engine(
    pair: Gateway, engines: tuple[Engine, Engine]
) -> None:
    replies: list[httpx.Response] = []
    either, streamed, whole = (False, True), (True,), (False,)
    ways: list[tuple[dict[str, Any], tuple[bool, ...]]] = [
        ({"refuse": 503}, either),
        ({"refuse": 429}, either),
        ({"die_at_once": True}, either),
        ({"refuse_in_stream": 503}, streamed),
        ({"die_after": 10}, whole),
    ]
    for how, streams in ways:
        for stream in streams:
            engines[0].script(**how)
            reply = pair.chat({"x-workflow-name": "retrying"}, max_tokens=12, stream=stream)
            assert reply.status_code == 200 and "error" not in reply.text, how
            text = content(reply.text) if stream else reply.json()["choices"][0]["message"]["content"]
            assert text == "joule " * 12
            replies.append(reply)
    for reply in replies:
        figures = pair.request(reply)
        assert (figures["attempts"], figures["engine"], figures["outcome"]) == (2, "e2", "ok")
        assert figures["output_tokens"] == 12
    retried_j = pair.metric("joulegate_waste_joules_total", workflow="retrying", reason="retried")
    assert 0 < retried_j < pair.metric("joulegate_workflow_energy_joules_total", workflow="retrying")
    ids = [reply.headers["x-joulegate-request-id"] for reply in replies]
    asked = {engine: {served["headers"]["x-request-id"] for served in engine.log()} for engine in engines}
    assert len(ids) == 8 and all(set(ids) <= seen for seen in asked.values())


def test_an_engine_that_is_gone_is_passed_over(make_gateway: Callable[..., Gateway], one_engine: Engine) -> None:
    with socket.socket() as nobody:  # bound, so that nobody else gets it, and not listening
        nobody.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        engines = [
            {"name": "e1", "kind": "openai", "url": gone, "models": ["stub-7b"]},
            {"name": "e2", "kind": "openai", "url": one_engine.url},
        ]
        gateway = make_gateway({"engines": engines})
        reply = gateway.chat(max_tokens=1)
        assert reply.status_code == 200
        assert gateway.request(reply)["engine"] == "e2"
        states = {engine["name"]: engine["up"] for engine in gateway.get("/energy/engines")["engines"]}
        assert states == {"e1": False, "e2": True}


def test_a_stream_that_breaks_ends_with_an_error_frame(pair: Gateway, engines: tuple[Engine, Engine]) -> None:
    before = len(engines[0].log()) + len(engines[1].log())
    for engine in engines:
        engine.script(die_after=7)
    reply = pair.chat({"x-workflow-name": "broken"}, max_tokens=20, stream=True)
    assert reply.status_code == 200 and content(reply.text) == "joule " * 7
    last = reply.text.strip().rpartition("\n\n")[2]
    assert last.startswith('data: {"error":{') and '"code":"engine_failed"' in last and "[DONE]" not in reply.text
    assert len(engines[0].log()) + len(engines[1].log()) == before + 1, "nothing is tried again after the first byte"
    figures = pair.request(reply)
    assert (figures["outcome"], figures["attempts"], figures["usage"]) == ("failed", 1, "frames")
    assert figures["output_tokens"] == 7 and figures["joules"] > 0
    assert uj(pair.metric("joulegate_waste_joules_total", workflow="broken", reason="failed")) == uj(figures["joules"])


def test_an_answer_that_breaks_is_a_bad_gateway(alone: Gateway, one_engine: Engine) -> None:
    reply = alone.chat(max_tokens=20, stub={"die_after": 7})
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (502, "server_error", "engine_failed")
    assert "e1" in error["message"] and one_engine.url not in error["message"]
    assert alone.request(reply)["outcome"] == "failed"


@pytest.mark.scripted
def test_what_takes_too_long_or_is_too_much_is_refused(
    make_gateway: Callable[..., Gateway], one_engine: Engine
) -> None:
    engines = [{"name": "e1", "kind": "openai", "url": one_engine.url}]
    limits = {"first_byte_seconds": 0.5, "idle_seconds": 0.5, "in_flight": 1, "queue": 0}
    gateway = make_gateway({"engines": engines, "limits": limits})
    reply = gateway.chat(stub={"silent": True})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "engine_timeout")
    reply = gateway.chat(stub={"stall_after": 2}, stream=True)
    assert reply.status_code == 200 and content(reply.text) == "joule " * 2
    assert '"code":"engine_timeout"' in reply.text
    until(lambda: [s["end"] for s in one_engine.log()[-2:]] == ["closed", "closed"])
    with streaming(gateway, max_tokens=10_000):
        reply = gateway.chat()
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
    assert int(reply.headers["retry-after"]) > 0
    assert gateway.request(reply)["outcome"] == "refused"


# Clients that leave -------------------------------------------------------------------------------------------------


def streaming(gateway: Gateway, headers: dict[str, str] | None = None, **body: Any) -> Any:
    """A stream that has begun; leaving the block closes the connection."""
    return gateway.http.stream(
        "POST", "/v1/chat/completions", json=chat_body(stream=True, **body), headers=headers or {}
    )


def leave(gateway: Gateway, workflow: str, when: Callable[[], Any], **body: Any) -> None:
    """Send a request and close the connection once `when` is true, without having read a byte."""
    raw = httpx.Request("POST", gateway.url, json=chat_body(**body)).content
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"x-workflow-id: {workflow}\r\nx-workflow-name: {workflow}\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + raw)
        until(when)


LEAVERS: dict[str, dict[str, Any]] = {
    "gone-unanswered": {"stub": {"silent": True}},
    "gone-before-a-token": {"stub": {"silent": True}, "stream": True},
    "gone-midway": {"max_tokens": 100_000, "stream": True},
    "gone-from-a-whole": {"max_tokens": 100_000},
}


def test_clients_that_leave_stop_the_engine_and_pay(alone: Gateway, one_engine: Engine) -> None:
    for workflow, body in LEAVERS.items():

        def at_work(workflow: str = workflow, silent: bool = "stub" in body) -> bool:
            """Long enough at it that the counter has moved, and that the engine made many tokens."""
            log = one_engine.log(x_workflow_id=workflow)
            open_j = alone.http.get(f"/energy/runs/{workflow}").json().get("open_joules", 0)
            return bool(log) and open_j > 30 and (silent or log[0]["tokens"] > 40)

        leave(alone, workflow, at_work, **body)
        until(lambda workflow=workflow: [s["end"] for s in one_engine.log(x_workflow_id=workflow)] == ["closed"])
        until(alone.idle)
    for workflow in LEAVERS:
        figures = alone.run(workflow)
        (request,) = figures["requests"]
        assert (request["outcome"], request["code"], request["settled"]) == ("cancelled", 499, True)
        assert request["joules"] > 0 and request["quality"] == "attributed"
        wasted = alone.metric("joulegate_waste_joules_total", workflow=workflow, reason="cancelled")
        assert uj(wasted) == uj(request["joules"]) == uj(figures["joules"])
        assert alone.metric("joulegate_requests_total", workflow=workflow, outcome="cancelled", code="499") == 1


def test_a_client_that_leaves_the_queue_was_never_there(alone: Gateway, one_engine: Engine) -> None:
    with streaming(alone, max_tokens=100_000), streaming(alone, max_tokens=100_000):
        leave(alone, "gone-queued", lambda: alone.metric("joulegate_gate_queued", workflow="gone-queued"))
        until(lambda: not alone.metric("joulegate_gate_queued"))
        assert alone.get("/energy/engines")["engines"][0]["in_flight"] == 2
    assert one_engine.log(x_workflow_id="gone-queued") == []
    figures = alone.run("gone-queued")
    (request,) = figures["requests"]
    assert (request["outcome"], request["joules"], request["ttft_s"]) == ("cancelled", None, None)
    until(alone.idle)
    assert alone.chat(max_tokens=1).status_code == 200


def test_the_books_balance_after_all_this(metered: tuple[Gateway, Gateway]) -> None:
    for gateway in metered:
        until(gateway.idle)
        books = gateway.balance()[GPU]
        assert residual_uj(books) == 0 and books["gap_j"] == 0


@pytest.mark.scripted
def test_what_was_given_up_was_not_foreign_work(metered: tuple[Gateway, Gateway]) -> None:
    """All that these engines did, they did for this gateway's clients."""
    assert [gateway.balance()[GPU]["foreign_j"] for gateway in metered] == [0, 0]
