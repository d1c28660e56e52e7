import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy.control.actuator import Actuator, Effect
from proxy.control.knobs import SM_CLOCK
from proxy.control.lock import GpuLocks

ROOT = Path(__file__).parents[3]
GPU = "h1/gpu:0"
HOLD = """
import sys
from pathlib import Path
from proxy.control.lock import GpuLocks
assert GpuLocks(Path(sys.argv[1])).take("GPU-7", "power limit") is None
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        locks = GpuLocks(tmp_path)
        assert locks.take("GPU-7", "power limit") == f"process {holder.pid}"
        assert locks.take("GPU-8", "power limit") is None, "another GPU is free"
    finally:
        holder.kill()
        holder.communicate()
    assert locks.take("GPU-7", "power limit") is None, "the dead hold nothing"


def test_one_gateway_takes_a_lock_for_several_purposes(tmp_path: Path) -> None:
    locks, other = GpuLocks(tmp_path), GpuLocks(tmp_path)
    assert locks.take("gpu1:4938-gpu-0", "power limit") is locks.take("gpu1:4938-gpu-0", "SM clock") is None
    (file,) = tmp_path.iterdir()
    assert (file.name, file.read_text()) == ("joulegate-gpu1_4938-gpu-0.lock", f"process {os.getpid()}\n")
    locks.release("gpu1:4938-gpu-0", "power limit")
    assert other.take("gpu1:4938-gpu-0", "power limit") == f"process {os.getpid()}"
    locks.release("gpu1:4938-gpu-0", "SM clock")
    locks.release("gpu1:4938-gpu-0", "SM clock")
    assert list(tmp_path.iterdir()) == [] and other.take("gpu1:4938-gpu-0", "power limit") is None


def test_a_second_gateway_is_told_and_only_observes(make_knob: Callable[..., Any], tmp_path: Path) -> None:
    knob, folder = make_knob(), tmp_path / "locks"
    folder.mkdir()
    first = Actuator({GPU: knob}, tmp_path / "1/restore.json", locks=GpuLocks(folder))
    second = Actuator({GPU: knob}, tmp_path / "2/restore.json", locks=GpuLocks(folder))
    first.apply({GPU: 400.0}, 0.0)
    (applied,) = second.apply({GPU: 300.0}, 1.0)
    assert applied.effect is Effect.REFUSED
    assert applied.reason == f"process {os.getpid()} sets this GPU: it is only observed"
    assert knob.written_w == [400.0] and not (tmp_path / "2/restore.json").exists()
    first.apply({}, 20.0)
    assert second.apply({GPU: 300.0}, 21.0)[0].effect is Effect.SET, "once it is set back, another may"
    second.restore()
    assert knob.limit_w == 700.0 and list(folder.iterdir()) == []


def test_power_and_clocks_of_one_gateway_share_its_lock(make_knob: Callable[..., Any], tmp_path: Path) -> None:
    locks, power, clock = GpuLocks(tmp_path), make_knob(), make_knob()
    actuators = [
        Actuator({GPU: power}, tmp_path / "a/restore.json", locks=locks),
        Actuator({GPU: clock}, tmp_path / "a/restore-clocks.json", quantity=SM_CLOCK, locks=locks),
    ]
    assert [one.apply({GPU: 300.0}, 0.0)[0].effect for one in actuators] == [Effect.SET] * 2
    actuators[0].restore()
    assert list(tmp_path.glob("*.lock")), "the clock's is still needed"
    actuators[1].restore()
    assert not list(tmp_path.glob("*.lock"))
