"""The benchmark itself, end to end with tiny counts: every figure is there, and nothing that it started stays."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from benchmarks.bars import check, summarize
from benchmarks.load import Chat, Reply, gaps_s, quantile
from benchmarks.measure import Plan, Turn
from benchmarks.proxy import Bench, publish
from benchmarks.targets import DIRECT, GATEWAY, LITELLM, PROXIES, ROUTER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CPU clocks of other processes are Linux's alone")

TINY = Plan(
    "tiny",
    rounds=1,
    lone_requests=10,
    requests=40,
    streams=8,
    paced_tokens=4,
    wave_streams=10,
    wave_tokens=3,
    wave_itl_ms=30,
    soak_requests=40,
    soak_first=20,
    clients=4,
    tokens=8,
    paced_streams=4,
    drain_s=0.05,
)
FIGURES = {
    *("cpu_us_request", "cpu_us_chunk", "cpu_us_paced_chunk", "requests_s", "chunks_s", "rss_mib", "failures"),
    *("latency_p50_ms", "latency_p99_ms", "busy_latency_p50_ms", "busy_latency_p99_ms", "itl_p50_ms", "itl_p99_ms"),
}
ADDED = {"added_latency_p50_ms", "added_latency_p99_ms", "added_itl_p50_ms", "added_itl_p99_ms"}


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_a_tiny_run_writes_every_figure_and_leaves_nothing(tmp_path: Path) -> None:
    before = children()
    # The gateway alone: peers are not installed everywhere, and slow to start where they are.
    publish(Bench(TINY, PROXIES[:1], Console(quiet=True)).run(), tmp_path, Console(quiet=True))
    assert children() == before

    (written,) = tmp_path.glob("*.json")
    result = json.loads(written.read_text())
    assert set(result["figures"]) == {DIRECT, GATEWAY}
    assert set(result["figures"][DIRECT]) == FIGURES
    assert set(result["figures"][GATEWAY]) == FIGURES | ADDED
    for name, figures in result["figures"].items():
        assert figures["failures"] == 0
        assert all(figures[figure] > 0 for figure in ("requests_s", "chunks_s", "latency_p50_ms", "itl_p99_ms")), name
    assert len(result["rounds"][GATEWAY]) == TINY.rounds
    assert len(result["waves"]["peak_mib"]) == 3 and result["waves"]["failures"] == []
    assert len(result["soak"]["rss_mib"]) == 2 and result["soak"]["requests"] == 40
    assert all(bar["met"] is not None for bar in result["bars"] if "LiteLLM" not in bar["what"])
    assert {"cpu", "cores", "kernel", "python", "libraries", "memory_gib"} <= set(result["machine"])
    assert set(result["versions"]) == {DIRECT, GATEWAY}
    assert written.with_suffix(".svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_what_it_started(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.proxy", "--quick", "--no-peers", "--out", str(tmp_path)]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    bench = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        started: list[psutil.Process] = []
        deadline = time.monotonic() + 30
        while len(started) < 2 and time.monotonic() < deadline:  # the stub engine and the gateway
            assert bench.poll() is None
            started = psutil.Process(bench.pid).children(recursive=True)
            time.sleep(0.05)
        assert len(started) == 2
        bench.send_signal(number)
        assert bench.wait(30) != 0
        gone, left = psutil.wait_procs(started, timeout=5)
        assert not left and len(gone) == 2
        assert list(tmp_path.iterdir()) == []
    finally:
        bench.kill()
        bench.wait()


def test_bars_compare_with_the_router_where_it_was_measured_and_with_the_stub_where_not() -> None:
    def turn(cpu_us: float, latency_ms: float = 1.0) -> Turn:
        return dict.fromkeys(FIGURES, latency_ms) | {"cpu_us_request": cpu_us, "cpu_us_chunk": cpu_us, "failures": 0.0}

    turns = {DIRECT: [turn(50.0)], GATEWAY: [turn(150.0, 1.5)], ROUTER: [turn(100.0)], LITELLM: [turn(9000.0)]}
    bars = {bar.what: bar for bar in check(summarize(turns), None, None)}
    assert bars["CPU a request, times vllm-router's"].value == 1.5
    assert bars["CPU a request, times vllm-router's"].met is True
    assert bars["CPU a streamed chunk, times vllm-router's"].met is False
    assert bars["CPU a request, times LiteLLM's"].met is True  # 1/60
    assert bars["CPU a streamed chunk, times LiteLLM's"].met is False
    assert bars["added latency, one client, p50 (ms)"].value == 0.5
    assert bars["RSS a stream (kB)"].met is None

    del turns[ROUTER], turns[LITELLM]
    bars = {bar.what: bar for bar in check(summarize(turns), None, None)}
    assert bars["CPU a request, times the stub's"].value == 3.0
    assert bars["CPU a request, times LiteLLM's"].met is None


def test_what_is_added_is_compared_within_a_round() -> None:
    def turn(latency_ms: float) -> Turn:
        return dict.fromkeys(FIGURES, 0.0) | {"latency_p50_ms": latency_ms}

    # The machine was slow in the second round: what the gateway adds is 1 ms all the same.
    turns = {DIRECT: [turn(1.0), turn(5.0), turn(2.0)], GATEWAY: [turn(2.0), turn(6.0), turn(3.0)]}
    assert summarize(turns)[GATEWAY]["added_latency_p50_ms"] == 1.0


def test_a_request_is_as_long_as_it_says() -> None:
    head, _, body = Chat("stub", "key", True, 8, 20.0).next().partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    asked = json.loads(body)
    assert asked["stream_options"] == {"include_usage": True} and "itl_ms=20 " in asked["messages"][0]["content"]


def test_no_two_phases_name_the_same_run() -> None:
    def named(chat: Chat) -> set[bytes]:
        return {chat.next().partition(b"x-workflow-id: ")[2].partition(b"\r\n")[0] for _ in range(8)}

    first, second = (named(Chat("stub", "key", False, 8)) for _ in range(2))
    assert len(first) == len(second) == 2 and not first & second


def test_gaps_stop_at_the_last_token() -> None:
    reply = Reply(0.0, arrivals=[0.0, 0.02, 0.05, 0.0501])
    assert gaps_s([reply], tokens=2) == pytest.approx([0.02, 0.03])


def test_quantiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(100)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([3.0], 0.99)) == (50.0, 99.0, 3.0)
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)
