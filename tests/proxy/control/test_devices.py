"""Clocks and caps through the real Zeus and pynvml, over the library that plays NVML."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from policies.interface import Decision, DeviceSignals
from proxy.config import Host
from proxy.control.actuator import Actuator, Effect
from proxy.control.devices import Devices
from proxy.control.gpus import open_knobs
from proxy.control.knobs import POWER, SM_CLOCK, KnobError, NoPrivilege
from proxy.control.restore import Found, RestoreFile, restore_all
from proxy.control.watchdog import Watchdog

HOSTS = {"h1": Host(local=True)}
GPU = "h1/gpu:0"
BOTH = Decision(power_limit_w={GPU: 400.0}, sm_clock_mhz={GPU: 1200.0})


def devices(folder: Path, allow_clocks: bool = True, watchdog: Watchdog | None = None) -> Devices:
    knobs = open_knobs(HOSTS)
    power = Actuator(knobs.power, folder / "restore.json", 0.0, watchdog=watchdog)
    clocks = Actuator(knobs.sm_clock, folder / "restore-clocks.json", 0.0, SM_CLOCK, watchdog=watchdog)
    made = Devices(knobs, power, clocks, watchdog)
    made.allow_clocks = allow_clocks
    return made


def test_cap_and_clock_are_set_seen_and_given_back(nvml_here: Any, tmp_path: Path) -> None:
    nvml_here.set_limit_w(0, 650)
    nvml_here.set_power_w(0, 600)
    gpus = devices(tmp_path)
    assert {one.effect for one in gpus.apply(BOTH, 0.0)} == {Effect.SET}
    assert (nvml_here.limit_w(), nvml_here.locked_mhz()) == (400, 1200)
    seen = gpus.look({GPU: 390.0}, 0.0)[GPU]
    assert (seen.power_w, seen.power_limit_w, seen.power_limit_range_w) == (390.0, 400.0, (200.0, 700.0))
    assert (seen.sm_clock_mhz, seen.sm_clock_range_mhz) == (1200.0, (345.0, 1980.0))
    assert seen.throttle == {"sw_power_cap"}
    gpus.restore()
    assert (nvml_here.limit_w(), nvml_here.locked_mhz()) == (650, None)
    assert list(tmp_path.glob("*.json")) == []


def test_a_clock_that_the_device_does_not_have_is_refused(nvml_here: Any, tmp_path: Path) -> None:
    (applied,) = devices(tmp_path).apply(Decision(sm_clock_mhz={GPU: 2500.0}), 0.0)
    assert applied.reason == "2500 MHz is outside of what the device allows, 345 to 1980 MHz"
    assert nvml_here.writes() == 0


def test_without_privilege_nothing_is_left_to_do(
    nvml_here: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nvml_here.privileged = False
    gpus = devices(tmp_path)
    for now in range(5):
        assert {one.effect for one in gpus.apply(BOTH, float(now))} == {Effect.REFUSED}
    gpus.restore()
    assert list(tmp_path.glob("*.json")) == [] and nvml_here.writes() == 0
    said = [record.getMessage() for record in caplog.records if "not allowed" in record.getMessage()]
    assert len(said) == 2, "one clear line for limits, one for clocks"


def test_a_lost_gpu_is_seen_as_unknown(nvml_here: Any, tmp_path: Path) -> None:
    gpus = devices(tmp_path)
    nvml_here.lose()
    assert gpus.look({GPU: 0.0}, 0.0)[GPU] == DeviceSignals(power_w=0.0)
    nvml_here.lose(0, False)
    limits_w = [gpus.look({GPU: 0.0}, now)[GPU].power_limit_w for now in (1.0, 9.0, 10.0)]
    assert limits_w == [None, None, 700.0], "it is asked now and then"


def test_leftover_clocks_are_reset_at_the_next_start(nvml_here: Any, tmp_path: Path) -> None:
    nvml_here.set_limit_w(0, 400)
    open_knobs(HOSTS).sm_clock[GPU].write(1200.0)
    for file, quantity, found, ours in (("restore", POWER, 700.0, 400.0), ("restore-clocks", SM_CLOCK, None, 1200.0)):
        left = RestoreFile(tmp_path / f"{file}.json", quantity)
        left.write({GPU: Found(GPU, nvml_here.uuid(), found, 0.0, (ours,))})
    assert restore_all(open_knobs(HOSTS), tmp_path) == [
        f"{GPU}: power limit set back to 700 W, from 400 W",
        f"{GPU}: SM clock is the driver's own again",
    ]
    assert (nvml_here.limit_w(), nvml_here.locked_mhz()) == (700, None)


def test_clocks_behind_a_zeusd(zeusd: Any, tmp_path: Path) -> None:
    knobs = open_knobs({"h1": Host(zeusd=zeusd.address)})
    actuator = Actuator(knobs.sm_clock, tmp_path / "restore-clocks.json", quantity=SM_CLOCK)
    (applied,) = actuator.apply({"h1/gpu:1": 1200.0}, 0.0)
    assert (applied.effect, applied.enforced) == (Effect.SET, None)
    assert [gpu.sm_clock_range_mhz for gpu in zeusd.gpus] == [None, (0, 1200)]
    actuator.restore()
    assert zeusd.gpus[1].sm_clock_range_mhz is None
    with pytest.raises(KnobError):
        knobs.sm_clock["h1/gpu:0"].write(100.0)  # below every clock of the card: the daemon's own refusal
    zeusd.host.may_set = False
    with pytest.raises(NoPrivilege):
        knobs.sm_clock["h1/gpu:0"].write(1200.0)


def test_the_watchdog_comes_with_the_first_write_and_leaves_with_the_last(nvml_here: Any, tmp_path: Path) -> None:
    watchdog = Watchdog(HOSTS, tmp_path)
    gpus = devices(tmp_path, watchdog=watchdog)
    gpus.apply(Decision(), 0.0)
    assert watchdog.pid is None
    gpus.apply(BOTH, 1.0)
    assert watchdog.pid is not None
    process = psutil.Process(watchdog.pid)
    time.sleep(0.2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    gpus.apply(Decision(power_limit_w={GPU: 300.0}), 2.0)
    assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    gpus.restore()
    assert not process.is_running() and nvml_here.limit_w() == 700


def test_a_watchdog_that_is_told_nothing_ends() -> None:
    done = subprocess.run([sys.executable, "-m", "proxy.control.watchdog"], stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode == 0


def test_a_cap_that_never_binds_is_said_once(nvml_here: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nvml_here.set_power_w(0, 250)
    gpus = devices(tmp_path)
    gpus.apply(Decision(power_limit_w={GPU: 400.0}), 0.0)
    for now in range(100):
        gpus.watch(float(now), gpus.look({GPU: 250.0}, float(now)), [GPU])
    assert gpus.notes == {GPU: "the cap of 400 W has not held it once in 99 s of work"}
    assert [record.getMessage() for record in caplog.records if "has not held" in record.getMessage()] == [
        f"{GPU}: the cap of 400 W has not held it once in 60 s of work"
    ]
    gpus.restore()
