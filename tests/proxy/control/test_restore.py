import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policies.interface import Signals
from policies.static import Static
from proxy.config import Host
from proxy.control.actuator import Actuator, Effect
from proxy.control.gpus import open_knobs
from proxy.control.knobs import Knobs
from proxy.control.restore import Found, RestoreFile, restore_leftover

ROOT = Path(__file__).parents[3]
GPU = "h1/gpu:0"
MakeKnob = Callable[..., Any]

# A gateway's control loop in small, until somebody ends it.
HOLD = """
import sys, time
from pathlib import Path
from policies.interface import Signals
from policies.static import Static
from proxy.config import Host
from proxy.control.actuator import Actuator
from proxy.control.gpus import open_knobs
from proxy.control.knobs import Knobs

policy = Static(power_limit_w={"h1/gpu:0": 400})
actuator = Actuator(open_knobs({"h1": Host(local=True)}).power, Path(sys.argv[1]))
decision, _ = policy.decide(Signals(now=0.0), None)
print(actuator.apply(decision.power_limit_w, 0.0), flush=True)
sys.stdin.read()
"""


def leave(path: Path, *found: Found) -> None:
    file = RestoreFile(path)
    assert file.take()
    file.write({entry.device: entry for entry in found})
    file.release()


def test_a_killed_gateway_is_tidied_up_after_at_the_next_start(nvml_here: Any, path: Path) -> None:
    gateway = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        env={**os.environ, **nvml_here.env},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert gateway.stdout and "SET" in gateway.stdout.readline()
        assert nvml_here.limit_w() == 400
        knobs = open_knobs({"h1": Host(local=True)}).power
        assert restore_leftover(knobs, path) == [
            f"power limits are held by a running process ({gateway.pid}): nothing is restored"
        ]
        assert nvml_here.limit_w() == 400
    finally:
        gateway.kill()
        gateway.communicate()
    assert nvml_here.limit_w() == 400
    assert restore_leftover(knobs, path) == ["h1/gpu:0: power limit set back to 700 W, from 400 W"]
    assert nvml_here.limit_w() == 700 and not path.exists()
    assert restore_leftover(knobs, path) == []


def test_static_sets_and_gives_back_through_zeus(nvml_here: Any, path: Path) -> None:
    nvml_here.set_limit_w(0, 650)
    nvml_here.set_ceiling_w(0, 390)
    nvml_here.set_power_w(0, 600)
    actuator = Actuator(open_knobs({"h1": Host(local=True)}).power, path)
    decision, _ = Static(power_limit_w={GPU: 400}).decide(Signals(now=0.0), None)
    (applied,) = actuator.apply(decision.power_limit_w, 0.0)
    assert (applied.effect, applied.enforced, nvml_here.limit_w()) == (Effect.SET, 390.0, 400.0)
    (refused,) = actuator.apply({GPU: 100.0}, 20.0)
    assert refused.reason == "100 W is outside of what the device allows, 200 to 700 W"
    actuator.restore()
    assert nvml_here.limit_w() == 650 and nvml_here.writes() == 2


def test_without_privilege_nvml_stays_untouched(nvml_here: Any, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nvml_here.privileged = False
    actuator = Actuator(open_knobs({"h1": Host(local=True)}).power, path)
    effects = [actuator.apply({GPU: 400.0}, float(t))[0].effect for t in range(0, 50, 10)]
    assert effects == [Effect.REFUSED] * 5
    assert (nvml_here.limit_w(), nvml_here.writes(), path.exists()) == (700, 0, False)
    assert len([record for record in caplog.records if "not allowed" in record.getMessage()]) == 1


def test_a_gpu_is_known_by_its_uuid(make_nvml: Any, load_nvml: Any, path: Path) -> None:
    play = load_nvml(make_nvml(gpus=2))
    play.set_limit_w(0, 400)
    play.set_limit_w(1, 400)
    play.set_uuid(1, "GPU-moved")
    leave(path, Found(GPU, "GPU-moved", 600.0, 0.0, (400.0,)))
    restore_leftover(open_knobs({"h1": Host(local=True)}).power, path)
    assert (play.limit_w(0), play.limit_w(1)) == (400, 600)


def test_no_gpu_means_no_knobs(make_nvml: Any, load_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    play = load_nvml(make_nvml())
    monkeypatch.setenv("NVML_PLAY_STATE", str(play.path.with_name("nothing")))
    assert open_knobs({"h1": Host(local=True), "h2": Host(zeusd="127.0.0.1:1"), "h3": Host()}) == Knobs()


def test_what_cannot_be_reached_stays_for_the_next_try(make_knob: MakeKnob, path: Path) -> None:
    gone = Found("h2/gpu:0", None, 700.0, 0.0, (300.0,))
    leave(path, Found(GPU, None, 700.0, 0.0, (400.0,)), gone)
    here, there = make_knob(400.0), make_knob(300.0)
    lines = restore_leftover({GPU: here}, path)
    assert here.limit_w == 700.0 and RestoreFile(path).read() == {"h2/gpu:0": gone}
    assert lines[1] == "h2/gpu:0: cannot be reached to set its power limit back to 700 W"
    there.allowed = False
    assert "could not be set back" in restore_leftover({"h2/gpu:0": there}, path)[0]
    there.allowed = True
    restore_leftover({"h2/gpu:0": there}, path)
    assert there.limit_w == 700.0 and not path.exists()


def test_leftovers_of_another_gpu_survive_a_new_gateway(make_knob: MakeKnob, path: Path) -> None:
    gone = Found("h2/gpu:0", None, 700.0, 0.0, (300.0,))
    leave(path, gone)
    actuator = Actuator({GPU: make_knob()}, path)
    actuator.apply({GPU: 400.0}, 0.0)
    assert set(RestoreFile(path).read()) == {GPU, "h2/gpu:0"}
    actuator.restore()
    assert RestoreFile(path).read() == {"h2/gpu:0": gone}


def test_a_new_gateway_knows_what_was_found_before_the_dead_one(make_knob: MakeKnob, path: Path) -> None:
    leave(path, Found(GPU, None, 700.0, 0.0, (400.0,)))
    knob = make_knob(400.0)
    actuator = Actuator({GPU: knob}, path)
    actuator.apply({GPU: 300.0}, 0.0)
    actuator.restore()
    assert knob.limit_w == 700.0


@pytest.mark.parametrize("seen_w", [700.0, 550.0])
def test_only_what_is_ours_is_set_back(make_knob: MakeKnob, path: Path, seen_w: float) -> None:
    leave(path, Found(GPU, None, 700.0, 0.0, (400.0, 300.0)))
    knob = make_knob(seen_w)
    restore_leftover({GPU: knob}, path)
    assert knob.written_w == [] and not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"found": [{"device": 1}]}', '{"pid": 1}'])
def test_a_broken_file_is_said_and_kept(make_knob: MakeKnob, path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    (line,) = restore_leftover({GPU: make_knob()}, path)
    assert "cannot be understood" in line and path.read_text() == text
    (applied,) = Actuator({GPU: make_knob()}, path).apply({GPU: 400.0}, 0.0)
    assert applied.effect is Effect.REFUSED
