"""The four workloads on Parrot before an emulated GPU host, each sent call by call and as a named DAG."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from stage import Gateway, environment, free_port, residual_uj, running, until

from loadgen import catalog, collect, http
from loadgen.arrivals import Closed
from loadgen.client import Mode, Target
from loadgen.record import Result
from loadgen.schedule import Load, Schedule, Start, Stream

CORE = Path(__file__).parents[1] / "parrot" / "fake_core.py"
EMULATE = ("-u", "-m", "joulegate", "emulate", "--gpu", "h200", "--port", "0", "--zeusd-port", "0")
KEY = "0123456789abcdef0123"
WAYS = ("chain", "graph")


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """`gateway` before a ServeCore of our own, whose calls end at the emulated host's engine; `model` is there."""
    folder, port = tmp_path_factory.mktemp("parrot"), free_port()
    said = folder / "emulate.txt"
    with said.open("w") as out:
        host = subprocess.Popen([sys.executable, *EMULATE], stdout=out, stderr=out, env=environment(folder))
    url = f"http://127.0.0.1:{port}/v1"
    core = subprocess.Popen([sys.executable, str(CORE), "0", url, KEY], stdout=subprocess.PIPE, text=True)
    try:
        assert core.stdout
        until(lambda: said.read_text().endswith("}\n"))
        text = said.read_text()
        config: dict[str, Any] = yaml.safe_load(text[text.index("hosts: ") :])
        egress = {"engine": config["engines"][0]["name"], "port": port, "key": KEY}
        config["engines"].append(
            {"name": "parrot", "kind": "parrot", "url": core.stdout.readline().strip(), "egress": egress}
        )
        with running(Gateway(config, folder)) as gateway:
            until(lambda: any(one["id"].startswith("parrot/") for one in gateway.get("/v1/models")["data"]))
            models = [one["id"] for one in gateway.get("/v1/models")["data"]]
            model = next(one for one in models if "parrot/" in one)
            yield SimpleNamespace(gateway=gateway, core=core, model=model, engine=egress["engine"])
    finally:
        for process in (core, host):
            process.terminate()
            process.wait(20)


@pytest.fixture
def four() -> Load:
    workloads = tuple(catalog.workload(name, "small") for name in catalog.FOUR)
    return Load((Stream(workloads, Closed(4), runs=4),), seed=2)


def drive(parrot: Any, load: Load, mode: Mode) -> Result:
    target = Target(url=parrot.gateway.url, model=parrot.model, mode=mode, body={"ignore_eos": True})
    return http.run(load, target)


def test_the_four_workloads_run_on_parrot_either_way(parrot: Any, four: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "SETTLED_AFTER_S", 1.5)
    counted = {}
    for mode in ("pasted", "nodes"):
        result = drive(parrot, four, mode)
        assert [one.outcome for one in result.runs] == ["ok"] * 4, [one.error for one in result.requests]
        planned = {(run.workflow, call.node): call.max_tokens for run in plans(four) for call in run.calls}
        assert {(one.workflow, one.node): one.output_tokens for one in result.requests} == planned
        assert all(one.energy and one.energy.joules > 0 and one.energy.quality == "emulated" for one in result.requests)
        counted[mode] = {(one.workflow, one.node): one.prompt_tokens for one in result.requests}
        for run in result.runs:
            found = parrot.gateway.run(run.run)
            assert {one["engine"] for one in found["requests"]} == {"parrot"}
            assert {one["node"]: set(one["parents"]) for one in found["requests"]} == {
                one.node: set(one.parents) for one in result.requests if one.run == run.run
            }
    assert counted["pasted"] == counted["nodes"], "prompts are the same, whoever puts answers into them"
    for device, books in parrot.gateway.balance().items():
        assert abs(residual_uj(books)) <= 1, device
    assert parrot.core.poll() is None


def plans(load: Load) -> list[Any]:
    schedule = Schedule(load)
    return [schedule.plan(Start(0, number, 0.0)) for number in range(4)]


def test_the_page_with_one_client_for_both_engines_does_what_it_says(parrot: Any, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "one-client.md"
    code = page.read_text().partition("```python\n")[2].partition("```")[0]
    env = {**environment(tmp_path), "OPENAI_BASE_URL": f"{parrot.gateway.url}/v1", "OPENAI_API_KEY": "any"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = [line.split()[:3] for line in done.stdout.splitlines() if line]
    plain = parrot.model.removeprefix("parrot/")
    assert [(model, way) for model, way, _ in said] == [(m, way) for m in (plain, parrot.model) for way in WAYS]
    for model, way, run in said:
        found = parrot.gateway.run(run)
        assert {one["engine"] for one in found["requests"]} == {"parrot" if model == parrot.model else parrot.engine}
        maps = ["map-0", "map-1", "map-2"] if way == "graph" else []
        named = {one["node"]: sorted(one["parents"]) for one in found["requests"] if one["node"]}
        assert named == {name: [] for name in maps} | ({"merge": maps} if maps else {})
        if named:
            assert found["dag"]["critical_path"][-1] == "merge" and found["dag"]["nodes"]["merge"]["joules"] > 0
