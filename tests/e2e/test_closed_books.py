"""Faults, and after each of them closed books: every joule that the counter moved is in one place, once.

The third of them, a gateway that is killed at work, is in `test_restart`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import httpx
from stage import Engine, Gateway, chat_body, residual_uj, uj, until

GPU = "local/gpu:0"
POWER_W = 300.0


@contextmanager
def load(gateway: Gateway, clients: int = 3) -> Iterator[None]:
    """Some clients that ask one thing after the other, streamed and not, whatever becomes of it."""
    over = Event()

    def one(number: int) -> None:
        tags = {"x-workflow-id": f"run-{number}", "x-workflow-name": "load", "x-workflow-step": f"step-{number % 2}"}
        body = chat_body(max_tokens=40, stream=number % 2 == 0)
        with httpx.Client(base_url=gateway.url, timeout=30) as client:
            while not over.is_set():
                try:
                    client.post("/v1/chat/completions", json=body, headers=tags).raise_for_status()
                except httpx.HTTPError:
                    over.wait(0.1)

    threads = [Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def worked(gateway: Gateway, joules: float) -> None:
    """Wait until so much more is settled on requests."""
    before = gateway.balance()[GPU]["workflow_j"]
    until(lambda: gateway.balance()[GPU]["workflow_j"] >= before + joules)


def closed(gateway: Gateway, nvml: Any, begin_uj: int) -> dict[str, Any]:
    """The GPU's books once it is at rest: all that its counter moved, in the API, the ledger and the requests alike."""
    nvml.set_power_w(0, 0)
    shown_uj = until(lambda: nvml.counter_uj() if nvml.drawn_uj() - nvml.counter_uj() < 1000 else None)
    until(gateway.idle)
    until(lambda: uj(gateway.balance()[GPU]["counter_j"]) == shown_uj - begin_uj)
    until(lambda: gateway.balance()[GPU]["open_j"] == 0)
    books = gateway.balance()[GPU]
    assert uj(books["counter_j"]) == shown_uj - begin_uj, "by our own look at the counter"
    assert books["residual_j"] == 0 == residual_uj(books)
    assert min(books[part] or 0 for part in ("workflow_j", "idle_j", "foreign_j", "gap_j")) >= 0
    told = gateway.ledger()["devices"][GPU]
    assert told["residual_j"] == 0 and uj(told["workflow_j"]) == uj(books["workflow_j"])
    in_books = sum(uj(device["workflow_j"]) for device in gateway.balance().values())
    runs = [gateway.run(run["run"]) for run in gateway.get("/energy/runs")["runs"]]
    assert sum(uj(request["joules"] or 0) for run in runs for request in run["requests"]) == in_books
    return books


def before_work(nvml: Any) -> int:
    """What the counter shows while it stands still."""
    nvml.set_power_w(0, 0)
    return until(lambda: nvml.counter_uj() if nvml.drawn_uj() - nvml.counter_uj() < 1000 else None)


def test_a_counter_that_is_lost_for_five_seconds(
    make_gateway: Callable[..., Gateway], engine: Engine, nvml: Any
) -> None:
    """The GPU falls off the bus and comes back; it has worked all the time, and its counter has counted."""
    begin_uj = before_work(nvml)
    engines = [{"name": "e1", "kind": "vllm", "url": engine.url, "devices": [GPU]}]
    gateway = make_gateway({"engines": engines}, env=nvml.env)
    nvml.set_power_w(0, POWER_W)
    with load(gateway):
        worked(gateway, 100)
        nvml.lose(0)
        lost_uj = nvml.counter_uj()
        until(lambda: nvml.counter_uj() - lost_uj > POWER_W * 5.3 * 1e6)
        nvml.lose(0, lost=False)
        gap = until(lambda: gateway.balance()[GPU]["gap_j"])
        worked(gateway, 100)
    books = closed(gateway, nvml, begin_uj)
    assert gap == books["gap_j"] >= POWER_W * 5
    assert books["foreign_j"] in (None, 0.0) and books["workflow_j"] >= 200
    assert "cannot be read" in gateway.log() and "can be read again" in gateway.log()


def test_an_engine_that_restarts(
    make_gateway: Callable[..., Gateway], make_engine: Callable[..., Engine], nvml: Any
) -> None:
    """It dies under streams, and another one takes its place whose counters begin at nothing."""
    begin_uj = before_work(nvml)
    engine = make_engine()
    engines = [{"name": "e1", "kind": "vllm", "url": engine.url, "devices": [GPU]}]
    gateway = make_gateway({"engines": engines, "breaker": {"open_seconds": 0.2}}, env=nvml.env)
    nvml.set_power_w(0, POWER_W)
    with load(gateway):
        worked(gateway, 100)
        engine.kill()
        until(lambda: gateway.metric("joulegate_requests_total", outcome="failed"))
        until(lambda: not gateway.get("/energy/engines")["engines"][0]["up"])
        make_engine(port=engine.port)
        made = gateway.metric("joulegate_workflow_tokens_total", kind="output")
        worked(gateway, 300)
    books = closed(gateway, nvml, begin_uj)
    assert gateway.metric("joulegate_workflow_tokens_total", kind="output") > made > 0
    assert books["gap_j"] == 0 and books["foreign_j"] in (None, 0.0), "what the successor counts is not another's"
    (workflow,) = gateway.get("/energy/workflows")["workflows"]
    assert workflow["failed"] > 0 and workflow["joules_wasted"] > 0, "who was cut off keeps his joules"
