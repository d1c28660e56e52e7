import pytest

from emulator.core.host import HostPower
from emulator.core.presets import load_gpu


def test_a_host_at_rest_and_one_that_serves() -> None:
    figures = load_gpu("h200").host
    rest, busy = HostPower(figures), HostPower(figures)
    rest.account(10)
    busy.account(10, busy_s=10, requests=100, prompt_tokens=100_000, output_tokens=10_000)
    assert (rest.cpu_energy_j, rest.dram_energy_j) == (900, 200)
    cores_s = 2 * 10 + 100 * 5e-3 + 100_000 * 2.5e-6 + 10_000 * 1e-4
    assert busy.cpu_energy_j - rest.cpu_energy_j == pytest.approx(6 * cores_s)
    assert busy.dram_energy_j - rest.dram_energy_j == pytest.approx(100)


def test_it_adds_up_however_it_is_cut() -> None:
    whole, parts = (HostPower(load_gpu("h200").host) for _ in range(2))
    whole.account(3, busy_s=1, requests=3)
    for busy_s in (1, 0, 0):
        parts.account(1, busy_s=busy_s, requests=1)
    assert whole.cpu_energy_j == pytest.approx(parts.cpu_energy_j)


def test_more_busy_than_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"busy_s is 0 to seconds \(1\), not 2"):
        HostPower(load_gpu("h200").host).account(1, busy_s=2)
