"""The end of a gateway, and the start of the next: what runs is finished, what waits is served, the books close."""

import asyncio
import contextlib
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from stage import Engine, Gateway, chat_body, running, until

STREAMS = 200
TOKENS = 60


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine("stub-7b", step_ms=50)
    yield engine
    engine.close()


def before(engine: Engine, **more: Any) -> dict[str, Any]:
    return {"engines": [{"name": "e1", "kind": "openai", "url": engine.url, "models": ["stub-7b"]}], **more}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Crowd(threading.Thread):
    """Many streams at once; `texts` are whole once it has ended, `begun` counts those with a first byte."""

    def __init__(self, url: str, streams: int, tokens: int = TOKENS) -> None:
        super().__init__(daemon=True)
        self._url, self._streams, self._tokens = url, streams, tokens
        self.begun = 0
        self.texts: list[str] = []
        self.start()

    def run(self) -> None:
        self.texts = asyncio.run(self._all())

    async def _all(self) -> list[str]:
        limits = httpx.Limits(max_connections=self._streams)
        async with httpx.AsyncClient(base_url=self._url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(self._one(client) for _ in range(self._streams)))

    async def _one(self, client: httpx.AsyncClient) -> str:
        text: list[str] = []
        body = chat_body(stream=True, max_tokens=self._tokens)
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            async for part in reply.aiter_text():
                self.begun += not text
                text.append(part)
        return "".join(text)

    def all_whole(self) -> bool:
        self.join(60)
        whole = [text.count('"content":"joule "') == self._tokens and "[DONE]" in text for text in self.texts]
        return len(whole) == self._streams and all(whole)


def outcomes(gateway: Gateway) -> dict[str, int]:
    """How the requests in the ledger ended."""
    with contextlib.closing(sqlite3.connect(gateway.folder / "ledger.sqlite")) as db:
        rows = db.execute("SELECT outcome, count(*) FROM requests GROUP BY outcome").fetchall()
    return dict(rows)


@pytest.mark.scripted
def test_a_restart_under_two_hundred_streams_loses_none(engine: Engine, tmp_path: Path) -> None:
    """The next gateway listens as soon as the first no longer does, and begins once that one's books are closed."""
    port, ledger = free_port(), {"path": str(tmp_path / "ledger.sqlite")}
    config = before(engine, listen={"host": "127.0.0.1", "port": port}, ledger=ledger, limits={"drain_seconds": 60})
    old = Gateway(config, tmp_path).start()
    (tmp_path / "next").mkdir()
    new = Gateway(config, tmp_path / "next")
    crowd = Crowd(old.url, STREAMS)
    until(lambda: crowd.begun == STREAMS)
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as ends:
        # However slowly the next one starts, the first has this to wait for.
        with old.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True, max_tokens=100_000)):
            old.process.send_signal(signal.SIGTERM)
            until(lambda: not listens(port))
            starts = pool.submit(lambda: ends.enter_context(running(new)))
            log = tmp_path / "next/err.txt"
            until(lambda: log.exists() and "waiting for the gateway that drains" in log.read_text())
        starts.result()
        reply = new.chat(max_tokens=1)
        assert reply.status_code == 200
        assert crowd.all_whole()
        assert old.process.wait(30) == 0
        old.stop()
        new.request(reply)
        assert outcomes(old) == {"ok": STREAMS + 1, "cancelled": 1}


@pytest.mark.scripted
def test_with_a_socket_that_is_handed_over_nobody_is_refused(engine: Engine, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        config = before(engine, ledger={"path": str(tmp_path / "ledger.sqlite")})
        old = Gateway(config, tmp_path, listener=listener).start()
        crowd = Crowd(old.url, 20)
        until(lambda: crowd.begun == 20)
        old.process.send_signal(signal.SIGTERM)
        late = Crowd(old.url, 20, tokens=2)  # they connect while nobody takes connections
        (tmp_path / "next").mkdir()
        with running(Gateway(config, tmp_path / "next", listener=listener)):
            assert late.all_whole() and crowd.all_whole()
            old.stop()


def test_who_has_connected_and_not_asked_yet_is_answered(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway(before(engine))
    url = httpx.URL(gateway.url)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as client:
        until(lambda: gateway.http.get("/healthz").status_code == 200)  # by now the connection was taken
        gateway.process.send_signal(signal.SIGTERM)
        until(lambda: not listens(url.port or 80))
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n")
        reply = b"".join(iter(lambda: client.recv(4096), b""))
        assert reply.startswith(b"HTTP/1.1 200 ") and b"\r\nconnection: close\r\n" in reply
    gateway.stop()


@pytest.mark.scripted
def test_queued_requests_are_served_before_the_end(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway(before(engine, limits={"in_flight": 1}))
    crowd = Crowd(gateway.url, 4, tokens=8)
    until(lambda: gateway.metric("joulegate_gate_queued") == 3)
    gateway.stop()
    assert crowd.all_whole() and outcomes(gateway) == {"ok": 4}


def test_it_says_first_that_it_is_about_to_go(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway(before(engine, limits={"announce_seconds": 2}))
    gateway.process.send_signal(signal.SIGTERM)
    until(lambda: gateway.http.get("/readyz").json()["draining"])
    assert gateway.http.get("/readyz").status_code == 503
    assert gateway.http.get("/healthz").status_code == 200
    assert gateway.chat(max_tokens=1).status_code == 200
    gateway.stop()


@pytest.mark.scripted
@pytest.mark.parametrize("how", ["twice", "too long"])
def test_who_is_not_waited_for_is_told_and_booked(
    make_gateway: Callable[..., Gateway], engine: Engine, how: str
) -> None:
    gateway = make_gateway(before(engine, limits={"drain_seconds": 1 if how == "too long" else 60}))
    crowd = Crowd(gateway.url, 3, tokens=100_000)
    until(lambda: crowd.begun == 3)
    gateway.process.send_signal(signal.SIGTERM)
    if how == "twice":
        port = int(gateway.url.rpartition(":")[2])
        until(lambda: not listens(port))
        gateway.process.send_signal(signal.SIGTERM)
    gateway.stop()
    crowd.join(30)
    assert [text.count('"code":"shutting_down"') for text in crowd.texts] == [1, 1, 1]
    assert outcomes(gateway) == {"failed": 3}
    until(lambda: all(served["end"] == "closed" for served in engine.log()[-3:]))


def test_a_second_gateway_on_a_ledger_in_use_is_refused_at_once(
    make_gateway: Callable[..., Gateway], engine: Engine, tmp_path: Path
) -> None:
    first = make_gateway(before(engine))
    second = Gateway(before(engine, ledger={"path": str(first.folder / "ledger.sqlite")}), tmp_path)
    with pytest.raises(AssertionError, match="another gateway writes this ledger"):
        second.start()
    assert first.chat(max_tokens=1).status_code == 200
