"""Which joules are an engine's that names no devices, and what is said of those that nobody counts."""

from collections.abc import Callable
from typing import Any

import pytest
from stage import Engine, Gateway, joulegate, uj

import joulegate as client

UNKNOWN = ("joules", "joules_low", "joules_high", "quality")


def devices(gateway: Gateway) -> dict[str, list[str]]:
    return {engine["name"]: engine["devices"] for engine in gateway.get("/energy/engines")["engines"]}


def test_each_engine_of_this_machine_has_what_it_moves(
    make_gateway: Callable[..., Gateway], make_nvml: Any, engine: Engine
) -> None:
    """Two GPUs and a CPU without a counter: a server has the GPUs, the model on the CPU an estimate of that."""
    engines = [
        {"name": "on-gpus", "kind": "openai", "url": engine.url},
        {"name": "on-cpu", "kind": "embedded", "slots": 1, "context": 128},
        {"name": "on-one", "kind": "openai", "url": engine.url, "devices": ["local/gpu:1"]},
        {"name": "far", "kind": "openai", "url": "http://192.0.2.1:8000"},
    ]
    gateway = make_gateway({"engines": engines}, env=make_nvml(gpus=2).env)
    gpus = [f"local/gpu:{n}" for n in range(2)]
    here = devices(gateway)
    assert [name for name in here["on-gpus"] if "gpu" in name] == gpus
    assert here["on-cpu"] and all(not name.startswith("local/gpu") for name in here["on-cpu"])
    assert (here["on-one"], here["far"]) == (["local/gpu:1"], [])
    said = gateway.said().splitlines()
    (line,) = [line for line in said if line.startswith("engine on-gpus: ")]
    assert line.startswith("engine on-gpus: its joules are those of local/gpu:0, local/gpu:1")
    assert line.endswith("; if it has not all of these GPUs, name its own, as in devices: [local/gpu:0]")
    assert f"engine on-cpu: its joules are those of {', '.join(here['on-cpu'])}" in said
    assert not [line for line in said if line.startswith("engine on-one: ")]
    qualities = {name: books["quality"] for name, books in gateway.balance().items()}
    assert set(here["on-cpu"]) <= set(qualities)
    if qualities["local/cpu:0"] == "estimated":  # a machine without RAPL, as most are that run this
        assert here["on-gpus"] == gpus and said[0].startswith("local: no counter of the CPU; its energy is estimated")


def test_joules_that_nobody_counts_are_null_and_never_0(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    gateway = make_gateway(
        {
            "engines": [{"name": "e1", "kind": "openai", "url": engine.url}],
            "hosts": {"away": {"zeusd": "127.0.0.1:1"}},
        }
    )
    assert "engine e1: its energy is not known; name its devices under a host" in gateway.said()
    tags = {"x-workflow-id": "r1", "x-workflow-name": "search", "x-workflow-step": "query"}
    reply = gateway.chat(tags, max_tokens=2)
    request, run = gateway.request(reply), gateway.run("r1")
    listed, (workflow,) = gateway.get("/energy/runs")["runs"][0], gateway.get("/energy/workflows")["workflows"]
    (e1,) = gateway.get("/energy/engines")["engines"]
    for figures in (request, run, run["requests"][0], listed, workflow, e1, gateway.ledger()["workflows"][0]):
        assert [figures[key] for key in UNKNOWN] == [None] * 4
    assert run["by_step"] == {"query": {"requests": 1, "joules": None, "output_tokens": request["output_tokens"]}}
    assert workflow["joules_per_run"] is None and workflow["joules_per_output_token"] is None
    assert gateway.balance() == {}
    table = joulegate("energy", "-c", str(gateway.file), env=gateway.env).stdout
    assert " 0 J" not in table and "No counter saw what these workflows did" in table
    with client.run("search", id="r2", url=gateway.url) as r:
        gateway.chat({**r.headers}, max_tokens=1).raise_for_status()
    with pytest.raises(client.EnergyUnavailable, match="no counter saw what engine e1 did"):
        _ = r.joules


def test_known_and_unknown_joules_stand_side_by_side(
    make_gateway: Callable[..., Gateway], make_nvml: Any, engine: Engine, second_engine: Engine
) -> None:
    engines = [
        {"name": "metered", "kind": "openai", "url": engine.url, "devices": ["here/gpu:0"]},
        {"name": "blind", "kind": "openai", "url": second_engine.url, "devices": ["away/gpu:0"]},
    ]
    hosts = {"here": {"local": True}, "away": {"zeusd": "127.0.0.1:1"}}
    gateway = make_gateway({"engines": engines, "hosts": hosts}, env=make_nvml(gpus=1).env)
    tags = {"x-workflow-id": "r1", "x-workflow-name": "both"}
    gateway.chat({**tags, "x-workflow-step": "seen"}, max_tokens=60).raise_for_status()
    gateway.chat({**tags, "x-workflow-step": "unseen"}, model="stub-3b", max_tokens=5).raise_for_status()
    run = gateway.run("r1")
    joules = {step: share["joules"] for step, share in run["by_step"].items()}
    assert joules["unseen"] is None and joules["seen"] == run["joules"] > 0
    books = gateway.balance()["here/gpu:0"]
    assert books["residual_j"] == 0 and uj(books["workflow_j"]) == uj(run["joules"])
