"""`zeus.device` in a process of its own, led here by the environment, as Zeus's users do it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from emulator.zeusd.token import ApiGroup, issue

KEY = b"a key of thirty-two bytes and so"
GPUS = """
import json
from zeus.device import get_gpus
gpus = get_gpus()
gpus.set_power_management_limit(1, 300_000)
gpus.set_gpu_locked_clocks(0, 345, 1400)
gpus.set_memory_locked_clocks(0, 3201, 3201)
gpus.reset_memory_locked_clocks(0)
gpus.set_persistence_mode(0, True)
print(json.dumps([type(gpus.gpus[0]).__name__, gpus.get_persistence_mode(0)]))
"""
CPUS = """
import json, sys
from zeus.device import get_cpus
from zeus.device.cpu import rapl
rapl.RAPL_DIR = sys.argv[1]
cpus = get_cpus()
energy = cpus.get_total_energy_consumption(0)
print(json.dumps([type(cpus.cpus[0]).__name__, energy.cpu_mj, energy.dram_mj]))
"""


def said(script: str, *arguments: str, env: Mapping[str, str]) -> Any:
    foreign = ("ZEUSD_", "CUDA_", "NVML_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env={**kept, **env}, capture_output=True, text=True, timeout=60, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def test_get_gpus_sets_through_it(make_nvml: Callable[..., Any], zeusd: Any) -> None:
    """Zeus reads NVML itself, here the played one, and leaves to zeusd what needs root."""
    played = make_nvml(gpus=2)
    played.privileged = False
    assert said(GPUS, env={**played.env, "ZEUSD_HOST_PORT": zeusd.address}) == ["ZeusdNVIDIAGPU", True]
    assert [gpu.power_limit_w for gpu in zeusd.gpus] == [700.0, 300.0]
    assert zeusd.gpus[0].sm_clock_range_mhz == (345, 1400) and zeusd.gpus[0].memory_clock_range_mhz is None


def test_get_gpus_is_refused_without_the_scope(make_nvml: Callable[..., Any], make_zeusd: Callable[..., Any]) -> None:
    token = issue(KEY, "ada", [ApiGroup.GPU_READ])
    env = {"ZEUSD_HOST_PORT": make_zeusd(key=KEY).address, "ZEUSD_TOKEN": token}
    error = said(GPUS, env={**make_nvml(gpus=2).env, **env})
    assert "ZeusGPUInitError" in error and "Token lacks required scope 'gpu-control'" in error


@pytest.fixture
def rapl(tmp_path: Path) -> str:
    """The folder by which Zeus sees that there is RAPL, and how many packages; its counters come from zeusd."""
    (tmp_path / "rapl/intel-rapl:0").mkdir(parents=True)
    return str(tmp_path / "rapl")


def test_get_cpus_reads_through_it(make_zeusd: Callable[..., Any], rapl: str, tmp_path: Path) -> None:
    daemon = make_zeusd(at=str(tmp_path / "zeusd.sock"), key=KEY)
    daemon.cpus[0].package.spent_j, daemon.cpus[0].dram.spent_j = 12.5, 3.0
    env = {"ZEUSD_SOCK_PATH": daemon.address, "ZEUSD_TOKEN": issue(KEY, "ada", [ApiGroup.CPU_READ])}
    assert said(CPUS, rapl, env=env) == ["ZeusdRAPLCPU", 12_500.0, 3000.0]
