"""Three faults, and after each of them closed books: every joule that the counters moved is in one place, once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from emulated import MODEL, EmulatedHost
from stage import Engine, Gateway, chat_body, residual_uj, running, uj, until

GPU = "local/gpu:0"
PARTS = ("workflow_j", "idle_j", "foreign_j", "gap_j")


@contextmanager
def load(gateway: Gateway, model: str = "stub-7b", clients: int = 3, tokens: int = 40) -> Iterator[None]:
    """Some clients that ask one thing after the other, streamed and not, whatever becomes of it."""
    over = Event()

    def one(number: int) -> None:
        tags = {"x-workflow-id": f"run-{number}", "x-workflow-name": "load", "x-workflow-step": f"step-{number % 2}"}
        body = chat_body(model, max_tokens=tokens, stream=number % 2 == 0)
        with httpx.Client(base_url=gateway.url, timeout=30) as client:
            while not over.is_set():
                try:
                    client.post("/v1/chat/completions", json=body, headers=tags)
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


def worked(gateway: Gateway, joules: float, device: str = GPU) -> None:
    """Wait until so much more of a device's counter is settled on requests."""
    before = gateway.balance()[device]["workflow_j"]
    until(lambda: gateway.balance()[device]["workflow_j"] >= before + joules)


def closed(gateway: Gateway, devices: set[str]) -> dict[str, Mapping[str, Any]]:
    """The books of these devices, once nothing is open: they balance here, in the ledger, and in the metrics."""
    until(gateway.idle)
    until(lambda: not any(gateway.balance()[name]["open_j"] for name in devices))
    books = {name: entry for name, entry in gateway.balance().items() if name in devices}
    assert set(books) == devices
    for name, entry in books.items():
        assert entry["residual_j"] == 0 == residual_uj(entry), (name, entry)
        assert min(entry[part] or 0 for part in PARTS) >= 0
    assert all(entry["residual_j"] == 0 for entry in gateway.ledger()["devices"].values())
    requests = [one for run in gateway.get("/energy/runs")["runs"] for one in gateway.run(run["run"])["requests"]]
    in_books = sum(uj(entry["workflow_j"]) for entry in gateway.balance().values())
    workflows = gateway.get("/energy/workflows")["workflows"]
    assert sum(uj(one["joules"] or 0) for one in workflows) == in_books
    assert sum(uj(one["joules"] or 0) for one in requests) == in_books, "of three runs, one segment each"
    return books


def test_a_counter_that_is_lost_for_five_seconds(
    make_gateway: Callable[..., Gateway], make_engine: Callable[..., Engine], nvml: Any
) -> None:
    """The GPU falls off the bus and comes back; it has worked all the time, and its counter has counted."""
    nvml.set_power_w(0, 300)
    engines = [{"name": "e1", "kind": "vllm", "url": make_engine().url, "devices": [GPU]}]
    gateway = make_gateway({"engines": engines}, env=nvml.env)
    with load(gateway):
        worked(gateway, 300)
        first_uj = nvml.counter_uj()
        nvml.lose(0)
        lost_uj = nvml.counter_uj()
        until(lambda: nvml.counter_uj() - lost_uj > 300e6 * 5.3)
        nvml.lose(0, lost=False)
        gap = until(lambda: gateway.balance()[GPU]["gap_j"])
        worked(gateway, 300)
    nvml.set_power_w(0, 0)
    books = closed(gateway, {GPU})[GPU]
    assert gap == books["gap_j"] >= 300 * 5
    assert books["gap_j"] * 1e6 <= nvml.counter_uj() - first_uj
    assert books["foreign_j"] in (None, 0.0)
    assert "cannot be read" in gateway.log() and "can be read again" in gateway.log()
    assert books["workflow_j"] >= 600 and books["counter_j"] * 1e6 <= nvml.counter_uj()


def test_an_engine_that_restarts(
    make_gateway: Callable[..., Gateway], make_engine: Callable[..., Engine], nvml: Any
) -> None:
    """It dies under streams, and another one takes its place whose counters begin at nothing."""
    nvml.set_power_w(0, 300)
    engine = make_engine()
    engines = [{"name": "e1", "kind": "vllm", "url": engine.url, "devices": [GPU]}]
    gateway = make_gateway({"engines": engines, "breaker": {"open_seconds": 0.2}}, env=nvml.env)
    with load(gateway):
        worked(gateway, 300)
        engine.kill()
        until(lambda: gateway.metric("joulegate_requests_total", outcome="failed"))
        until(lambda: not gateway.get("/energy/engines")["engines"][0]["up"])
        successor = Engine("stub-7b", 5, engine.port)
        try:
            worked(gateway, 600)
        finally:
            made = gateway.metric("joulegate_workflow_tokens_total", kind="output")
    try:
        nvml.set_power_w(0, 0)
        books = closed(gateway, {GPU})[GPU]
    finally:
        successor.close()
    assert made > 0 and books["foreign_j"] in (None, 0.0), "what the successor counts is not another's"
    assert books["gap_j"] == 0
    (workflow,) = gateway.get("/energy/workflows")["workflows"]
    assert workflow["failed"] > 0 and workflow["joules_wasted"] > 0, "who was cut off keeps his joules"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[EmulatedHost]:
    host = EmulatedHost(tmp_path)
    yield host
    host.stop()


def test_a_gateway_that_is_killed(host: EmulatedHost, tmp_path: Path) -> None:
    """Two GPUs, a processor and its memory go on counting; the next gateway takes the books up where they were."""
    devices = set(host.config["engines"][0]["devices"])
    before_mj = host.zeus.get_gpu_energy([0, 1])
    (folder := tmp_path / "gateway").mkdir()
    gateway = Gateway(host.config, folder).start()
    with load(gateway, MODEL, tokens=400):
        worked(gateway, 300, "emulated/gpu:0")
        settled = {one["workflow"]: one["joules"] for one in gateway.get("/energy/workflows")["workflows"]}
        gateway.kill()
    with running(gateway):
        for name in devices:
            assert gateway.balance()[name]["gap_j"] > 0
        with load(gateway, MODEL, tokens=100):
            worked(gateway, 300, "emulated/gpu:0")
        books = closed_over_segments(gateway, devices)
        after_mj = host.zeus.get_gpu_energy([0, 1])
        for n, name in enumerate(("emulated/gpu:0", "emulated/gpu:1")):
            assert books[name]["counter_j"] <= (after_mj[n] - before_mj[n]) / 1000
        (workflow,) = gateway.get("/energy/workflows")["workflows"]
        assert workflow["joules"] > settled["load"] and "orphaned" in workflow["wasted_by_reason"]


def closed_over_segments(gateway: Gateway, devices: set[str]) -> dict[str, Mapping[str, Any]]:
    """As `closed`; runs that go on after a kill have several segments, of which the API shows the last alone."""
    until(gateway.idle)
    until(lambda: not any(gateway.balance()[name]["open_j"] for name in devices))
    books = gateway.balance()
    for entry in books.values():
        assert entry["residual_j"] == 0 == residual_uj(entry)
    workflows = gateway.get("/energy/workflows")["workflows"]
    assert sum(uj(one["joules"] or 0) for one in workflows) == sum(uj(entry["workflow_j"]) for entry in books.values())
    assert all(entry["residual_j"] == 0 for entry in gateway.ledger()["devices"].values())
    return books
