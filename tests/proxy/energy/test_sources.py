import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zeus.device
import zeus.device.cpu
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

import emulator.zeusd.app
from emulator.zeusd.token import ApiGroup, issue
from proxy.config import Host
from proxy.energy.daemon import Zeusd
from proxy.energy.estimate import BUSY_W, IDLE_W, Estimate, estimated_uj
from proxy.energy.records import Quality
from proxy.energy.sources import (
    Device,
    Reading,
    Source,
    on_cpu,
    on_gpus,
    open_estimate,
    open_sources,
    open_zeus,
    open_zeusd,
    unreadable,
)

HERE = Host(local=True)
MakeZeusd = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_rapl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without RAPL, whatever the one at hand has."""
    rapl_at(tmp_path / "no-rapl", monkeypatch)


def rapl_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zeus.device.cpu import rapl

    monkeypatch.setattr(rapl, "RAPL_DIR", str(folder))
    monkeypatch.setattr(rapl, "CONTAINER_RAPL_DIR", str(folder / "none"))
    monkeypatch.setattr(zeus.device.cpu, "_cpus", None)
    rapl.rapl_is_available.cache_clear()


def opened(source: Source | None) -> Source:
    assert source is not None
    return source


def energies(source: Source) -> dict[str, int]:
    return {reading.device: reading.energy_uj for reading in source.read()}


# NVML


def test_gpus_are_read_in_microjoules(make_nvml: Any, load_nvml: Any) -> None:
    play = load_nvml(make_nvml(gpus=2))
    for i in range(2):
        play.set_power_w(i, 0)
        play.reset_counter(i)
    play.add_energy_uj(0, 1_234_567_000)
    play.add_energy_uj(1, 42_000)
    source = opened(open_zeus("h1", HERE))
    assert [(d.name, d.component, d.model, d.quality) for d in source.devices] == [
        ("h1/gpu:0", "gpu", "NVIDIA H200", Quality.MEASURED),
        ("h1/gpu:1", "gpu", "NVIDIA H200", Quality.MEASURED),
    ]
    assert energies(source) == {"h1/gpu:0": 1_234_567_000, "h1/gpu:1": 42_000}
    assert source.notes == ()
    source.close()


def test_a_counter_that_begins_again_is_shown_as_it_is(nvml_here: Any) -> None:
    nvml_here.set_power_w(0, 0)
    nvml_here.add_energy_uj(0, 9_000_000)
    source = opened(open_zeus("h1", HERE))
    assert energies(source)["h1/gpu:0"] >= 9_000_000
    nvml_here.reset_counter()
    assert energies(source) == {"h1/gpu:0": 0}


def test_a_lost_gpu_is_left_out_said_once_and_may_come_back(
    make_nvml: Any, load_nvml: Any, caplog: pytest.LogCaptureFixture
) -> None:
    play = load_nvml(make_nvml(gpus=2))
    source = opened(open_zeus("h1", HERE))
    play.lose(0)
    caplog.set_level(logging.WARNING)
    assert [set(energies(source)) for _ in range(3)] == [{"h1/gpu:1"}] * 3
    assert [record.getMessage() for record in caplog.records] == ["h1/gpu:0 cannot be read: GPU is lost"]
    play.lose(0, False)
    assert set(energies(source)) == {"h1/gpu:0", "h1/gpu:1"}
    assert caplog.records[-1].getMessage() == "h1/gpu:0 can be read again"


def test_old_and_split_gpus_are_said(make_nvml: Any, load_nvml: Any) -> None:
    play = load_nvml(make_nvml(gpus=2))
    play.set_model(0, "Tesla P100", architecture=4)
    play.set_mig(1, True)
    source = opened(open_zeus("h1", HERE))
    assert [device.name for device in source.devices] == ["h1/gpu:1"]
    assert source.notes == (
        "h1/gpu:0 (Tesla P100) has no energy counter: not measured",
        "h1/gpu:1 (NVIDIA H200) is split by MIG: its counter covers the whole board, all slices together; "
        "what a request cost on it is not known",
    )


def test_a_gpu_lost_at_the_start_is_a_note_and_no_failure(nvml_here: Any) -> None:
    nvml_here.lose(0)
    source = opened(open_zeus("h1", HERE))
    assert source.devices == () and source.notes == ("h1: GPUs cannot be read: GPU is lost",)


def test_visible_devices_keep_their_number(make_nvml: Any, load_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load_nvml(make_nvml(gpus=3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert [device.name for device in opened(open_zeus("h1", HERE)).devices] == ["h1/gpu:2"]


# RAPL: Zeus reads a folder that looks like the kernel's


def write_rapl(folder: Path, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> Path:
    folder.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", range_uj)):
        (folder / file).write_text(f"{text}\n")
    return folder / "energy_uj"


def test_rapl_gives_packages_and_dram_and_unwraps(
    make_nvml: Any, load_nvml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_nvml(make_nvml(gpus=0))
    root = tmp_path / "rapl"
    package = write_rapl(root / "intel-rapl:0", "package-0", 1_000_000, range_uj=1_001_000)
    write_rapl(root / "intel-rapl:0/intel-rapl:0:0", "dram", 777)
    write_rapl(root / "intel-rapl:1", "psys", 5)
    rapl_at(root, monkeypatch)
    source = opened(open_zeus("h1", HERE))
    assert [(device.name, device.component) for device in source.devices] == [
        ("h1/cpu:0", "cpu"),
        ("h1/dram:0", "dram"),
    ]
    assert energies(source) == {"h1/cpu:0": 1_000_000, "h1/dram:0": 777}
    package.write_text("4\n")
    assert energies(source) == {"h1/cpu:0": 1_001_004, "h1/dram:0": 777}
    source.close()


def test_rapl_that_may_not_be_read_is_a_note(
    make_nvml: Any, load_nvml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_nvml(make_nvml(gpus=0))
    write_rapl(tmp_path / "rapl/intel-rapl:0", "package-0", 1)
    rapl_at(tmp_path / "rapl", monkeypatch)
    real_open = open

    def open_as_a_user(file: Any, *args: Any, **options: Any) -> Any:  # root, as in a container, may read anything
        if str(file).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied", str(file))
        return real_open(file, *args, **options)

    monkeypatch.setattr("builtins.open", open_as_a_user)
    source = opened(open_zeus("h1", HERE))
    assert source.devices == ()
    assert source.notes[0].startswith("h1: RAPL counters cannot be read: ") and "permission" in source.notes[0]


# Apple


def test_apple_silicon_gives_cpu_gpu_and_dram(make_nvml: Any, load_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load_nvml(make_nvml(gpus=0))
    energy = SimpleNamespace(cpu_total_mj=10, gpu_mj=20, dram_mj=30, ane_mj=40)
    monkeypatch.setattr(zeus.device, "get_soc", lambda: SimpleNamespace(get_total_energy_consumption=lambda: energy))
    source = opened(open_zeus("mac", HERE))
    assert [device.component for device in source.devices] == ["cpu", "gpu", "dram"]
    energy.gpu_mj = 25
    assert energies(source) == {"mac/cpu:0": 10_000, "mac/gpu:0": 25_000, "mac/dram:0": 30_000}


# zeusd: the emulator's, which has the paths and the answers of the real one


def names(source: Source) -> set[str]:
    return {device.name for device in source.devices}


def test_zeusd_is_read(zeusd: Any) -> None:
    for card in zeusd.host.cards:
        card.name = "NVIDIA H200"
    zeusd.gpus[0].spent_j, zeusd.gpus[1].spent_j = 1.0, 2.0
    zeusd.cpus[0].package.spent_j, zeusd.cpus[0].dram.spent_j = 0.5, 0.25
    source = opened(open_zeusd("h1", Host(zeusd=zeusd.address)))
    assert [(device.name, device.quality) for device in source.devices] == [
        (name, Quality.MEASURED) for name in ("h1/gpu:0", "h1/gpu:1", "h1/cpu:0", "h1/dram:0")
    ]
    assert energies(source) == {
        "h1/gpu:0": 10**6,
        "h1/gpu:1": 2 * 10**6,
        "h1/cpu:0": 500_000,
        "h1/dram:0": 250_000,
    }
    source.close()


def test_one_lost_gpu_hides_no_other_behind_zeusd(zeusd: Any, caplog: pytest.LogCaptureFixture) -> None:
    source = Zeusd("h1", zeusd.address)
    zeusd.gpus[0].lost = True
    assert [set(energies(source)) for _ in range(2)] == [{"h1/gpu:1", "h1/cpu:0", "h1/dram:0"}] * 2
    said = [record.getMessage() for record in caplog.records if "h1/gpu:0" in record.getMessage()]
    assert len(said) == 1 and "device fell off the bus" in said[0]
    zeusd.gpus[0].lost = False
    assert "h1/gpu:0" in energies(source)


def test_the_whole_host_of_an_emulated_gpu_is_emulated(zeusd: Any) -> None:
    assert {device.quality for device in Zeusd("h1", zeusd.address).devices} == {Quality.EMULATED}


def test_zeusd_that_hides_its_gpus_says_so(make_zeusd: MakeZeusd) -> None:
    key = b"a key of thirty-two bytes and so"
    assert "no token was provided" in Zeusd("h1", make_zeusd(key=key).address).notes[0]
    daemon = make_zeusd(groups=["cpu-read", "gpu-control"])
    source = Zeusd("h1", daemon.address)
    assert {device.component for device in source.devices} == {"cpu", "dram"}
    assert source.notes == ("h1: zeusd does not let its GPUs be read: gpu-read is off",)


def test_zeusd_takes_the_token_of_the_environment(make_zeusd: MakeZeusd, monkeypatch: pytest.MonkeyPatch) -> None:
    key = b"a key of thirty-two bytes and so"
    monkeypatch.setenv("ZEUSD_TOKEN", issue(key, "joulegate", [ApiGroup.GPU_READ]))
    source = Zeusd("h1", make_zeusd(key=key).address)
    assert set(energies(source)) == names(source) == {"h1/gpu:0", "h1/gpu:1"}
    assert source.notes == ("h1: zeusd does not let its CPUs be read: cpu-read is off",)


def test_zeusd_that_goes_and_comes_is_asked_ever_more_seldom(
    make_zeusd: MakeZeusd, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SimpleNamespace(t=100.0)
    daemon = make_zeusd()
    source = Zeusd("h1", daemon.address, clock=lambda: clock.t)
    assert len(source.read()) == 4
    daemon.stop()
    assert source.read() == [] and source.read() == []
    assert [record.levelname for record in caplog.records if "does not answer" in record.message] == ["WARNING"]
    make_zeusd(at=daemon.address)
    assert source.read() == []  # not before a second has passed
    clock.t += 1.01
    assert len(source.read()) == 4


def test_zeusd_that_is_late_brings_its_devices_later(make_zeusd: MakeZeusd, zeusd: Any) -> None:
    clock = SimpleNamespace(t=100.0)
    zeusd.stop()
    source = Zeusd("h1", zeusd.address, clock=lambda: clock.t)
    assert source.devices == () and source.read() == []
    assert source.notes[0].startswith(f"h1: zeusd at {zeusd.address} does not answer")
    make_zeusd(at=zeusd.address)
    clock.t += 1.01
    assert set(energies(source)) == names(source) != set()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "/no/such/socket", "not an address", "[::1"])
def test_an_address_without_zeusd_stops_nothing(address: str) -> None:
    source = opened(open_zeusd("h1", Host(zeusd=address)))
    assert source.devices == () and source.read() == [] and address in source.notes[0]


def test_something_else_at_the_address_stops_nothing(zeusd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(self: emulator.zeusd.app.Zeusd, request: Any) -> Response:
        return JSONResponse(["not zeusd"])

    monkeypatch.setattr(emulator.zeusd.app.Zeusd, "_answer", answer)
    source = Zeusd("h1", zeusd.address)
    assert source.devices == () and "is no zeusd" in source.notes[0]


# Estimate


@given(elapsed_s=st.floats(0, 1e6), share=st.floats(0, 1), cpus=st.integers(1, 512), full_w=st.floats(1, 2000))
def test_the_estimate_lies_between_idle_and_full(elapsed_s: float, share: float, cpus: int, full_w: float) -> None:
    uj = estimated_uj(elapsed_s, share * elapsed_s * cpus, cpus, full_w)
    assert full_w * IDLE_W / BUSY_W * elapsed_s * 1e6 - 1 <= uj <= full_w * elapsed_s * 1e6 * (1 + 1e-9) + 1


def test_the_estimate_follows_cpu_use() -> None:
    clock, used = SimpleNamespace(t=50.0), SimpleNamespace(s=1000.0)
    source = Estimate("local", 100.0, clock=lambda: clock.t, busy_s=lambda: used.s)
    assert energies(source) == {"local/cpu:0": 0}
    clock.t += 10
    idle_uj = energies(source)["local/cpu:0"]
    assert idle_uj == round(100e6 * IDLE_W / BUSY_W * 10)
    used.s += 1
    busier_uj = energies(source)["local/cpu:0"]
    assert busier_uj > idle_uj
    used.s -= 1  # the kernel corrects itself: a counter never falls for that
    assert energies(source)["local/cpu:0"] == busier_uj


def test_the_real_cpu_is_estimated() -> None:
    source = opened(open_estimate("local", HERE))
    first, second = source.read()[0], source.read()[0]
    assert isinstance(first, Reading) and second.energy_uj >= first.energy_uj >= 0
    assert [(d.name, d.component, d.quality) for d in source.devices] == [("local/cpu:0", "cpu", Quality.ESTIMATED)]


# All together


def test_without_any_counter_the_first_line_says_what_an_estimate_is_good_for(
    registered: None, make_nvml: Any, load_nvml: Any
) -> None:
    load_nvml(make_nvml(gpus=0))
    sources, lines = open_sources({"local": Host(local=True, cpu_watts=65)})
    assert [device.quality for source in sources for device in source.devices] == [Quality.ESTIMATED]
    assert len(lines) == 1
    assert lines[0].startswith("local: no GPU or RAPL counter; CPU energy is estimated from CPU use at 65 W for ")
    assert lines[0].endswith("good for comparing runs on this machine, not for absolute figures")


def test_nothing_is_estimated_for_engines_elsewhere(registered: None, make_nvml: Any, load_nvml: Any) -> None:
    load_nvml(make_nvml(gpus=0))
    sources, lines = open_sources({"local": HERE}, engines_here=False)
    assert [device for source in sources for device in source.devices] == []
    assert lines == ["local: no GPU or RAPL counter, and no engine of this machine: nothing is measured here"]


def test_nothing_is_estimated_beside_a_counter(registered: None, nvml_here: Any) -> None:
    sources, lines = open_sources({"local": HERE})
    assert [device.name for source in sources for device in source.devices] == ["local/gpu:0"]
    assert lines == ["local: gpu:0 (NVIDIA H200) measured by hardware counters"]


def test_emulated_and_absent_hosts_are_said(
    registered: None, make_nvml: Any, load_nvml: Any, make_zeusd: MakeZeusd
) -> None:
    load_nvml(make_nvml(gpus=0))
    hosts = {"e": Host(zeusd=make_zeusd(gpus=1).address), "away": Host(zeusd="127.0.0.1:1"), "none": Host()}
    sources, lines = open_sources(hosts)
    assert len(sources) == 2
    assert lines[0] == (
        "e: gpu:0 (Emulated H200), cpu:0 (CPU package 0), dram:0 (DRAM of CPU package 0) "
        "emulated: a model's figures, not a machine's"
    )
    assert lines[1].startswith("away: zeusd at 127.0.0.1:1 does not answer")
    assert lines[2] == "none: neither local nor zeusd is given: nothing is measured"


def test_one_machine_under_two_names_is_read_once(registered: None, nvml_here: Any) -> None:
    sources, lines = open_sources({"a": HERE, "b": HERE})
    assert [device.name for source in sources for device in source.devices] == ["a/gpu:0"]
    assert "b is this machine, which is read as a already: not read twice" in lines


def test_a_cpu_that_an_engine_runs_on_is_estimated_even_beside_a_gpus_counter(registered: None, nvml_here: Any) -> None:
    sources, lines = open_sources({"local": HERE}, engines_on_cpu=True)
    found = [(device.name, device.quality) for source in sources for device in source.devices]
    assert found == [("local/gpu:0", Quality.MEASURED), ("local/cpu:0", Quality.ESTIMATED)]
    assert lines[0].startswith(
        "local: no counter of the CPU; its energy is estimated from CPU use (at a guessed wattage"
    )
    assert lines[1:] == ["local: gpu:0 (NVIDIA H200) measured by hardware counters"]
    _, lines = open_sources({"local": Host(local=True, cpu_watts=65)}, engines_on_cpu=True)
    assert "(at 65 W)" in lines[0]


def test_a_cpu_with_a_counter_is_not_estimated(
    registered: None, nvml_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rapl(tmp_path / "rapl/intel-rapl:0", "package-0", 1_000)
    rapl_at(tmp_path / "rapl", monkeypatch)
    sources, _ = open_sources({"local": HERE}, engines_on_cpu=True)
    qualities = {device.name: device.quality for source in sources for device in source.devices}
    assert qualities["local/cpu:0"] is Quality.MEASURED and qualities["local/gpu:0"] is Quality.MEASURED


def counter(name: str, quality: Quality = Quality.MEASURED) -> Device:
    return Device(f"local/{name}", name.partition(":")[0], "model", quality)


def test_what_moves_with_an_engines_work() -> None:
    gpus, package, dram = [counter("gpu:0"), counter("gpu:1")], counter("cpu:0"), counter("dram:0")
    guess = counter("cpu:0", Quality.ESTIMATED)
    assert on_cpu([*gpus, package, dram]) == ("local/cpu:0", "local/dram:0")
    assert on_cpu([*gpus, guess]) == ("local/cpu:0",) and on_cpu(gpus) == ()
    assert on_gpus([*gpus, package, dram]) == ("local/gpu:0", "local/gpu:1", "local/cpu:0", "local/dram:0")
    assert on_gpus([*gpus, guess]) == ("local/gpu:0", "local/gpu:1"), "an estimate would spoil the GPUs' figures"
    assert on_gpus([guess]) == ("local/cpu:0",) and on_gpus([counter("soc:0")]) == ("local/soc:0",)
    assert on_gpus([]) == ()


def test_a_host_that_nobody_can_read(registered: None) -> None:
    assert unreadable({"a": HERE, "b": Host(zeusd="b:4938"), "c": Host(cpu_watts=65)}) == ["c"]
