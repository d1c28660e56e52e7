"""The acceptance of the energy accounting: every joule is somewhere, once, and everybody says the same."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from stage import Engine, Gateway, chat_body, joulegate, residual_uj, running, uj, until

from proxy.energy.ledger_reader import LedgerReader

GPU, IDLE_W, BUSY_W = "local/gpu:0", 90.0, 420.0
RUNS = {"search": 4, "coding": 3}  # workflow -> concurrent runs


def work(gateway: Gateway) -> dict[str, list[str]]:
    """Two workflows with several runs at once, streamed and not, some of it cancelled; returns request ids by run."""
    runs = {f"{workflow}-{n}": workflow for workflow, count in RUNS.items() for n in range(count)}
    with ThreadPoolExecutor(len(runs)) as pool:
        ids = dict(zip(runs, pool.map(lambda run: one_run(gateway, run, runs[run]), runs), strict=True))
    until(gateway.idle)
    return ids


def one_run(gateway: Gateway, run: str, workflow: str) -> list[str]:
    ids: list[str] = []
    for n, (stream, tokens) in enumerate([(True, 80), (False, 40), (True, 20), (False, 60)]):
        headers = {"x-workflow-id": run, "x-workflow-name": workflow, "x-workflow-step": f"step-{n % 2}"}
        body = chat_body(max_tokens=tokens, stream=stream, content="word " * 50)
        with gateway.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as reply:
            ids.append(reply.headers["x-joulegate-request-id"])
            reply.read()
    cancelled = chat_body(max_tokens=100_000, stream=True)
    headers = {"x-workflow-id": run, "x-workflow-name": workflow, "x-workflow-step": "given-up"}
    with gateway.http.stream("POST", "/v1/chat/completions", json=cancelled, headers=headers) as reply:
        ids.append(reply.headers["x-joulegate-request-id"])
        for seen, _ in enumerate(reply.iter_lines()):
            if seen == 30:
                break
    gateway.http.post(f"/energy/runs/{run}/close").raise_for_status()
    return ids


@dataclass
class Meter:
    """What a GPU really drew over time, read past the gateway: (Unix seconds, microjoules)."""

    play: Any
    samples: list[tuple[float, float]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def follow(self, busy: Callable[[], bool]) -> None:
        """Sample, and let the GPU draw more while the engine works."""
        while not self.over.wait(0.01):
            self.play.set_power_w(0, BUSY_W if busy() else IDLE_W)
            self.samples.append((time.time(), self.play.drawn_uj()))

    def drawn_uj(self, intervals: list[tuple[float, float]]) -> float:
        """Drawn within these intervals, each reading's step spread evenly."""
        total = 0.0
        for (t0, before), (t1, after) in pairwise(self.samples):
            inside = sum(max(0.0, min(t1, end) - max(t0, begin)) for begin, end in intervals)
            total += (after - before) * inside / (t1 - t0)
        return total


