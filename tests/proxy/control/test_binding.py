import pytest

from policies.interface import DeviceSignals
from proxy.control.binding import Binding


def work(binding: Binding, device: DeviceSignals, cap_w: float | None = 400.0, busy: bool = True) -> str:
    for second in range(100):
        binding.look(float(second), cap_w, device, busy)
    return binding.note


def test_a_cap_that_never_binds_is_reported() -> None:
    idle_reasons = DeviceSignals(power_w=250.0, throttle=frozenset({"sw_thermal_slowdown"}))
    assert work(Binding(), idle_reasons) == "the cap of 400 W has not held it once in 99 s of work"


@pytest.mark.parametrize(
    ("device", "cap_w", "busy"),
    [
        (DeviceSignals(power_w=250.0, throttle=frozenset({"sw_power_cap"})), 400.0, True),
        (DeviceSignals(power_w=395.0, throttle=None), 400.0, True),
        (DeviceSignals(power_w=250.0), None, True),
        (DeviceSignals(power_w=80.0), 400.0, False),
    ],
    ids=["it says so", "it draws so much", "there is none", "there is no work"],
)
def test_else_there_is_nothing_to_say(device: DeviceSignals, cap_w: float | None, busy: bool) -> None:
    assert work(Binding(), device, cap_w, busy) == ""


def test_another_cap_has_another_chance() -> None:
    binding, device = Binding(), DeviceSignals(power_w=250.0)
    work(binding, device)
    binding.look(100.0, 300.0, device, True)
    assert binding.note == ""
