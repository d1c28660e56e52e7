"""Zeus's own client against it, over a real socket."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from zeus.device.exception import ZeusdError
from zeus.utils.zeusd import (
    CpuEnergyResult,
    ZeusdAuthError,
    ZeusdCapabilityError,
    ZeusdClient,
    ZeusdConfig,
    require_capabilities,
)

from emulator.zeusd.token import ApiGroup, issue

KEY = b"a key of thirty-two bytes and so"


def client(daemon: Any, token: str | None = None) -> ZeusdClient:
    return ZeusdClient(ZeusdConfig(host_port=daemon.address, token=token))


@pytest.fixture
def zeus(zeusd: Any) -> ZeusdClient:
    return client(zeusd)


def test_discovery(zeus: ZeusdClient) -> None:
    assert [(gpu.id, gpu.name) for gpu in zeus.gpus] == [(0, "Emulated H200"), (1, "Emulated H200")]
    assert (zeus.cpu_ids, zeus.dram_available, zeus.auth_required) == ([0], [True], False)
    assert zeus.can_read_gpu and zeus.can_control_gpu and zeus.can_read_cpu
    require_capabilities(zeus, read_gpu=True, control_gpu=True, read_cpu=True, gpu_ids=[0, 1], cpu_ids=[0])
    with pytest.raises(ZeusdCapabilityError, match=r"GPU indices \[2\] not available"):
        require_capabilities(zeus, gpu_ids=[2])


def test_energy_is_in_millijoules_and_begins_again_after_a_reset(zeusd: Any, zeus: ZeusdClient) -> None:
    zeusd.gpus[0].spent_j, zeusd.gpus[1].spent_j = 1234.5678, 42.0
    assert zeus.get_gpu_energy([0, 1]) == {0: 1_234_567, 1: 42_000}
    assert zeus.get_gpu_energy([1]) == {1: 42_000}
    zeusd.host.reset_counters()
    zeusd.gpus[0].spent_j += 1.0
    assert zeus.get_gpu_energy([0, 1]) == {0: 1000, 1: 0}


def test_power_of_a_sensor_that_nobody_had_looked_at(zeusd: Any, zeus: ZeusdClient) -> None:
    zeusd.gpus[0].power_w, zeusd.gpus[1].power_w = 450.0, 120.0
    snapshot = zeus.get_gpu_power()
    assert snapshot.power_mw == pytest.approx({0: 450_000, 1: 120_000}, rel=0.01)
    assert zeus.get_gpu_power([1]).power_mw == pytest.approx({1: 120_000}, rel=0.01)
    assert snapshot.timestamp_ms / 1000 == pytest.approx(zeus.get_time(), abs=60)


def test_power_limits(zeusd: Any, zeus: ZeusdClient) -> None:
    assert zeus.get_power_limit() == {0: 700_000, 1: 700_000}
    assert zeus.get_power_limit_constraints([1]) == {1: (200_000, 700_000)}
    zeus.set_power_limit([1], 350_500)
    assert zeus.get_power_limit() == {0: 700_000, 1: 350_500} and zeusd.gpus[1].power_limit_w == 350.5
    zeus.set_power_limit([0, 1], 200_000)
    zeus.set_power_limit([0], 700_000, block=False)
    assert [gpu.power_limit_w for gpu in zeusd.gpus] == [700.0, 200.0]
    for limit_mw in (199_999, 700_001):
        with pytest.raises(ZeusdError, match="NVML error: a supplied argument was invalid"):
            zeus.set_power_limit([0, 1], limit_mw)
    zeus.set_power_limit([0], 90_000, block=False)  # who does not wait is not told
    assert [gpu.power_limit_w for gpu in zeusd.gpus] == [700.0, 200.0]


def test_locked_clocks(zeusd: Any, zeus: ZeusdClient) -> None:
    gpu, other = zeusd.gpus
    zeus.set_gpu_locked_clocks([0], 345, 1400)
    zeus.set_mem_locked_clocks([0, 1], 3201, 3201)
    assert (gpu.sm_clock_range_mhz, gpu.memory_clock_range_mhz) == ((345, 1400), (3201, 3201))
    assert (other.sm_clock_range_mhz, other.memory_clock_range_mhz) == (None, (3201, 3201))
    for low_mhz, high_mhz in [(1500, 1400), (1, 300), (2000, 2500)]:
        with pytest.raises(ZeusdError, match="a supplied argument was invalid"):
            zeus.set_gpu_locked_clocks([0], low_mhz, high_mhz)
    with pytest.raises(ZeusdError, match="a supplied argument was invalid"):
        zeus.set_mem_locked_clocks([0], 0, 0)
    assert gpu.sm_clock_range_mhz == (345, 1400)
    zeus.reset_gpu_locked_clocks([0])
    assert (gpu.sm_clock_range_mhz, gpu.memory_clock_range_mhz) == (None, (3201, 3201))
    zeus.reset_mem_locked_clocks([0, 1], block=False)
    assert gpu.memory_clock_range_mhz is None and other.memory_clock_range_mhz is None


def test_persistence_mode(zeus: ZeusdClient) -> None:
    assert zeus.get_persistence_mode() == {0: False, 1: False}
    zeus.set_persistence_mode([1], True)
    assert zeus.get_persistence_mode() == {0: False, 1: True}
    zeus.set_persistence_mode([1], False)
    assert zeus.get_persistence_mode([1]) == {1: False}


def test_without_the_permission_everything_can_be_read_and_nothing_set(zeusd: Any, zeus: ZeusdClient) -> None:
    zeusd.host.may_set = False
    for attempt in (
        lambda: zeus.set_power_limit([0], 300_000),
        lambda: zeus.set_power_limit([0], 1),  # even what would be refused anyway
        lambda: zeus.set_gpu_locked_clocks([0], 345, 1400),
        lambda: zeus.reset_gpu_locked_clocks([0]),
        lambda: zeus.set_mem_locked_clocks([0], 3201, 3201),
        lambda: zeus.reset_mem_locked_clocks([0]),
        lambda: zeus.set_persistence_mode([0], True),
    ):
        with pytest.raises(ZeusdError, match="the current user does not have permission to perform this operation"):
            attempt()
    assert zeus.get_power_limit() == {0: 700_000, 1: 700_000} and set(zeus.get_gpu_energy([0, 1])) == {0, 1}
    zeusd.host.may_set = True
    zeus.set_power_limit([0], 300_000)
    assert zeusd.gpus[0].power_limit_w == 300.0


def test_a_lost_gpu_fails_the_call_for_all(zeusd: Any, zeus: ZeusdClient) -> None:
    zeusd.gpus[0].lost = True
    with pytest.raises(ZeusdError, match='"0":"NVML error: device fell off the bus'):
        zeus.get_gpu_energy([0, 1])
    with pytest.raises(ZeusdError, match="device fell off the bus"):
        zeus.get_gpu_power()
    assert zeus.get_gpu_energy([1]) == {1: 0}


def test_a_gpu_that_is_not_there(zeus: ZeusdClient) -> None:
    with pytest.raises(ZeusdError, match="GPU 2 not found"):
        zeus.get_gpu_energy([0, 2])
    with pytest.raises(ZeusdError, match="GPU index 2 does not exist"):
        zeus.set_power_limit([2], 300_000)
    with pytest.raises(ZeusdError, match="CPU 7 not found"):
        zeus.get_cpu_energy([7])


def test_cpu_and_dram_energy_are_in_microjoules(zeusd: Any, zeus: ZeusdClient) -> None:
    zeusd.cpus[0].package.spent_j, zeusd.cpus[0].dram.spent_j = 12.345678, 0.5
    assert zeus.get_cpu_energy() == {0: CpuEnergyResult(12_345_678, 500_000)}
    assert zeus.get_cpu_energy([0], dram=False) == {0: CpuEnergyResult(12_345_678, None)}
    assert zeus.get_cpu_energy([0], cpu=False) == {0: CpuEnergyResult(None, 500_000)}


def test_cpu_power_is_what_its_counters_moved_by(zeusd: Any, zeus: ZeusdClient) -> None:
    zeusd.cpus[0].package.power_w, zeusd.cpus[0].dram.power_w = 150.0, 20.0
    (power,) = zeus.get_cpu_power().power_mw.values()
    assert (power.cpu_mw, power.dram_mw) == pytest.approx((150_000, 20_000), rel=0.05)


def test_groups_that_are_off(make_zeusd: Callable[..., Any]) -> None:
    reader = client(make_zeusd(groups=[ApiGroup.GPU_READ]))
    assert (reader.can_read_gpu, reader.can_control_gpu, reader.can_read_cpu) == (True, False, False)
    assert reader.gpu_ids == [0, 1] and reader.cpu_ids == []
    with pytest.raises(ZeusdError, match="API group 'gpu-control' is not enabled on this server"):
        reader.set_power_limit([0], 300_000)
    with pytest.raises(ZeusdError, match="API group 'cpu-read' is not enabled on this server"):
        reader.get_cpu_energy()
    assert client(make_zeusd(groups=[ApiGroup.CPU_READ])).gpus == []


def test_tokens_and_their_scopes(make_zeusd: Callable[..., Any]) -> None:
    daemon = make_zeusd(key=KEY)
    reader = client(daemon, issue(KEY, "ada", [ApiGroup.GPU_READ], exp=4_000_000_000))
    assert reader.auth_error is None and reader.granted_scopes == {"gpu-read"}
    assert (reader.can_read_gpu, reader.can_control_gpu) == (True, False)
    assert reader.get_gpu_energy([0]) == {0: 0}
    says = r"Token for user 'ada' lacks required scope 'gpu-control'. Token scopes: \['gpu-read'\]"
    with pytest.raises(ZeusdError, match=says):
        reader.set_power_limit([0], 300_000)
    assert daemon.gpus[0].power_limit_w == 700.0
    operator = client(daemon, issue(KEY, "eve", list(ApiGroup)))
    operator.set_power_limit([0], 300_000)
    assert daemon.gpus[0].power_limit_w == 300.0


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "no token was provided"),
        ("nonsense", "Invalid token: InvalidToken"),
        (issue(b"another key", "ada", list(ApiGroup)), "Invalid token: InvalidSignature"),
        (issue(KEY, "ada", list(ApiGroup), exp=1_000_000_000), "Token has expired."),
    ],
)
def test_a_bad_token_is_told_at_once(make_zeusd: Callable[..., Any], token: str | None, says: str) -> None:
    stranger = client(make_zeusd(key=KEY), token)
    assert stranger.auth_error is not None and says in stranger.auth_error
    assert not (stranger.can_read_gpu or stranger.can_control_gpu or stranger.can_read_cpu)
    with pytest.raises(ZeusdAuthError):
        require_capabilities(stranger, read_gpu=True)
    with pytest.raises(ZeusdError, match="error"):
        stranger.get_power_limit()
    assert stranger.get_time() > 0, "the time is for everybody"


def test_over_a_unix_socket(make_zeusd: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "zeusd.sock"
    daemon = make_zeusd(at=str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    zeus = ZeusdClient(ZeusdConfig.uds(str(path)))
    zeus.set_power_limit([0], 300_000)
    assert daemon.gpus[0].power_limit_w == 300.0