def merged(log: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """The times when the engine had any request."""
    out: list[tuple[float, float]] = []
    for begin, end in sorted((served["began"], served["ended"]) for served in log):
        if out and begin <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((begin, end))
    return out


@dataclass
class Scene:
    gateway: Gateway
    engine: Engine
    play: Any
    ids: dict[str, list[str]]
    moved_uj: int  # by the counter, from before the gateway began until all was over
    busy_uj: float  # drawn while the engine had a request


@pytest.fixture(scope="module")
def scene(nvml_library: Path, nvml_play: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The work done and settled, and the GPU at 0 W, so that nothing moves while we look."""
    folder, engine = tmp_path_factory.mktemp("books"), Engine("stub-7b", step_ms=5)
    play = nvml_play.NvmlPlay(nvml_library, folder / "nvml.state")
    still(play)
    before_uj = play.counter_uj()
    config = {"engines": [{"name": "e1", "kind": "vllm", "url": engine.url, "devices": [GPU]}]}
    with running(Gateway(config, folder, play.env)) as gateway:
        until(lambda: gateway.get("/energy/engines")["engines"][0]["sample"])
        meter = Meter(play)
        follower = threading.Thread(target=meter.follow, args=(lambda: not gateway.idle(),))
        follower.start()
        try:
            ids = work(gateway)
        finally:
            meter.over.set()
            follower.join()
        still(play)
        for run in ids:
            gateway.run(run)
        until(lambda: gateway.balance()[GPU]["open_j"] == 0)
        yield Scene(gateway, engine, play, ids, play.counter_uj() - before_uj, meter.drawn_uj(merged(engine.log())))
    engine.close()


def still(play: Any) -> None:
    """Draw nothing any more, and wait until the counter has shown everything that was drawn."""
    play.set_power_w(0, 0)
    until(lambda: play.drawn_uj() - play.counter_uj() < 1000)


def test_every_joule_of_the_counter_is_somewhere_once(scene: Scene) -> None:
    (books,) = scene.gateway.balance().values()
    assert books["quality"] == "measured"
    assert uj(books["counter_j"]) == scene.moved_uj > 0
    assert residual_uj(books) == uj(books["residual_j"]) == 0
    assert books["gap_j"] == books["open_j"] == 0


def test_most_joules_of_the_times_with_work_are_in_receipts(scene: Scene) -> None:
    (books,) = scene.gateway.balance().values()
    requests = [request for run in scene.ids for request in scene.gateway.run(run)["requests"]]
    assert sum(uj(request["joules"]) for request in requests) == uj(books["workflow_j"])
    assert uj(books["workflow_j"]) >= 0.8 * scene.busy_uj > 0


def test_every_run_has_its_own_requests_with_joules(scene: Scene) -> None:
    for run, ids in scene.ids.items():
        figures = scene.gateway.run(run)
        assert (figures["workflow"], figures["state"]) == (run.partition("-")[0], "final")
        assert [request["id"] for request in figures["requests"]] == ids
        assert [r["outcome"] for r in figures["requests"]] == ["ok"] * 4 + ["cancelled"]
        assert [r["output_tokens"] for r in figures["requests"][:4]] == [80, 40, 20, 60]
        for request in figures["requests"]:
            assert 0 < request["joules_low"] <= request["joules"] <= request["joules_high"]
            assert request["quality"] == "attributed"
        assert sum(uj(request["joules"]) for request in figures["requests"]) == uj(figures["joules"])


def test_metrics_ledger_and_api_agree(scene: Scene) -> None:
    agree(scene.gateway)


def test_the_command_line_tells_the_same(scene: Scene) -> None:
    told = scene.gateway.ledger()
    workflows, balance = scene.gateway.get("/energy/workflows")["workflows"], scene.gateway.balance()
    assert by_key(told["devices"], told["workflows"]) == by_key(balance, workflows)


def test_the_engine_made_no_tokens_that_nobody_asked_for(scene: Scene) -> None:
    (books,) = scene.gateway.balance().values()
    assert books["foreign_j"] == 0


def test_cancelled_work_is_waste(scene: Scene) -> None:
    cancelled = [r for run in scene.ids for r in scene.gateway.run(run)["requests"] if r["outcome"] == "cancelled"]
    assert len(cancelled) == sum(RUNS.values())
    wasted = scene.gateway.metric("joulegate_waste_joules_total", reason="cancelled")
    assert uj(wasted) == sum(uj(request["joules"]) for request in cancelled) > 0


def test_the_counter_read_by_itself_agrees_while_it_runs(scene: Scene) -> None:
    """What the gateway says lies between two readings, less what it may not have read yet: one interval."""
    gateway, play = scene.gateway, scene.play
    origin_uj = play.counter_uj() - uj(gateway.balance()[GPU]["counter_j"])
    play.set_power_w(0, IDLE_W)
    try:
        seen: set[int] = set()
        while len(seen) < 4:
            low_uj = play.counter_uj()
            booked_uj = origin_uj + until(partial(fresh, gateway, low_uj - origin_uj))
            assert low_uj <= booked_uj <= play.counter_uj()
            seen.add(booked_uj)
    finally:
        still(play)


def fresh(gateway: Gateway, at_least_uj: int) -> int | None:
    counter_uj = uj(gateway.balance()[GPU]["counter_j"])
    return counter_uj if counter_uj >= at_least_uj else None


def test_an_estimate_is_booked_as_carefully(engine: Engine, make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway({"engines": [{"name": "e1", "kind": "vllm", "url": engine.url}]})
    ids = work(gateway)
    requests = [request for run in ids for request in gateway.run(run)["requests"]]
    assert {request["id"] for request in requests} == {one for run in ids.values() for one in run}
    assert {request["quality"] for request in requests} == {"estimated"}
    assert all(request["joules"] > 0 for request in requests)
    (books,) = gateway.balance().values()
    assert books["quality"] == "estimated" and books["gap_j"] == 0
    assert residual_uj(books) == 0
    agree(gateway)


@pytest.mark.scripted
def test_what_the_prefix_cache_saved_is_told_alike_and_is_in_no_sum(
    make_gateway: Callable[..., Gateway], engine: Engine, nvml: Any
) -> None:
    nvml.set_power_w(0, 300)
    gateway = make_gateway({"engines": [{"name": "e1", "kind": "vllm", "url": engine.url}]}, env=nvml.env)
    body = chat_body(content="word " * 500, max_tokens=20, stub={"cached": 400})
    tags = {"x-workflow-id": "r1", "x-workflow-name": "search"}
    replies = [
        gateway.http.post("/v1/chat/completions", json={**body, "stream": s}, headers=tags) for s in (False, True)
    ]
    gateway.chat(tags, max_tokens=2).raise_for_status()
    run = gateway.run("r1")
    requests = [gateway.request(reply) for reply in replies]
    assert [request["cached_tokens"] for request in requests] == [400, 400]
    assert [request["saved_quality"] for request in requests] == ["estimated"] * 2, "no price is fitted yet"
    assert requests[0]["saved_joules"] == requests[1]["saved_joules"] > 0
    saved_j = 2 * requests[0]["saved_joules"]
    (row,) = gateway.get("/energy/workflows")["workflows"]
    (told,) = gateway.ledger()["workflows"]
    for figures in (run, row, told, gateway.get("/energy/runs")["runs"][0]):
        assert (figures["saved_joules"], figures["saved_quality"]) == (pytest.approx(saved_j, abs=1e-9), "estimated")
    assert uj(row["joules"]) == sum(uj(request["joules"]) for request in run["requests"])
    metric = gateway.metric("joulegate_saved_joules_total", workflow="search", quality="estimated")
    assert uj(metric) == uj(saved_j)
    assert "were not spent, by a price that is not fitted" in joulegate(
        "energy", "-c", str(gateway.file), env=gateway.env
    ).stdout.replace("\n", " ")


SHARES = ("workflow", "idle", "foreign", "gap")


def agree(gateway: Gateway) -> None:
    """Metrics, ledger and API tell the same joules, to the millijoule, by device's share and by workflow."""
    told, metrics, booked = until(lambda: one_moment(gateway))
    assert metrics == {key: pytest.approx(joules, abs=1e-3) for key, joules in told.items()}
    assert booked == {key: pytest.approx(joules, abs=1e-3) for key, joules in told.items()}
    assert {name for kind, name in told if kind == "workflow"} == RUNS.keys()


def one_moment(gateway: Gateway) -> tuple[dict[Any, float], dict[Any, float], dict[Any, float]] | None:
    """API, metrics and ledger between two commits, so that they speak of the same; null when one came between."""
    before = by_key(gateway.balance(), gateway.get("/energy/workflows")["workflows"])
    samples = gateway.metrics()
    metrics = dict.fromkeys(before, 0.0)
    for (name, labels), joules in samples.items():
        label = dict(labels)
        if name == "joulegate_device_energy_joules_total":
            metrics[f"{label['host']}/{label['device']}", label["share"]] += joules
        if name == "joulegate_workflow_energy_joules_total":
            metrics["workflow", label["workflow"]] += joules
    reader = LedgerReader(gateway.folder / "ledger.sqlite")
    booked = by_key(reader.balance(), reader.workflows())
    after = by_key(gateway.balance(), gateway.get("/energy/workflows")["workflows"])
    return (after, metrics, booked) if before == after else None


def by_key(devices: Any, workflows: Any) -> dict[Any, float]:
    parts = {(name, share): books[f"{share}_j"] or 0.0 for name, books in devices.items() for share in SHARES}
    return parts | {("workflow", row["workflow"]): row["joules"] for row in workflows}
