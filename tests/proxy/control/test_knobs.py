"""Power limits behind a zeusd: the emulator's, which has the paths and the answers of the real one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.config import Host
from proxy.control.actuator import Actuator, Effect
from proxy.control.gpus import open_knobs
from proxy.control.knobs import KnobError, NoPrivilege, PowerKnob

GPU = "h1/gpu:1"


def knobs(daemon: Any) -> dict[str, PowerKnob]:
    return dict(open_knobs({"h1": Host(zeusd=daemon.address)}).power)


def limits_w(daemon: Any) -> list[float]:
    return [gpu.power_limit_w for gpu in daemon.gpus]


def test_zeusd_sets_and_restores(zeusd: Any, path: Path) -> None:
    actuator = Actuator(knobs(zeusd), path)
    (applied,) = actuator.apply({GPU: 400.0}, 0.0)
    assert (applied.effect, applied.enforced, limits_w(zeusd)) == (Effect.SET, 400.0, [700.0, 400.0])
    actuator.restore()
    assert limits_w(zeusd) == [700.0, 700.0]


def test_what_is_out_of_range_is_refused_by_us_and_by_zeusd(zeusd: Any, path: Path) -> None:
    actuator = Actuator(knobs(zeusd), path)
    (applied,) = actuator.apply({GPU: 90.0}, 0.0)
    assert applied.effect is Effect.REFUSED and applied.reason.endswith("what the device allows, 200 to 700 W")
    with pytest.raises(KnobError, match="argument was invalid"):
        knobs(zeusd)[GPU].write(90.0)
    assert limits_w(zeusd) == [700.0, 700.0] and not path.exists()


def test_zeusd_without_control_or_privilege(make_zeusd: Callable[..., Any], zeusd: Any) -> None:
    with pytest.raises(NoPrivilege, match="gpu-control"):
        knobs(make_zeusd(groups=["gpu-read"]))[GPU].write(400.0)
    zeusd.host.may_set = False
    with pytest.raises(NoPrivilege, match="does not have permission"):
        knobs(zeusd)[GPU].write(400.0)
    assert knobs(make_zeusd(groups=["gpu-control"])) == {}


def test_a_missing_privilege_is_said_once_for_all_gpus(
    zeusd: Any, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zeusd.host.may_set = False
    actuator = Actuator(knobs(zeusd), path)
    for t in range(3):
        effects = {applied.effect for applied in actuator.apply({"h1/gpu:0": 400.0, "h1/gpu:1": 400.0}, t)}
        assert effects == {Effect.REFUSED}
    said = [record.getMessage() for record in caplog.records if record.name == "proxy.control.actuator"]
    assert len(said) == 1 and "h1/gpu:0: not allowed to set power limits, going on without" in said[0]


def test_zeusd_that_went_away_is_an_error_of_the_knob(zeusd: Any) -> None:
    knob = knobs(zeusd)[GPU]
    zeusd.stop()
    with pytest.raises(KnobError):
        knob.read()
