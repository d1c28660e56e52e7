"""Limits of time, attempts on another engine, engines that are taken out: what the client is told, and what stays."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from stage import Engine, Gateway, chat_body, until


def before(*engines: Engine | str, **more: Any) -> dict[str, Any]:
    urls = [engine if isinstance(engine, str) else engine.url for engine in engines]
    names = [{"name": f"e{n}", "kind": "openai", "url": url, "models": ["stub-7b"]} for n, url in enumerate(urls, 1)]
    return {"engines": names, **more}


def states(gateway: Gateway) -> list[tuple[bool, str]]:
    return [(engine["up"], engine["breaker"]) for engine in gateway.get("/energy/engines")["engines"]]


def all_up(gateway: Gateway) -> Gateway:
    until(lambda: all(up for up, _ in states(gateway)))
    return gateway


def last_code(text: str) -> str:
    frame = text.strip().rpartition("\n\n")[2]
    assert frame.startswith('data: {"error":{'), frame
    return frame.partition('"code":"')[2].partition('"')[0]


@contextlib.contextmanager
def server_of(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats every connection, once it has sent something, in a way of its own; it is always well."""
    import threading

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    if b"POST" in connection.recv(65536):
                        answer(connection)
                    else:
                        connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


# Time ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("stub-7b", step_ms=5)
    yield engine
    engine.close()


@pytest.mark.scripted
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_no_first_byte_in_time(make_gateway: Callable[..., Gateway], engine: Engine, stream: bool) -> None:
    gateway = make_gateway(before(engine, limits={"first_byte_seconds": 0.2}))
    reply = gateway.chat({"x-workflow-id": f"late-{stream}"}, stream=stream, stub={"silent": True})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "engine_timeout")
    assert gateway.request(reply)["outcome"] == "failed"
    until(lambda: engine.log(x_workflow_id=f"late-{stream}")[0]["end"] == "closed")
    until(gateway.idle)


