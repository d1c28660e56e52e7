"""A ledger that cannot be written, is damaged, or dies with its gateway: requests go on, and no joule is missing."""

import contextlib
import os
import random
import resource
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from stage import Engine, Gateway, chat_body, joulegate, residual_uj, running, uj, until

GPU, POWER_W = "local/gpu:0", 300.0
ROUNDS = int(os.environ.get("JOULEGATE_SOAK_ROUNDS", "3"))


def config(engine: Engine, **ledger: Any) -> dict[str, Any]:
    engines = [{"name": "e1", "kind": "vllm", "url": engine.url, "devices": [GPU]}]
    return {"engines": engines, **({"ledger": ledger} if ledger else {})}


@pytest.fixture
def gpu(nvml: Any) -> Iterator[Any]:
    """A GPU whose counter stands still until a test says otherwise; `begins_at` is where."""
    nvml.set_power_w(0, 0)
    nvml.begins_at = until(lambda: stands(nvml))
    yield nvml


def stands(nvml: Any) -> int | None:
    """What the counter shows, once all that was drawn is in it."""
    return nvml.counter_uj() if nvml.drawn_uj() - nvml.counter_uj() < 1000 else None


def ask(gateway: Gateway, count: int, workflow: str = "work") -> list[str]:
    """Requests, eight at a time, each a run of its own; all are answered. Returns their ids."""

    def one(_: int) -> str:
        reply = gateway.chat({"x-workflow-name": workflow, "x-workflow-final": "true"}, max_tokens=5)
        assert reply.status_code == 200, reply.text
        return reply.headers["x-joulegate-request-id"]

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(count)))


def failing(gateway: Gateway) -> str | None:
    """What is wrong with the ledger: the gateway says so, and that it serves all the same."""
    state = gateway.get("/readyz")
    assert state["ready"] is True
    return state["ledger"] if state["ledger"] != "ok" else None


def well(gateway: Gateway) -> bool:
    return not failing(gateway) and gateway.metric("joulegate_ledger_backlog") <= 1


def books_are_closed(gateway: Gateway, gpu: Any) -> dict[str, Any]:
    """With a counter that stands still: everything that it moved is in the books, here and in the file."""
    gpu.set_power_w(0, 0)
    moved_uj = until(lambda: stands(gpu)) - gpu.begins_at

    def closed() -> dict[str, Any] | None:
        books = gateway.balance()[GPU]
        return books if books["open_j"] == 0 and uj(books["counter_j"]) == moved_uj else None

    books = until(closed)
    assert residual_uj(books) == 0
    assert uj(gateway.ledger()["devices"][GPU]["residual_j"]) == 0
    return books


def workflow_uj(gateway: Gateway) -> int:
    return sum(uj(row["joules"] or 0.0) for row in gateway.get("/energy/workflows")["workflows"])


def requests(gateway: Gateway) -> int:
    return sum(row["requests"] for row in gateway.get("/energy/workflows")["workflows"])


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits can be set on Linux alone")
def test_a_full_disk(engine: Engine, gpu: Any, make_gateway: Any) -> None:
    gateway: Gateway = make_gateway(config(engine), env=gpu.env)
    gpu.set_power_w(0, POWER_W)
    ids = ask(gateway, 3)
    gateway.request_of_id(ids[0])
    before = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (32768, before[1]))  # no file may grow beyond
    try:
        ids += ask(gateway, 20)
        until(lambda: failing(gateway))
        assert gateway.metric("joulegate_ledger_writable") == 0
        ids += ask(gateway, 20)
        until(lambda: gateway.metric("joulegate_ledger_waiting_requests") >= 40)
        assert residual_uj(gateway.balance()[GPU]) == 0
    finally:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, before)
    until(lambda: well(gateway))
    found = [gateway.request_of_id(one) for one in ids]
    assert {one["outcome"] for one in found} == {"ok"}, "not a receipt is missing"
    books = books_are_closed(gateway, gpu)
    assert sum(uj(one["joules"]) for one in found) == uj(books["workflow_j"]) == workflow_uj(gateway)
    assert books["gap_j"] == 0 and gateway.metric("joulegate_ledger_dropped_requests_total") == 0
    said = gateway.log()
    assert said.count("the ledger cannot be written") == said.count("the ledger can be written again") == 1


