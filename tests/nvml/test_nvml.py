"""The real pynvml and the real Zeus meet the library that plays NVML."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pynvml
import pytest
from zeus.device import get_gpus
from zeus.device.gpu.common import (
    ZeusGPUInvalidArgError,
    ZeusGPULostError,
    ZeusGPUNoPermissionError,
    ZeusGPUNotSupportedError,
)

FIRST_LOOK = """
import json, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
print(json.dumps([pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetPowerUsage(handle)]))
"""


def test_is_found_by_the_name_that_nvml_is_loaded_by(nvml: Any) -> None:
    nvml.set_power_w(0, 321)
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LOOK], env={**os.environ, **nvml.env}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["NVIDIA H200", 321_000]


def test_without_a_state_there_is_no_driver(nvml_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVML_PLAY_STATE", str(nvml_here.path.with_name("nothing")))
    with pytest.raises(pynvml.NVMLError, match="Driver Not Loaded"):
        pynvml.nvmlInit()


def test_the_counter_shows_the_energy_drawn(nvml_here: Any) -> None:
    gpu = get_gpus().gpus[0]
    nvml_here.set_power_w(0, 500)
    before_mj, began = gpu.get_total_energy_consumption(), nvml_here.drawn_uj()
    time.sleep(0.25)
    nvml_here.set_power_w(0, 0)
    time.sleep(0.11)  # one period: the counter has shown everything by then
    drawn_uj = nvml_here.drawn_uj() - began
    moved_uj = (gpu.get_total_energy_consumption() - before_mj) * 1000
    assert drawn_uj >= 0.25 * 500e6
    assert drawn_uj - 1000 <= moved_uj <= drawn_uj + 500e6  # what was drawn before but not yet shown comes on top
    assert nvml_here.counter_uj() == gpu.get_total_energy_consumption() * 1000


def test_the_counter_moves_only_at_its_period(make_nvml: Any, load_nvml: Any) -> None:
    play = load_nvml(make_nvml(period_s=3600))
    gpu = get_gpus().gpus[0]
    play.set_power_w(0, 700)
    before_mj = gpu.get_total_energy_consumption()
    time.sleep(0.02)
    assert gpu.get_total_energy_consumption() == before_mj
    assert play.drawn_uj() > 0


def test_power_never_exceeds_the_limit(nvml_here: Any) -> None:
    gpu = get_gpus().gpus[0]
    nvml_here.set_power_w(0, 650)
    assert gpu.get_instant_power_usage() == 650_000
    gpu.set_power_management_limit(300_000)
    assert gpu.get_instant_power_usage() == gpu.get_average_power_usage() == 300_000
    assert nvml_here.limit_w() == 300


def test_another_limiter_is_enforced_below_the_limit(nvml_here: Any) -> None:
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    nvml_here.set_ceiling_w(0, 450)
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 450_000
    assert pynvml.nvmlDeviceGetPowerManagementLimit(handle) == 700_000
    assert pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) == 700_000


def test_limits_need_the_privilege_and_the_range(nvml_here: Any) -> None:
    gpu = get_gpus().gpus[0]
    assert gpu.get_power_management_limit_constraints() == (200_000, 700_000)
    with pytest.raises(ZeusGPUInvalidArgError):
        gpu.set_power_management_limit(100_000)
    nvml_here.privileged = False
    with pytest.raises(ZeusGPUNoPermissionError):
        gpu.set_power_management_limit(400_000)
    assert (nvml_here.limit_w(), nvml_here.writes()) == (700, 0)


def test_the_counter_begins_again_at_zero(nvml_here: Any) -> None:
    gpu = get_gpus().gpus[0]
    nvml_here.set_power_w(0, 0)
    nvml_here.add_energy_uj(0, 5_000_000_000)
    assert gpu.get_total_energy_consumption() >= 5_000_000
    nvml_here.reset_counter()
    assert gpu.get_total_energy_consumption() == 0


def test_a_lost_gpu_says_so_and_may_come_back(make_nvml: Any, load_nvml: Any) -> None:
    play = load_nvml(make_nvml(gpus=2))
    lost, other = get_gpus().gpus
    play.lose(0)
    with pytest.raises(ZeusGPULostError):
        lost.get_total_energy_consumption()
    assert other.get_total_energy_consumption() >= 0
    play.lose(0, False)
    assert lost.get_total_energy_consumption() >= 0


def test_old_gpus_have_no_counter(nvml_here: Any) -> None:
    nvml_here.set_model(0, "Tesla P100", architecture=4)
    gpu = get_gpus().gpus[0]
    assert not gpu.supports_get_total_energy_consumption()
    with pytest.raises(ZeusGPUNotSupportedError):
        gpu.get_total_energy_consumption()


def test_processes_share_one_state(nvml_here: Any) -> None:
    code = (
        "import pynvml; pynvml.nvmlInit(); "
        "pynvml.nvmlDeviceSetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByIndex(0), 250000)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **nvml_here.env}, check=True)
    assert get_gpus().gpus[0].get_power_management_limit() == 250_000


def test_clocks_are_locked_and_reset_and_cannot_be_read_back(nvml_here: Any) -> None:
    gpu = get_gpus().gpus[0]
    (memory_mhz,) = gpu.get_supported_memory_clocks()
    clocks_mhz = gpu.get_supported_graphics_clocks(memory_mhz)
    assert (min(clocks_mhz), max(clocks_mhz), len(clocks_mhz)) == (345, 1980, 110)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    gpu.set_gpu_locked_clocks(345, 1200)
    assert nvml_here.locked_mhz() == pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1200
    gpu.reset_gpu_locked_clocks()
    assert nvml_here.locked_mhz() is None
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1980
    nvml_here.privileged = False
    with pytest.raises(ZeusGPUNoPermissionError):
        gpu.set_gpu_locked_clocks(345, 1200)


def test_a_cap_that_binds_says_so(nvml_here: Any) -> None:
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    nvml_here.set_power_w(0, 600)
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == 0
    nvml_here.set_limit_w(0, 400)
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == 0x4