@pytest.mark.scripted
def test_silence_within_a_stream(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway(before(engine, limits={"idle_seconds": 0.2}))
    reply = gateway.chat({"x-workflow-id": "stalled"}, stream=True, stub={"stall_after": 3})
    assert (reply.status_code, reply.text.count("joule "), last_code(reply.text)) == (200, 3, "engine_timeout")
    assert gateway.request(reply)["outcome"] == "failed"
    until(lambda: engine.log(x_workflow_id="stalled")[0]["end"] == "closed")
    until(gateway.idle)


@pytest.mark.scripted
def test_a_request_has_so_much_time_in_all(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway(before(engine, limits={"total_seconds": 0.5, "in_flight": 1}))
    reply = gateway.chat({"x-workflow-id": "long"}, stream=True, max_tokens=100_000)
    assert reply.status_code == 200 and reply.text.count("joule ") > 3
    assert last_code(reply.text) == "engine_timeout" and "in all" in reply.text
    assert gateway.request(reply)["outcome"] == "failed"
    until(lambda: engine.log(x_workflow_id="long")[0]["end"] == "closed")
    reply = gateway.chat({"x-workflow-id": "long-whole"}, max_tokens=100_000)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "engine_timeout")
    until(gateway.idle)
    assert states(gateway) == [(True, "closed")], "the engine is not to blame"


@pytest.mark.scripted
def test_waiting_in_the_queue_ends_too(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway(before(engine, limits={"queue_seconds": 0.2, "in_flight": 1}))
    with gateway.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True, max_tokens=100_000)):
        reply = gateway.chat({"x-workflow-id": "queued-long"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "queue_timeout")
    assert engine.log(x_workflow_id="queued-long") == []
    until(gateway.idle)


def test_a_connection_that_is_never_taken(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    """A full queue of the kernel answers nobody: the next attempt of a connection hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, contextlib.ExitStack() as stack:
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        limits = {"connect_seconds": 0.2}
        gateway = make_gateway(before(url, limits=limits), ready=False)
        reply = gateway.chat()
        assert reply.status_code in (503, 504), reply.text  # no engine is up, and this is why
        assert "0.2 s" in reply.json()["error"]["message"]
        pair = make_gateway(before(url, engine, limits=limits))
        assert pair.chat(max_tokens=1).status_code == 200


# Another engine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "how",
    [{"refuse": code} for code in (429, 500, 502, 503, 504)]
    + [{"die_at_once": True}, {"silent": True}, {"refuse_in_stream": 400}],
    ids=str,
)
def test_another_engine_serves_what_one_would_not(
    retrying: Gateway, retrying_engines: list[Engine], how: dict[str, Any], stream: bool
) -> None:
    if "refuse_in_stream" in how and not stream:
        pytest.skip("only a stream can refuse inside itself")
    run = f"retry-{how}-{stream}".replace(" ", "")
    retrying_engines[0].script(**how)
    reply = retrying.chat({"x-workflow-id": run}, max_tokens=2, stream=stream)
    assert reply.status_code == 200 and "error" not in reply.text and "joule " in reply.text
    figures = retrying.request(reply)
    assert (figures["engine"], figures["attempts"], figures["outcome"]) == ("e2", 2, "ok")
    assert len(retrying_engines[1].log(x_workflow_id=run)) == 1
    until(lambda: all(served["end"] != "open" for served in retrying_engines[0].log(x_workflow_id=run)))


def test_a_connection_that_is_reset_is_tried_elsewhere(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    with server_of(reset) as url:
        gateway = all_up(make_gateway(before(url, engine)))
        reply = gateway.chat(max_tokens=1)
        assert reply.status_code == 200 and gateway.request(reply)["engine"] == "e2"


def test_nothing_is_tried_again_once_a_byte_was_seen(retrying: Gateway, retrying_engines: list[Engine]) -> None:
    retrying_engines[0].script(die_after=1)
    reply = retrying.chat({"x-workflow-id": "seen"}, max_tokens=5, stream=True)
    assert reply.status_code == 200 and last_code(reply.text) == "engine_failed"
    assert retrying_engines[1].log(x_workflow_id="seen") == []


@pytest.fixture(scope="module")
def retrying_engines() -> Iterator[list[Engine]]:
    engines = [Engine("stub-7b", step_ms=5) for _ in range(2)]
    yield engines
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def retrying(retrying_engines: list[Engine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Before two engines; the first one is scripted to fail often, and is not taken out for it."""
    from stage import running

    config = before(*retrying_engines, limits={"first_byte_seconds": 0.5}, breaker={"failures": 1000})
    with running(Gateway(config, tmp_path_factory.mktemp("retrying"))) as gateway:
        yield all_up(gateway)


# Breakers -----------------------------------------------------------------------------------------------------------


@pytest.mark.scripted
def test_an_engine_that_keeps_failing_is_taken_out_and_comes_back(make_gateway: Callable[..., Gateway]) -> None:
    engine = Engine("stub-7b", step_ms=5)
    try:
        gateway = all_up(make_gateway(before(engine, breaker={"failures": 3, "open_seconds": 0.5})))
        replies = [gateway.chat(stub={"refuse": 500}) for _ in range(3)]
        assert [reply.json()["error"]["message"] for reply in replies] == ["the stub says 500"] * 3
        assert states(gateway) == [(True, "open")]
        assert gateway.metric("joulegate_engine_breaker", engine="e1", state="open") == 1
        served = len(engine.log())
        refused = gateway.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_engine")
        assert int(refused.headers["retry-after"]) >= 1 and len(engine.log()) == served
        assert gateway.request(refused)["outcome"] == "refused"
        until(lambda: states(gateway) == [(True, "half_open")])
        assert gateway.chat(max_tokens=1).status_code == 200
        assert states(gateway) == [(True, "closed")]
        assert gateway.metric("joulegate_engine_breaker", engine="e1", state="closed") == 1
        assert "taken out for 0.5 s" in gateway.log() and "is back in service" in gateway.log()
    finally:
        engine.close()


@pytest.mark.scripted
def test_who_stood_in_its_queue_when_it_was_taken_out_hears_when_to_come_back(
    make_gateway: Callable[..., Gateway], engine: Engine
) -> None:
    limits = {"limits": {"in_flight": 1}, "breaker": {"failures": 1, "open_seconds": 30}}
    gateway = all_up(make_gateway(before(engine, **limits)))
    with ThreadPoolExecutor() as pool:
        with gateway.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True, max_tokens=100_000)):
            queued = [pool.submit(gateway.chat, stub={"refuse": 500}) for _ in range(2)]
            until(lambda: gateway.metric("joulegate_gate_queued") == 2)
        failed, refused = sorted((one.result() for one in queued), key=lambda reply: reply.status_code)
    assert (failed.status_code, refused.status_code) == (500, 503)
    assert refused.json()["error"]["code"] == "no_engine" and 1 <= int(refused.headers["retry-after"]) <= 30


