"""What the gateway recorded, attributed offline, says what its ledger says."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live import LiveEngine
from stage import Gateway, chat_body, joulegate, uj, until

GPU = "local/gpu:0"
RUNS = {"search": (40, 60), "coding": (400, 200)}  # words of the prompt, tokens of the answer
PARTS = ("idle_j", "foreign_j", "gap_j", "residual_j")


@pytest.fixture
def gateway(live_engine: LiveEngine, make_gateway: Callable[..., Gateway], nvml: Any) -> Gateway:
    nvml.set_power_w(0, 300)
    config = {"engines": [live_engine.named(devices=[GPU])], "energy": {"record": "trace.jsonl.gz", "record_mb": 5}}
    return make_gateway(config, nvml.env)


def work(gateway: Gateway, model: str) -> list[str]:
    """Runs of two workflows at once, streamed and not, and one call that is given up; returns the runs."""

    def one_run(run: str) -> None:
        words, tokens = RUNS[run.partition("-")[0]]
        headers = {"x-workflow-id": run, "x-workflow-name": run.partition("-")[0]}
        for stream in (True, False, True):
            body = chat_body(model, content="word " * words, max_tokens=tokens, stream=stream, ignore_eos=True)
            assert gateway.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        body = chat_body(model, max_tokens=1000, stream=True, ignore_eos=True)
        with gateway.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as reply:
            for seen, _ in enumerate(reply.iter_lines()):
                if seen == 20:
                    break
        gateway.http.post(f"/energy/runs/{run}/close").raise_for_status()

    runs = [f"{workflow}-{n}" for workflow in RUNS for n in range(2)]
    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(one_run, runs))
    until(gateway.idle)
    return runs


def test_a_recorded_trace_tells_offline_what_the_books_tell(gateway: Gateway, live_engine: LiveEngine) -> None:
    assert "recording a trace in trace.jsonl.gz" in gateway.said()
    runs = work(gateway, live_engine.model)
    settled = [gateway.run(run) for run in runs]
    gateway.stop()
    done = joulegate("attribute", str(gateway.folder / "trace.jsonl.gz"), "--json", env=gateway.env)
    assert done.returncode == 0, done.stderr
    (scenario,) = json.loads(done.stdout)["scenarios"].values()
    of_requests = {name: uj(joules) for name, joules in scenario["by_request"].items()}
    assert sum(of_requests.values()) + sum(uj(scenario[part]) for part in PARTS) == uj(scenario["counter_j"])
    assert scenario["residual_j"] == scenario["gap_j"] == 0
    booked = {one["id"]: one for run in settled for one in run["requests"]}
    assert set(of_requests) == set(booked) and len(booked) == 4 * len(runs)
    for workflow in RUNS:
        sums = scenario["by_class"][workflow]
        live_j = sum(run["joules"] for run in settled if run["workflow"] == workflow)
        assert sums["joules"] == pytest.approx(live_j, rel=0.15)
        assert sums["requests"] == 8
