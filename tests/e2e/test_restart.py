"""A gateway that dies at work: the next one finds the books in order, and what it missed is a gap."""

import signal
import threading
from typing import Any

import httpx
import pytest
from stage import Engine, Gateway, chat_body, residual_uj, running, uj, until

from proxy.energy.ledger_reader import LedgerReader

GPU = "local/gpu:0"


def test_kill_9_under_load(nvml: Any, make_engine: Any, tmp_path: Any) -> None:
    engine: Engine = make_engine()
    nvml.set_power_w(0, 0)
    before_uj = until(lambda: stands(nvml))
    config = {"engines": [{"name": "e1", "kind": "vllm", "url": engine.url, "devices": [GPU]}]}
    gateway = Gateway(config, tmp_path, nvml.env).start()
    nvml.set_power_w(0, 400)

    def load() -> None:
        try:
            for _ in range(1000):
                gateway.chat({"x-workflow-id": "long", "x-workflow-name": "load"}, max_tokens=30, stream=True)
        except httpx.HTTPError:
            pass

    clients = [threading.Thread(target=load) for _ in range(4)]
    for client in clients:
        client.start()
    settled = until(lambda: [w for w in gateway.get("/energy/workflows")["workflows"] if (w["joules"] or 0) > 100])
    gateway.kill()
    for client in clients:
        client.join()
    # Nobody reads the counter meanwhile; it goes on.
    nvml.add_energy_uj(0, 5_000_000)
    nvml.set_power_w(0, 0)

    with running(gateway):
        books = gateway.balance()[GPU]
        assert residual_uj(books) == uj(books["residual_j"]) == 0
        assert books["workflow_j"] > 100
        until(lambda: gateway.balance()[GPU]["open_j"] == 0)
        shown = until(lambda: stands(nvml))
        books = gateway.balance()[GPU]
        assert uj(books["counter_j"]) == shown - before_uj, "not a joule is missing over the two lives"
        assert residual_uj(books) == 0 and books["gap_j"] >= 5

        (load_row,) = gateway.get("/energy/workflows")["workflows"]
        assert load_row["joules"] >= settled[0]["joules"]
        run = gateway.get("/energy/runs/long")
        assert sum(uj(request["joules"] or 0) for request in run["requests"]) == uj(run["joules"])
        assert (run["state"], run["settled"]) == ("final", True), "nobody will ever add to it"
        # The next request of that name is another segment.
        segment = run["segment"]
        gateway.chat({"x-workflow-id": "long", "x-workflow-name": "load"}, max_tokens=2)
        assert gateway.run("long")["segment"] == segment + 1
    told = gateway.ledger()["devices"][GPU]
    assert told["residual_j"] == 0 and uj(told["counter_j"]) == shown - before_uj


@pytest.mark.scripted
def test_what_a_killed_gateway_had_in_flight_is_orphaned(nvml: Any, make_engine: Any, tmp_path: Any) -> None:
    nvml.set_power_w(0, 300)
    engines = [{"name": "e1", "kind": "vllm", "url": make_engine().url, "devices": [GPU]}]
    # Windows are settled while the stream runs, so that there are joules in the ledger that nobody has an answer for.
    gateway = Gateway({"engines": engines, "energy": {"settle": 0.2}}, tmp_path, nvml.env).start()
    body, run = chat_body(stream=True, max_tokens=100_000), {"x-workflow-id": "left", "x-workflow-name": "left"}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body, headers=run) as reply:
        lines = reply.iter_lines()  # kept, since with it the stream would end
        next(lines)
        until(lambda: [row for row in gateway.get("/energy/workflows")["workflows"] if (row["joules"] or 0) > 100])
        assert gateway.get("/energy/workflows")["workflows"][0]["joules_wasted"] == 0, "it may still be answered"
        gateway.kill()
    with running(gateway):
        (row,) = gateway.get("/energy/workflows")["workflows"]
        assert row["wasted_by_reason"] == {"orphaned": row["joules"]} and row["joules"] > 100
        (request,) = gateway.get("/energy/runs/left")["requests"]
        assert request["outcome"] == "orphaned" and request["wasted_by_reason"] == row["wasted_by_reason"]
        wasted = gateway.metric("joulegate_waste_joules_total", workflow="left", reason="orphaned")
        assert uj(wasted) == uj(row["joules"])


@pytest.mark.scripted
def test_a_stop_lets_requests_finish_and_closes_the_books(engine: Engine, make_gateway: Any) -> None:
    gateway: Gateway = make_gateway({"engines": [{"name": "e1", "kind": "openai", "url": engine.url}]})
    body = chat_body(max_tokens=200, stream=True)
    with gateway.http.stream("POST", "/v1/chat/completions", json=body, headers={"x-workflow-id": "last"}) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("data: ")
        gateway.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and len(rest) == 202
    assert gateway.process.wait(40) == 0
    run = LedgerReader(gateway.folder / "ledger.sqlite").run(None, "last")
    assert run and run["joules"] > 0
    assert [(r["outcome"], r["output_tokens"]) for r in run["requests"]] == [("ok", 200)]
    assert all(books["residual_j"] == 0 for books in gateway.ledger()["devices"].values())


def stands(nvml: Any) -> int | None:
    """What the counter shows, once all that was drawn is in it."""
    return nvml.counter_uj() if nvml.drawn_uj() - nvml.counter_uj() < 1000 else None
