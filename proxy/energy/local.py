"""The counters of this machine, as Zeus finds them: NVIDIA and AMD GPUs, RAPL packages and DRAM, Apple's SoC."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.clock import now
from proxy.energy.estimate import cpu_model
from proxy.energy.records import Quality
from proxy.energy.sources import Counters, Device, Group, quality_of
from proxy.energy.wrap import Steady, Unwrap

if TYPE_CHECKING:
    from zeus.device.cpu.common import CPU
    from zeus.device.cpu.rapl import RAPLFile
    from zeus.device.gpu.common import GPU

_SLICED = "{name} ({model}) is split by MIG: its counter covers the whole board, all slices together"
# What of an SoC is a device of ours: clusters and cores are within these, the neural engine serves no LLM engine.
_SOC = {"cpu_total_mj": "cpu", "gpu_mj": "gpu", "dram_mj": "dram"}


def open_local(host: str) -> Counters:
    """Everything that can be read here; what is there and cannot be read is in the notes."""
    notes: list[str] = []
    return Counters([*_gpus(host, notes), *_cpus(host, notes), *_soc(host)], notes)


def _gpus(host: str, notes: list[str]) -> Iterator[Group]:
    from zeus.device import get_gpus
    from zeus.device.gpu.amd import amdsmi_is_available
    from zeus.device.gpu.nvidia import nvml_is_available

    if not nvml_is_available() and not amdsmi_is_available():
        return
    try:
        gpus = get_gpus().gpus
    except Exception as error:  # Zeus passes on a driver's errors and its own parsing of CUDA_VISIBLE_DEVICES
        notes.append(f"{host}: GPUs cannot be read: {error}")
        return
    for gpu in gpus:
        name = f"{host}/gpu:{gpu.gpu_index}"
        try:
            model, has_counter, mig = gpu.get_name(), gpu.supports_get_total_energy_consumption(), _mig(gpu)
        except Exception as error:  # one GPU that fails must not hide the others
            notes.append(f"{name} cannot be read: {error}")
            continue
        if not has_counter:
            notes.append(f"{name} ({model}) has no energy counter: not measured")
            continue
        withheld = _SLICED.format(name=name, model=model) if mig else ""
        if withheld:
            notes.append(f"{withheld}; what a request cost on it is not known")
        yield Group((Device(name, "gpu", model, quality_of(model), withheld),), _gpu_reader(name, gpu))


def _gpu_reader(name: str, gpu: "GPU") -> Callable[[], dict[str, int]]:
    return lambda: {name: round(gpu.get_total_energy_consumption() * 1000)}  # Zeus gives millijoules


def _mig(gpu: "GPU") -> bool:
    import pynvml
    from zeus.device.gpu.nvidia import NVIDIAGPU

    if not isinstance(gpu, NVIDIAGPU):
        return False
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(gpu.handle)[0])
    except pynvml.NVMLError:  # most GPUs have no MIG
        return False


def _cpus(host: str, notes: list[str]) -> Iterator[Group]:
    from zeus.device import get_cpus
    from zeus.device.cpu.rapl import rapl_is_available

    if not rapl_is_available():
        return
    try:
        cpus = get_cpus().cpus
    except Exception as error:  # mostly a lack of privilege, in more than one type
        notes.append(f"{host}: RAPL counters cannot be read: {error}")
        return
    for cpu in cpus:
        yield from _package(host, cpu)


def _package(host: str, cpu: "CPU") -> Iterator[Group]:
    from zeus.device.cpu.rapl import RAPLCPU, ZeusdRAPLCPU

    model = cpu_model()
    device = Device(f"{host}/cpu:{cpu.cpu_index}", "cpu", model, Quality.MEASURED)
    dram = Device(f"{host}/dram:{cpu.cpu_index}", "dram", f"DRAM of {model}", Quality.MEASURED)
    if isinstance(cpu, ZeusdRAPLCPU) or not isinstance(cpu, RAPLCPU):
        has_dram = cpu.supports_get_dram_energy_consumption()
        yield Group((device, dram) if has_dram else (device,), _Package(device.name, dram.name, cpu))
        return
    if cpu.rapl_file.name.startswith("psys"):  # the whole platform, packages included: it would count them twice
        return
    yield Group((device,), _RaplFile(device.name, cpu.rapl_file))
    if cpu.dram is not None:
        yield Group((dram,), _RaplFile(dram.name, cpu.dram))


class _RaplFile:
    """Reads the counter's file itself: Zeus's own reader spawns a process a file and notices a wrap a second late."""

    def __init__(self, name: str, file: "RAPLFile") -> None:
        self._name = name
        self._path = Path(file.energy_uj_path)
        self._unwrap = Unwrap(round(file.max_energy_range_uj))

    def __call__(self) -> dict[str, int]:
        raw_uj = int(self._path.read_text())
        return {self._name: self._unwrap.at(raw_uj, now())}


class _Package:
    """A package that Zeus reads through a zeusd of this machine (ZEUSD_SOCK_PATH or ZEUSD_HOST_PORT is set)."""

    def __init__(self, cpu_name: str, dram_name: str, cpu: "CPU") -> None:
        self._names = (cpu_name, dram_name)
        self._steady = (Steady(), Steady())
        self._cpu = cpu

    def __call__(self) -> dict[str, int]:
        energy = self._cpu.get_total_energy_consumption()
        found = {}
        for name, steady, mj in zip(self._names, self._steady, (energy.cpu_mj, energy.dram_mj), strict=True):
            if mj is not None and (value_uj := steady.at(round(mj * 1000), now())) is not None:
                found[name] = value_uj
        return found


def _soc(host: str) -> Iterator[Group]:
    from zeus.device import get_soc

    try:
        soc = get_soc()
        first = soc.get_total_energy_consumption()
    except Exception:  # no SoC that Zeus knows: the usual case, and its packages raise what they like
        return
    fields = {field: unit for field, unit in _SOC.items() if getattr(first, field, None) is not None}
    devices = {field: Device(f"{host}/{unit}:0", unit, "Apple SoC", Quality.MEASURED) for field, unit in fields.items()}

    def read_uj() -> dict[str, int]:
        energy = soc.get_total_energy_consumption()
        return {device.name: round(getattr(energy, field) * 1000) for field, device in devices.items()}

    if devices:
        yield Group(tuple(devices.values()), read_uj)