def test_a_locked_ledger_and_more_requests_than_may_wait(engine: Engine, gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with running(Gateway(config(engine, path=str(path), buffer_requests=20), tmp_path, gpu.env)) as gateway:
        gpu.set_power_w(0, POWER_W)
        ask(gateway, 5)
        until(lambda: requests(gateway) == 5)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(3):
                ask(gateway, 20)
                until(lambda: gateway.metric("joulegate_ledger_backlog") > 1)
            assert "locked" in until(lambda: failing(gateway))
            until(lambda: gateway.metric("joulegate_ledger_dropped_requests_total") >= 20)
            until(lambda: gateway.metric("joulegate_ledger_waiting_requests") <= 20)
        until(lambda: well(gateway))
        until(lambda: requests(gateway) == 65)
        books = books_are_closed(gateway, gpu)
        assert workflow_uj(gateway) == uj(books["workflow_j"]), "joules of what was dropped are in the totals"
        with contextlib.closing(sqlite3.connect(path)) as db:
            kept = db.execute("SELECT count(*) FROM requests").fetchone()[0]
            dropped, dropped_uj = db.execute("SELECT sum(requests), sum(uj) FROM dropped").fetchone()
        assert kept + dropped == 65 and dropped == gateway.metric("joulegate_ledger_dropped_requests_total")
        assert dropped_uj == uj(gateway.metric("joulegate_ledger_dropped_joules_total")) > 0


def test_a_damaged_ledger_and_a_new_one_in_its_place(engine: Engine, gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    gateway = Gateway(config(engine), tmp_path, gpu.env)
    with running(gateway):
        gpu.set_power_w(0, POWER_W)
        ask(gateway, 5, "before")
        until(lambda: requests(gateway) == 5)
        body = chat_body(max_tokens=2000, stream=True)
        head = {"x-workflow-name": "across", "x-workflow-id": "across"}
        with gateway.http.stream("POST", "/v1/chat/completions", json=body, headers=head) as across:
            lines = across.iter_lines()
            next(lines)
            until(lambda: gateway.http.get("/energy/runs/across").status_code == 200)
            path.rename(tmp_path / "old.sqlite")
            path.write_bytes(b"this is no database, whatever its name says " * 500)
            assert "move it away" in until(lambda: failing(gateway))
            ask(gateway, 10, "meanwhile")
            assert gateway.http.get("/energy/workflows").json()["error"]["code"] == "ledger_unavailable"
            path.rename(tmp_path / "damaged.sqlite")
            until(lambda: well(gateway))
            across.close()
        until(lambda: requests(gateway) == 11)
        rows = {row["workflow"]: row for row in gateway.get("/energy/workflows")["workflows"]}
        assert rows["meanwhile"]["requests"] == 10 and rows["across"]["cancelled"] == 1 and "before" not in rows
        assert rows["across"]["joules"] > 0
        books_are_closed(gateway, gpu)
        told = gateway.ledger()["devices"][GPU]
        assert uj(told["workflow_j"]) == workflow_uj(gateway)
    old = joulegate("energy", "--ledger", str(tmp_path / "old.sqlite"), env=gateway.env)
    assert old.returncode == 0 and "before" in old.stdout, "what was moved away is whole"


def test_kill_9_at_any_moment_leaves_closed_books(engine: Engine, gpu: Any, tmp_path: Path) -> None:
    """What was once told as settled is in the books for good; what nobody had time to write is a gap."""
    moments, told = random.Random(5), {}
    gateway = Gateway(config(engine), tmp_path, gpu.env)

    def load(over: threading.Event) -> None:
        head = {"x-workflow-name": "killed", "x-workflow-id": "one"}
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=gateway.url, timeout=60) as http:
            while not over.is_set():
                body = chat_body(max_tokens=20, stream=True)
                reply = http.post("/v1/chat/completions", json=body, headers=head)
                request_id = reply.headers["x-joulegate-request-id"]
                while (found := http.get(f"/energy/requests/{request_id}")).status_code != 200 or (
                    not found.json()["settled"]
                ):
                    time.sleep(0.1)
                told[request_id] = found.json()["joules"]

    for _ in range(ROUNDS):
        gateway.start()
        gpu.set_power_w(0, POWER_W)
        over = threading.Event()
        clients = [threading.Thread(target=load, args=(over,)) for _ in range(3)]
        for client in clients:
            client.start()
        time.sleep(moments.uniform(0.5, 4.0))
        gateway.kill()
        over.set()
        for client in clients:
            client.join()
    with running(gateway):
        assert {one: gateway.request_of_id(one)["joules"] for one in told} == told
        books = books_are_closed(gateway, gpu)
        assert books["gap_j"] > 0 and workflow_uj(gateway) == uj(books["workflow_j"])


def test_what_is_old_is_forgotten_and_stays_in_the_totals(engine: Engine, gpu: Any, tmp_path: Path) -> None:
    gateway = Gateway(config(engine), tmp_path, gpu.env)
    with running(gateway):
        gpu.set_power_w(0, POWER_W)
        (first, *_) = ask(gateway, 12)
        gateway.request_of_id(first)
        books_are_closed(gateway, gpu)
        before = gateway.ledger()
    short = {"path": str(tmp_path / "ledger.sqlite"), "retain_days": 1e-6, "retain_windows_days": 1e-6}
    gateway.configure(config(engine) | {"ledger": short})
    with running(gateway):
        until(lambda: gateway.http.get(f"/energy/requests/{first}").status_code == 404)
        until(lambda: gateway.get("/energy/runs")["runs"] == [])
        after = gateway.ledger()
        assert after["workflows"] == before["workflows"]
        assert after["devices"][GPU]["workflow_j"] == before["devices"][GPU]["workflow_j"]
        assert residual_uj(gateway.balance()[GPU]) == 0
        ask(gateway, 1)