def test_clients_errors_take_nobody_out(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway(before(engine, breaker={"failures": 1}))
    for how in ({"refuse": 422}, {"refuse": 429}, {"refuse_in_stream": 400}):
        gateway.chat(stub=how, stream=True)
    assert [breaker for _, breaker in states(gateway)] == ["closed"]


# Routing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("affinity", "at_first", "at_second"), [("none", 2, 1), ("session", 3, 0), ("prefix", 3, 0)])
def test_where_requests_that_belong_together_go(
    make_gateway: Callable[..., Gateway],
    retrying_engines: list[Engine],
    affinity: str,
    at_first: int,
    at_second: int,
) -> None:
    """Three streams that last: of one run with prompts of all kinds, or of many runs that begin alike."""
    retrying_engines[0].script()
    gateway = all_up(make_gateway(before(*retrying_engines, routing={"affinity": affinity, "slack": 3})))
    tag, begins_alike = f"routed-{affinity}", affinity == "prefix"

    def request(number: int, **body: Any) -> dict[str, Any]:
        run, text = ("run", f"{number} " * 200) if not begins_alike else (f"run-{number}", "word " * 200 + str(number))
        return {"json": chat_body(content=text, **body), "headers": {"x-tag": tag, "x-workflow-id": run}}

    with contextlib.ExitStack() as held:
        for number in range(3):
            body = request(number, stream=True, max_tokens=100_000)
            held.enter_context(gateway.http.stream("POST", "/v1/chat/completions", **body))
        assert [len(engine.log(x_tag=tag)) for engine in retrying_engines] == [at_first, at_second]
        reply = gateway.http.post("/v1/chat/completions", **request(4, max_tokens=1))
        assert gateway.request(reply)["engine"] == "e2", "it is the less busy one, by 1 or by the slack"
    until(gateway.idle)


# Clients that leave -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"max_tokens": 100_000}, {"stub": {"silent": True}, "stream": True}], ids=str)
async def test_the_engine_is_told_soon_after_the_client_left(
    make_gateway: Callable[..., Gateway], engine: Engine, body: dict[str, Any]
) -> None:
    """How soon is printed, and asserted as generously as a busy machine needs."""
    gateway = await asyncio.to_thread(make_gateway, before(engine))
    run = f"soon-{'stream' in body}"
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        asked = asyncio.create_task(
            client.post("/v1/chat/completions", json=chat_body(**body), headers={"x-workflow-id": run}, timeout=60)
        )
        await asyncio.to_thread(until, lambda: engine.log(x_workflow_id=run))
        asked.cancel()
        left = time.time()
        with contextlib.suppress(asyncio.CancelledError):
            await asked

    def closed() -> dict[str, Any] | None:
        (served,) = engine.log(x_workflow_id=run)
        return served if served["end"] == "closed" else None

    served = await asyncio.to_thread(until, closed, 10.0)
    print(f"the engine was told after {(served['ended'] - left) * 1000:.0f} ms")
    await asyncio.to_thread(until, gateway.idle)
