"""Real Locust, headless, against the stub."""

import asyncio
import json
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadgen.arrivals import Closed, Poisson
from loadgen.coding import Coding
from loadgen.composite import Composite
from loadgen.record import read
from loadgen.schedule import Load, Schedule, Stream
from loadgen.search import Search
from loadgen.summarize import Summarize

ROOT = Path(__file__).parents[2]


async def locust(url: str, *arguments: str, users: int = 2, until: asyncio.Event | None = None) -> tuple[int, str]:
    """Exit code and everything that Locust wrote; it is told to end when `until` is set."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "locust", "-f", "loadgen/locustfile.py", "--headless", "--host", url),
        *("-u", str(users), "-r", str(users), *arguments),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(60):
            if until is not None:
                await until.wait()
                process.terminate()
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_runs_are_complete_and_say_where_they_stand(stub: Any, tmp_path: Path) -> None:
    stats_file = tmp_path / "stats"
    arguments = ("--workload", "all", "--seed", "3", "--max-runs", "8", "--api-key", "sk-x")
    record = tmp_path / "load.jsonl"
    code, output = await locust(stub.url, *arguments, "--json-file", str(stats_file), "--record", str(record))
    assert code == 0, output
    assert "Traceback" not in output
    assert "8 runs complete, 0 failed, 0 cut off" in output

    workloads = (Coding.small(), Composite.small(), Search.small(), Summarize.small())
    schedule = Schedule(Load((Stream(workloads, Closed(2), runs=8),), seed=3))
    planned = Counter()
    while start := schedule.take(0, 0.0):
        run = schedule.plan(start)
        planned[run.workflow, frozenset((c.node, c.step, c.parents, c.max_tokens) for c in run.calls)] += 1
    arrived = Counter()
    for arrivals in stub.runs().values():
        calls = set()
        for arrival in arrivals:
            parents = tuple(filter(None, arrival.headers.get("X-Workflow-Parent", "").split(",")))
            assert arrival.answered >= set(parents)
            prompt = json.dumps(arrival.body["messages"])
            assert all(f"answer of {parent}" in prompt for parent in parents)
            calls.add((arrival.node, arrival.headers["X-Workflow-Step"], parents, arrival.body["max_tokens"]))
        assert len(calls) == len(arrivals)
        assert [arrival.headers.get("X-Workflow-Final") for arrival in arrivals].count("true") == 1
        arrived[arrivals[0].headers["X-Workflow-Name"], frozenset(calls)] += 1
        assert len({arrival.headers["X-Workflow-Name"] for arrival in arrivals}) == 1
    assert arrived == planned
    assert {arrival.body["model"] for arrival in stub.arrivals} == {"first-model"}
    assert {arrival.headers["Authorization"] for arrival in stub.arrivals} == {"Bearer sk-x"}

    counts = requests_by_name(stats_file)
    assert all(counts["WORKFLOW", name] == 2 for name in ("coding", "composite", "search", "summarize"))
    queries = sum(arrival.headers["X-Workflow-Name"] == "search" for arrival in stub.arrivals)
    load = read(record).load
    assert load.driver == "locust" and load.load["streams"][0]["arrivals"]["users"] == 2
    kinds = ("POST", "ttft", "itl", "tokens")
    assert [counts[kind, "search/query"] for kind in kinds] == [queries] * len(kinds)


async def test_a_failed_call_abandons_its_run(stub: Any) -> None:
    stub.refused = {"engineer"}
    code, output = await locust(
        stub.url, "--workload", "coding", "--max-runs", "1", "--run-name", "mine", "--no-stream"
    )
    assert code == 1
    assert "Traceback" not in output
    assert "0 runs complete, 1 failed, 0 cut off" in output and "HTTP 500: the stub refuses" in output
    assert {arrival.headers["X-Workflow-Step"] for arrival in stub.arrivals} == {"architect", "engineer"}
    assert {arrival.headers["X-Workflow-Name"] for arrival in stub.arrivals} == {"mine"}
    assert not any(arrival.body["stream"] for arrival in stub.arrivals)


async def test_a_stream_that_breaks_off_is_a_failure(stub: Any) -> None:
    stub.broken = {"query"}
    code, output = await locust(stub.url, "--workload", "search", "--max-runs", "1", users=1)
    assert code == 1
    assert "Traceback" not in output
    assert "0 runs complete, 1 failed, 0 cut off" in output


async def test_a_run_cut_by_the_end_of_the_test_is_no_failure(stub: Any) -> None:
    stub.delay_s = 30.0
    code, output = await locust(stub.url, "--workload", "coding", until=stub.two_runs)
    assert code == 0, output
    assert "Traceback" not in output
    assert f"0 runs complete, 0 failed, {len(stub.runs())} cut off" in output


async def test_a_run_may_be_sent_at_once(stub: Any) -> None:
    stub.delay_s = 0.5
    code, output = await locust(stub.url, "--workload", "coding", "--max-runs", "1", "--mode", "nodes", users=1)
    assert code == 0, output
    assert "1 runs complete" in output and not any(arrival.answered for arrival in stub.arrivals)
    assert any("{{node:architect}}" in json.dumps(arrival.body["messages"]) for arrival in stub.arrivals)


async def test_without_a_model_it_says_so_and_ends(stub: Any) -> None:
    stub.models = []
    code, output = await locust(stub.url)
    assert code == 1
    assert "Traceback" not in output
    assert "no model is listed; start the gateway, or give --model" in output
    assert not stub.arrivals


async def test_workers_share_one_schedule_of_open_arrivals(stub: Any, tmp_path: Path) -> None:
    record = tmp_path / "load.jsonl"
    arguments = ("--workload", "search", "--arrivals", "poisson:20", "--max-runs", "12", "--record", str(record))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    ports = ("--master-port", port, "--master-bind-port", port)
    code, output = await locust(stub.url, "--processes", "2", *ports, *arguments)
    assert code == 0 and "Traceback" not in output, output
    result = read(record)
    stream = Stream((Search.small(),), Poisson(20.0), 12)
    due = [(start.number, start.at_s) for start in Schedule(Load((stream,), seed=0)).arrivals()]
    assert sorted(one.number for one in result.runs) == list(range(12)) == [number for number, _ in due]
    # Each worker's times are its own until they are merged: those of the one that began first are left alone.
    own = {(one.number, one.intended_s) for one in result.runs} & set(due)
    assert 0 < len(own) <= 12 and len({arrival.run.split("-")[1] for arrival in stub.arrivals}) == 2
    assert result.load.load["streams"][0]["runs"] == 12
    assert len(result.load.facts["workers"]) == 2 and result.load.driver == "locust"


def requests_by_name(stats_file: Path) -> Mapping[tuple[str, str], int]:
    (path,) = stats_file.parent.glob("stats*")
    return {(entry["method"], entry["name"]): entry["num_requests"] for entry in json.loads(path.read_text())}
