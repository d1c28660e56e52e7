"""`joulegate emulate` and a gateway before it: two processes, an engine and two GPUs that do not exist."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from stage import Gateway, chat_body, environment, joulegate, residual_uj, uj, until
from zeus.utils.zeusd import ZeusdClient, ZeusdConfig

MODEL = "llama-2-7b"
GPUS = ["emulated/gpu:0", "emulated/gpu:1"]
DEVICES = {*GPUS, "emulated/cpu:0", "emulated/dram:0"}
ONES = ("--gpu", "h200", "--model", MODEL, "--gpus", "2", "--port", "0", "--zeusd-port", "0")


class EmulatedHost:
    """The process, and what it says of itself: `config` is what it tells a gateway to be given."""

    def __init__(self, folder: Path) -> None:
        said = folder / "emulate.txt"
        with said.open("w") as out:
            command = [sys.executable, "-u", "-m", "joulegate", "emulate", *ONES]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment(folder))

        def configuration() -> dict[str, Any] | None:
            assert self.process.poll() is None, said.read_text()
            _, marker, block = said.read_text().partition("For a gateway (joulegate serve -c FILE):\n")
            with suppress(yaml.YAMLError):
                config = yaml.safe_load(block) if marker else None
                return config if config and "engines" in config else None
            return None

        self.config = until(configuration)
        self.http = httpx.Client(base_url=self.config["engines"][0]["url"], timeout=30)
        self.zeus = ZeusdClient(ZeusdConfig(host_port=self.config["hosts"]["emulated"]["zeusd"]))

    def limits_w(self) -> list[float]:
        return [limit_mw / 1000 for limit_mw in self.zeus.get_power_limit().values()]

    def fault(self, **fault: Any) -> None:
        self.http.post("/emulator/faults", json=fault).raise_for_status()

    def mend(self) -> None:
        self.http.delete("/emulator/faults").raise_for_status()

    def stop(self) -> None:
        self.http.close()
        self.process.terminate()
        assert self.process.wait(20) == 0


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedHost]:
    host = EmulatedHost(tmp_path_factory.mktemp("emulated"))
    yield host
    host.stop()


@pytest.fixture
def host(process: EmulatedHost) -> Iterator[EmulatedHost]:
    """With nothing broken and nothing set, before and after."""
    yield process
    process.mend()
    process.zeus.set_power_limit([0, 1], 700_000)


def work(gateway: Gateway) -> dict[str, str]:
    """Runs of two workflows at once, streamed and not, each with one call given up; returns workflows by run."""
    runs = {f"{workflow}-{n}": workflow for workflow in ("search", "coding") for n in range(3)}

    def one_run(run: str) -> None:
        for n, (stream, tokens) in enumerate([(True, 60), (False, 120), (True, 30)]):
            headers = {"x-workflow-id": run, "x-workflow-name": runs[run], "x-workflow-step": f"step-{n % 2}"}
            body = chat_body(MODEL, content="word " * 400, max_tokens=tokens, stream=stream)
            assert gateway.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        headers = {"x-workflow-id": run, "x-workflow-name": runs[run], "x-workflow-step": "given-up"}
        body = chat_body(MODEL, max_tokens=3000, stream=True)
        with gateway.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as reply:
            for seen, _ in enumerate(reply.iter_lines()):
                if seen == 20:
                    break
        gateway.http.post(f"/energy/runs/{run}/close").raise_for_status()

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(one_run, runs))
    until(gateway.idle)
    return runs


def test_the_books_close_and_everything_in_them_is_called_emulated(
    make_gateway: Callable[..., Gateway], host: EmulatedHost
) -> None:
    gateway = make_gateway(host.config)
    assert "(Emulated NVIDIA H200)" in gateway.said() and "a model's figures, not a machine's" in gateway.said()
    before_mj = host.zeus.get_gpu_energy([0, 1])
    runs = work(gateway)
    figures = [gateway.run(run) for run in runs]
    books = {name: entry for name, entry in gateway.balance().items() if name.startswith("emulated/")}
    after_mj = host.zeus.get_gpu_energy([0, 1])

    assert set(books) == DEVICES == set(host.config["engines"][0]["devices"])
    assert all(entry["residual_j"] == 0 == residual_uj(entry) for entry in books.values())
    assert sum(uj(run["joules"]) for run in figures) == sum(uj(entry["workflow_j"]) for entry in books.values()) > 0
    assert all(entry["idle_j"] > 0 and not entry["gap_j"] for entry in books.values())
    for n, name in enumerate(GPUS):
        assert books[name]["counter_j"] > books[name]["workflow_j"] > 0
        # The gateway began to read before we did, and we read last.
        assert (after_mj[n] - before_mj[n]) / 1000 >= books[name]["workflow_j"]

    (engine,) = gateway.get("/energy/engines")["engines"]
    workflows = gateway.get("/energy/workflows")["workflows"]
    of_ledger = gateway.ledger()["workflows"]
    assert {workflow["workflow"] for workflow in workflows} == {"search", "coding"}
    for entry in (*figures, *(r for run in figures for r in run["requests"]), *workflows, *of_ledger, engine):
        assert entry["quality"] == "emulated", entry
    assert {entry["quality"] for entry in books.values()} == {"emulated"}


def test_the_books_close_also_over_a_reset_of_the_counters(
    make_gateway: Callable[..., Gateway], host: EmulatedHost
) -> None:
    gateway = make_gateway(host.config)
    tags = {"x-workflow-id": "r1", "x-workflow-name": "search"}
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(gateway.chat, tags, model=MODEL, max_tokens=500, stream=True)
        until(lambda: not gateway.idle())
        host.fault(fault="reset")
        assert reply.result().status_code == 200
    run, books = gateway.run("r1"), gateway.balance()
    for name in DEVICES:
        assert books[name]["residual_j"] == 0 == residual_uj(books[name])
        assert min(books[name][part] for part in ("workflow_j", "open_j", "idle_j", "gap_j")) >= 0
    assert uj(run["joules"]) == sum(uj(books[name]["workflow_j"]) for name in DEVICES) > 0


def test_a_power_limit_arrives_and_is_restored_at_exit(
    make_gateway: Callable[..., Gateway], host: EmulatedHost
) -> None:
    host.zeus.set_power_limit([1], 650_000)
    gateway = make_gateway({**host.config, "policy": {"name": "static", "power_limit_w": {GPUS[1]: 300}}})
    until(lambda: host.limits_w() == [700.0, 300.0])
    gateway.stop()
    assert host.limits_w() == [700.0, 650.0]


def test_a_limit_that_the_card_does_not_take_is_refused_with_those_that_it_does(
    make_gateway: Callable[..., Gateway], host: EmulatedHost
) -> None:
    gateway = make_gateway({**host.config, "policy": {"name": "static", "power_limit_w": {GPUS[0]: 90}}})
    until(lambda: "90 W is outside of what the device allows, 200 to 700 W" in gateway.log())
    assert host.limits_w() == [700.0, 700.0]


def test_without_the_permission_one_line_says_so_and_the_gate_goes_on(
    make_gateway: Callable[..., Gateway], host: EmulatedHost
) -> None:
    host.fault(fault="forbid")
    table = {"power_limit_w": dict.fromkeys(GPUS, 300), "in_flight": {"narrow": 1}}
    gateway = make_gateway({**host.config, "policy": {"name": "static", **table}})
    until(lambda: gateway.metric("joulegate_gate_limit", workflow="narrow") == 1)
    tags = {"x-workflow-id": "r1", "x-workflow-name": "narrow"}
    assert gateway.chat(tags, model=MODEL, max_tokens=50).status_code == 200
    assert gateway.run("r1")["joules"] > 0
    assert gateway.log().count("not allowed to set power limits, going on without") == 1
    assert host.limits_w() == [700.0, 700.0]


def test_a_permission_that_is_lost_under_way_leaves_the_rest_to_restore(
    make_gateway: Callable[..., Gateway], host: EmulatedHost
) -> None:
    gateway = make_gateway({**host.config, "policy": {"name": "static", "power_limit_w": {GPUS[0]: 300}}})
    until(lambda: host.limits_w() == [300.0, 700.0])
    host.fault(fault="forbid")
    gateway.stop()
    assert host.limits_w() == [300.0, 700.0]
    assert f"power limit of {GPUS[0]}: not set back to 700 W" in gateway.log()
    host.mend()
    done = joulegate("restore", "-c", str(gateway.file), env=gateway.env)
    assert (done.returncode, host.limits_w()) == (0, [700.0, 700.0]), done.stdout
