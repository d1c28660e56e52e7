"""Whenever a gateway is killed, its GPUs end as they were found. JOULEGATE_KILLS=100 tries it so often."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from proxy.config import Host
from proxy.control.gpus import open_knobs
from proxy.control.lock import GpuLocks
from proxy.control.restore import is_anything_left, restore_all

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("JOULEGATE_KILLS", "4"))
FOUND_W = 650.0

# For every line it forks a gateway's hand on the GPUs, which turns power limits and clocks as fast as it can.
FORKER = """
import os, random, sys
from pathlib import Path
from policies.interface import Decision
from proxy.config import Host
from proxy.control.actuator import Actuator
from proxy.control.devices import Devices
from proxy.control.gpus import open_knobs
from proxy.control.knobs import SM_CLOCK
from proxy.control.lock import GpuLocks
from proxy.control.watchdog import Watchdog
import zeus.device, pynvml, httpx

GPU, FOLDER, HOSTS = "h1/gpu:0", Path(sys.argv[1]), {"h1": Host(local=True)}

def turn(seed):
    rng, knobs, locks, watchdog = random.Random(seed), open_knobs(HOSTS), GpuLocks(), Watchdog(HOSTS, FOLDER)
    power = Actuator(knobs.power, FOLDER / "restore.json", 0.0, locks=locks, watchdog=watchdog)
    clock = Actuator(knobs.sm_clock, FOLDER / "restore-clocks.json", 0.0, SM_CLOCK, locks, watchdog)
    devices, now = Devices(knobs, power, clock, watchdog), 0.0
    devices.allow_clocks = True
    while True:
        watts, mhz = rng.choice([None, 300, 400, 500]), rng.choice([None, 600, 1200])
        devices.apply(Decision(
            power_limit_w={} if watts is None else {GPU: watts}, sm_clock_mhz={} if mhz is None else {GPU: mhz},
        ), now)
        now += 1.0

for line in iter(sys.stdin.readline, ""):
    pid = os.fork()
    if not pid:
        turn(int(line))
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


@pytest.fixture
def forker(nvml_here: Any, tmp_path: Path) -> Iterator[Any]:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKER, str(tmp_path)],
        env={**os.environ, **nvml_here.env},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
    process.wait(30)
    process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.timeout(60 + 20 * KILLS)
def test_a_killed_gateway_leaves_every_gpu_as_it_was_found(forker: Any, nvml_here: Any, tmp_path: Path) -> None:
    rng = random.Random(7)
    nvml_here.set_limit_w(0, FOUND_W)
    as_found: list[bool] = []
    for seed in range(KILLS):
        writes = nvml_here.writes()
        forker.stdin.write(f"{seed}\n")
        forker.stdin.flush()
        pid = int(forker.stdout.readline())
        if rng.random() < 0.8:  # else it may be killed before its first write
            _until(lambda before=writes: nvml_here.writes() > before)
        time.sleep(rng.uniform(0, 0.1))
        whole_host = rng.random() < 0.25  # its watchdog dies with it
        watchdogs = psutil.Process(pid).children() if whole_host else []
        os.kill(pid, signal.SIGSTOP)
        for watchdog in watchdogs:
            watchdog.kill()
        os.kill(pid, signal.SIGKILL)
        assert forker.stdout.readline() == "gone\n"
        if watchdogs:
            restore_all(open_knobs({"h1": Host(local=True)}), tmp_path, GpuLocks())
        _until(lambda: not is_anything_left(tmp_path))
        as_found.append((nvml_here.limit_w(), nvml_here.locked_mhz()) == (FOUND_W, None))
    assert as_found == [True] * KILLS
    locks = GpuLocks()
    assert locks.take(nvml_here.uuid(), "the next gateway") is None
    locks.release(nvml_here.uuid(), "the next gateway")


def _until(done: Any, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.002)
