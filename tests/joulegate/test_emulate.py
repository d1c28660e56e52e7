"""`joulegate emulate`: what it offers, what it refuses in one line, and that it can be put before a gateway."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from joulegate.emulate import CAVEAT, EmulatedHost, Options, listen
from proxy.config import ConfigError, parse
from proxy.energy.sources import quality_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"gpu": "h20"}, "did you mean h200?"),
        ({"model": "llama-3-8b"}, "did you mean llama-3.1-8b?"),
        ({"gpu": "a100-40g", "model": "llama-2-70b"}, "more cards"),
        ({"gpus": 3}, "3 cards cannot share them evenly"),
        ({"gpus": 0}, "0 cards cannot share them evenly"),
        ({"max_model_len": 100_000}, "at most 4096, not 100000"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is above 0 and at most 1, not 1.5"),
        ({"max_num_seqs": 512, "max_num_batched_tokens": 256}, "must be at least max_num_seqs"),
        ({"scheduling_policy": "lifo"}, "fcfs or priority, not 'lifo'"),
        ({"power_limit_w": 5000.0}, "200 to 700 W, not 5000"),
        ({"max_num_queued_reqs": -1}, "at least 0, not -1"),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        EmulatedHost(Options(**{"gpu": "h200", "model": "llama-2-7b", **options}))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_port_that_is_taken_is_one_line() -> None:
    with listen("127.0.0.1", 0, "--port") as sock:
        taken = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{taken} .* choose another with --port"):
            listen("127.0.0.1", taken, "--port")


def test_a_gateway_takes_what_it_says_of_itself() -> None:
    host = EmulatedHost(Options("h200", "llama-2-70b", gpus=2, power_limit_w=500, served_model_name="big"))
    config = parse(yaml.safe_load(host.gateway_yaml("http://127.0.0.1:8000", "127.0.0.1:4938")))
    (engine,) = config.engines
    assert (engine.kind, engine.url, engine.models) == ("vllm", "http://127.0.0.1:8000", ("big",))
    assert engine.devices == ("emulated/gpu:0", "emulated/gpu:1", "emulated/cpu:0", "emulated/dram:0")
    assert [card.gpu.power_limit_w for card in host.host.cards] == [500, 500]
    assert all(quality_of(card.name).value == "emulated" for card in host.host.cards)
    assert len({card.uuid for card in host.host.cards}) == 2


class Running:
    """A running `joulegate emulate`."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        command = [sys.executable, "-m", "joulegate", "emulate", "--port", "0", "--zeusd-port", "0", "--seed", "3"]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env)
        until = time.monotonic() + 60
        while not self.log.read_text().endswith("}\n"):
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)
        said = self.log.read_text()
        self.config = parse(yaml.safe_load(said[said.index("hosts: ") :]))
        self.url = self.config.engines[0].url
        self.zeusd = f"http://{self.config.hosts['emulated'].zeusd}"

    def energy_mj(self) -> int:
        reply = httpx.get(f"{self.zeusd}/gpu/get_cumulative_energy", params={"gpu_ids": "0"})
        return reply.json()["0"]["energy_mj"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.process.kill()
    running.process.wait()


def test_engine_and_zeusd_are_one_host(running: Running) -> None:
    assert running.log.read_text().startswith(CAVEAT), "what the joules are worth comes first"
    body = {"prompt": "a b", "max_tokens": 100, "ignore_eos": True}
    before = running.energy_mj()
    usage = httpx.post(f"{running.url}/v1/completions", json=body, timeout=30).json()["usage"]
    time.sleep(0.2)  # the counter moves every 100 ms
    assert usage["completion_tokens"] == 100
    assert running.energy_mj() - before > 50_000, "100 steps of a 7B model on an H200 take about 200 J"
    host = httpx.get(
        f"{running.zeusd}/cpu/get_cumulative_energy", params={"cpu_ids": "0", "cpu": "true", "dram": "true"}
    )
    assert host.json()["0"]["cpu_energy_uj"] > host.json()["0"]["dram_energy_uj"] > 0
    httpx.post(f"{running.url}/emulator/faults", json={"fault": "forbid"})
    ask = {"gpu_ids": "0", "power_limit_mw": 500_000, "block": "true"}
    assert httpx.post(f"{running.zeusd}/gpu/set_power_limit", params=ask).status_code == 403
    httpx.delete(f"{running.url}/emulator/faults")
    assert httpx.post(f"{running.zeusd}/gpu/set_power_limit", params=ask).status_code == 200
    httpx.post(f"{running.url}/emulator/faults", json={"fault": "reset"})
    time.sleep(0.2)
    assert running.energy_mj() < before + 50_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(running: Running, number: signal.Signals) -> None:
    body = {"prompt": "a b", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=30) as reply:
        next(reply.iter_bytes())
        running.process.send_signal(number)
        assert running.process.wait(20) == 0
    assert "Traceback" not in running.log.read_text()


def test_a_crash_is_one(running: Running) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"{running.url}/emulator/faults", json={"fault": "crash"})
    assert running.process.wait(20) == -signal.SIGKILL


def test_a_fault_of_the_users_is_one_line_and_status_1() -> None:
    command = [sys.executable, "-m", "joulegate", "emulate", "--gpu", "h20"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("joulegate: no gpu preset 'h20': did you mean h200?")
