"""A gateway before the emulator's zeusd alone: CPUs beside GPUs, a Unix socket, tokens, what a kill leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stage import Engine, Gateway, joulegate, residual_uj, uj, until

from emulator.zeusd.token import ApiGroup, issue

KEY = b"a key of thirty-two bytes and so"
GPUS, CPUS = ["h1/gpu:0", "h1/gpu:1"], ["h1/cpu:0", "h1/dram:0"]
TAGS = {"x-workflow-id": "r1", "x-workflow-name": "search"}


def before(daemon: Any, engine: Engine, devices: list[str], **config: Any) -> dict[str, Any]:
    """A configuration: one engine on the emulated host."""
    engines = [{"name": "e1", "kind": "vllm", "url": engine.url, "devices": devices}]
    return {"hosts": {"h1": {"zeusd": daemon.address}}, "engines": engines, **config}


def limits_w(daemon: Any) -> list[float]:
    return [gpu.power_limit_w for gpu in daemon.gpus]


def test_emulated_joules_are_in_the_books_and_called_so(
    make_gateway: Callable[..., Gateway], engine: Engine, zeusd: Any
) -> None:
    for counter, power_w in ((zeusd.gpus[0], 500.0), (zeusd.gpus[1], 200.0), (zeusd.cpus[0].package, 150.0)):
        counter.power_w = power_w
    gateway = make_gateway(before(zeusd, engine, GPUS + CPUS))
    assert "(Emulated H200)" in gateway.said() and "emulated: a model's figures, not a machine's" in gateway.said()
    reply = gateway.chat({**TAGS, "x-workflow-step": "query"}, max_tokens=60, stream=True)
    request, run = gateway.request(reply), gateway.run("r1")
    assert request["quality"] == run["quality"] == "emulated" and run["joules"] > 0
    (workflow,) = gateway.get("/energy/workflows")["workflows"]
    (of_engine,) = gateway.get("/energy/engines")["engines"]
    assert workflow["quality"] == of_engine["quality"] == "emulated"
    for counter in (*zeusd.gpus, zeusd.cpus[0].package):
        counter.power_w = 0.0
    until(lambda: not any(entry["open_j"] for entry in gateway.balance().values()))
    of_host = {name: entry for name, entry in gateway.balance().items() if name.startswith("h1/")}
    assert set(of_host) == {*GPUS, *CPUS}
    assert {entry["quality"] for entry in of_host.values()} == {"emulated"}
    assert all(entry["residual_j"] == 0 == residual_uj(entry) for entry in of_host.values())
    assert sum(uj(entry["workflow_j"]) for entry in of_host.values()) == uj(run["joules"])
    assert of_host[GPUS[0]]["workflow_j"] > of_host[GPUS[1]]["workflow_j"] > of_host[CPUS[1]]["workflow_j"] == 0


def test_after_a_kill_the_command_line_restores_it(
    make_gateway: Callable[..., Gateway], engine: Engine, zeusd: Any
) -> None:
    gateway = make_gateway(before(zeusd, engine, GPUS, policy={"name": "static", "power_limit_w": {GPUS[0]: 300}}))
    until(lambda: limits_w(zeusd) == [300.0, 700.0])
    gateway.kill()
    done = joulegate("restore", "-c", str(gateway.file), env=gateway.env)
    assert (done.returncode, limits_w(zeusd)) == (0, [700.0, 700.0]), done.stderr


def test_a_token_that_may_only_read(
    make_gateway: Callable[..., Gateway], engine: Engine, make_zeusd: Callable[..., Any], tmp_path: Path
) -> None:
    """Over a Unix socket, as the daemon is reached on its own machine."""
    daemon = make_zeusd(gpus=1, at=str(tmp_path / "zeusd.sock"), key=KEY)
    daemon.gpus[0].power_w = 400.0
    token = issue(KEY, "joulegate", [ApiGroup.GPU_READ])
    config = before(daemon, engine, GPUS[:1], policy={"name": "static", "power_limit_w": {GPUS[0]: 300}})
    gateway = make_gateway(config, env={"ZEUSD_TOKEN": token})
    until(lambda: "gpu-control" in gateway.log())
    until(lambda: gateway.metric("joulegate_power_watts", host="h1", device="gpu:0") == pytest.approx(400, rel=0.2))
    assert gateway.log().count("not allowed to set power limits") == 1
    assert daemon.gpus[0].power_limit_w == 700.0
