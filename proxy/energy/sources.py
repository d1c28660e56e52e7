"""Where joules come from: counters that Zeus reads, here or through a host's zeusd, or an estimate where there is none.

A source is read by one thread, ten times a second. What cannot be read is left out of the readings and said once; it
may come back. Further sources register under the entry point group `joulegate.sources`, as `open(host, settings)`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from proxy.clock import now
from proxy.config import Host
from proxy.energy.records import Quality

logger = logging.getLogger(__name__)

ESTIMATE = "estimate"  # the entry point that is opened only where a counter is wanting
OURS = ("zeus", "zeusd", ESTIMATE)  # what reads a host that says how; a further source may know its host by name


@dataclass(frozen=True, slots=True)
class Device:
    """One counter: `h1/gpu:0`, of component gpu, cpu, dram or soc; the quality is that of the counter itself.

    `withheld` says why its joules cannot be shared out to requests; it is empty where they can.
    """

    name: str
    component: str
    model: str
    quality: Quality
    withheld: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """A device's cumulative energy in microjoules at a time in Unix seconds. A fall means that it began again."""

    device: str
    t: float
    energy_uj: int


class Source(Protocol):
    """Some devices that are read together.

    `devices` may grow (a zeusd that answers only later), never within a `read`'s result: whatever is read is in it.
    `notes` says in one line each what this source cannot measure, and why.
    """

    @property
    def devices(self) -> tuple[Device, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def read(self) -> list[Reading]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Group:
    """Devices whose counters come with one call: cumulative microjoules by device name, what is unreadable left out."""

    devices: tuple[Device, ...]
    read_uj: Callable[[], Mapping[str, int]]


class Counters:
    """The source made of groups of counters."""

    def __init__(self, groups: Sequence[Group], notes: Sequence[str] = ()) -> None:
        self.devices: tuple[Device, ...] = tuple(device for group in groups for device in group.devices)
        self.notes: tuple[str, ...] = tuple(notes)
        self._groups = tuple(groups)
        self._silent: dict[tuple[Device, ...], str] = {}

    def read(self) -> list[Reading]:
        """One reading of every counter that answers."""
        return [reading for group in self._groups for reading in self._read(group)]

    def close(self) -> None:
        """Nothing is held open."""

    def _read(self, group: Group) -> list[Reading]:
        began = now()
        try:
            energies_uj = group.read_uj()
        except Exception as error:  # every driver has its own kinds; a counter that fails must not stop the others
            names = ", ".join(device.name for device in group.devices)
            if group.devices not in self._silent:
                logger.warning("%s cannot be read: %s", names, error)
            self._silent[group.devices] = str(error)
            return []
        if self._silent.pop(group.devices, None) is not None:
            logger.warning("%s can be read again", ", ".join(device.name for device in group.devices))
        t = (began + now()) / 2
        return [Reading(name, t, energy_uj) for name, energy_uj in energies_uj.items()]


def quality_of(model: str) -> Quality:
    """An emulated device says so in its name; this is the one place that looks."""
    return Quality.EMULATED if model.startswith("Emulated") else Quality.MEASURED


def open_zeus(host: str, settings: Host) -> Source | None:
    """The counters of this machine that Zeus finds (NVML, AMD, RAPL, Apple); None for a host that is elsewhere."""
    from proxy.energy.local import open_local

    return open_local(host) if settings.local else None


def open_zeusd(host: str, settings: Host) -> Source | None:
    """The counters behind `settings.zeusd`, `host:port` or the path of a socket; None for a host without one.

    A zeusd that does not answer yet gives a source without devices, which goes on asking.
    """
    from proxy.energy.daemon import Zeusd

    return Zeusd(host, settings.zeusd) if settings.zeusd else None


def open_estimate(host: str, settings: Host) -> Source | None:
    """CPU energy out of CPU use and a stated wattage, as `{host}/cpu:0`; None for a host that is elsewhere."""
    from proxy.energy.estimate import Estimate

    return Estimate(host, settings.cpu_watts) if settings.local else None


def on_cpu(devices: Iterable[Device]) -> tuple[str, ...]:
    """Of a host's devices those that work on its CPU moves: every one but the GPUs."""
    return tuple(device.name for device in devices if device.component != "gpu")


def on_gpus(devices: Iterable[Device]) -> tuple[str, ...]:
    """Of a host's devices those that work on its GPUs moves, CPU and memory beside them; `on_cpu` where it has none.

    An estimate does not stand beside a GPU's counter: the sum would be no better than the estimate.
    """
    devices = list(devices)
    if not any(device.component == "gpu" for device in devices):
        return on_cpu(devices)
    return tuple(device.name for device in devices if device.quality is not Quality.ESTIMATED)


def unreadable(hosts: Mapping[str, Host]) -> list[str]:
    """The hosts that nothing registered can read: they are neither local nor behind a zeusd."""
    if any(point.name not in OURS for point in entry_points(group="joulegate.sources")):
        return []
    return [name for name, host in hosts.items() if not host.local and not host.zeusd]


def open_sources(
    hosts: Mapping[str, Host], engines_here: bool = True, engines_on_cpu: bool = False
) -> tuple[list[Source], list[str]]:
    """Open what is registered for every host, and say in lines for people what is measured, and how well.

    `engines_here` tells whether an engine runs on this machine: without a counter its energy is then estimated; the
    energy of engines elsewhere never is. `engines_on_cpu` tells whether one of these runs on the CPU: one without a
    counter is then estimated even beside a GPU's. Estimates are said first. A zeusd that is away costs a second.
    """
    openers = {point.name: point for point in entry_points(group="joulegate.sources")}
    if not openers:
        return [], ["no source of energy is registered: is joulegate installed (pip install -e .)?"]
    sources: list[Source] = []
    estimates: list[str] = []
    lines: list[str] = []
    here: str | None = None

    def opened(name: str, host: str, settings: Host) -> list[Source]:
        try:
            source = openers[name].load()(host, settings)
        except Exception as error:  # somebody else's plug-in, or a driver's surprise: the gateway goes on without
            lines.append(f"{host}: the source {name!r} cannot be used: {error}")
            return []
        return [] if source is None else [source]

    for host, settings in hosts.items():
        if settings.local and here is not None:
            lines.append(f"{host} is this machine, which is read as {here} already: not read twice")
            continue
        if settings.local:
            here = host
        found = [source for name in sorted(openers) if name != ESTIMATE for source in opened(name, host, settings)]
        devices = [device for source in found for device in source.devices]
        lines += [line for source in found for line in source.notes]
        lines += _measured(host, devices)
        blind = not on_cpu(devices) if engines_on_cpu else not devices
        if settings.local and engines_here and blind and ESTIMATE in openers:
            guesses = opened(ESTIMATE, host, settings)
            notes = [line for source in guesses for line in source.notes]
            estimates += [_beside(host, settings)] if devices and guesses else notes
            found += guesses
        elif settings.local and not devices:
            lines.append(f"{host}: no GPU or RAPL counter, and no engine of this machine: nothing is measured here")
        elif not settings.zeusd and not devices:
            lines.append(f"{host}: neither local nor zeusd is given: nothing is measured")
        sources += found
    return sources, estimates + lines


def _beside(host: str, settings: Host) -> str:
    watts = f"at {settings.cpu_watts:.3g} W" if settings.cpu_watts else "at a guessed wattage; cpu_watts sets it"
    return (
        f"{host}: no counter of the CPU; its energy is estimated from CPU use ({watts}): "
        "good for comparing runs on this machine, not for absolute figures"
    )


def _measured(host: str, devices: Sequence[Device]) -> list[str]:
    """One line for each quality that the host's counters have."""
    said = {
        Quality.MEASURED: "measured by hardware counters",
        Quality.EMULATED: "emulated: a model's figures, not a machine's",
        Quality.ESTIMATED: "estimated: good for comparisons on one machine, not for absolute figures",
        Quality.ATTRIBUTED: "a share of another counter",
    }
    lines = []
    for quality in sorted({device.quality for device in devices}, key=list(Quality).index):
        named = [f"{d.name.removeprefix(host + '/')} ({d.model})" for d in devices if d.quality is quality]
        lines.append(f"{host}: {', '.join(named)} {said[quality]}")
    return lines
