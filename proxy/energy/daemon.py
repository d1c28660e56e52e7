"""The counters of a host that runs `zeusd`, read over the network or a socket."""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from proxy.clock import now
from proxy.energy.records import Quality
from proxy.energy.sources import Device, Reading, quality_of
from proxy.energy.wrap import Steady

if TYPE_CHECKING:
    from zeus.utils.zeusd import ZeusdClient

logger = logging.getLogger(__name__)

_TIMEOUT_S = 1.0  # one thread reads every source: a daemon that hangs must not hold up the others for long
_RETRY_S = (1.0, 30.0)  # seconds to the next try of a daemon that is away: the first, and at most


def connect(address: str) -> "ZeusdClient":
    """A client of the zeusd at `host:port`, or at a socket when the address is a path.

    The token is taken from ZEUSD_TOKEN. Raises ZeusdConnectionError when it cannot be reached or is no zeusd.
    """
    from zeus.utils.zeusd import ZeusdClient, ZeusdConfig, ZeusdConnectionError

    class Impatient(ZeusdConfig):
        def make_client(self) -> httpx.Client:
            client = super().make_client()
            client.timeout = httpx.Timeout(_TIMEOUT_S)
            return client

    token = os.environ.get("ZEUSD_TOKEN")
    is_path = address.startswith("/")
    config = Impatient(socket_path=address if is_path else None, host_port=None if is_path else address, token=token)
    try:
        return ZeusdClient(config)
    except (httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ZeusdConnectionError(f"{address} is no zeusd: {error}") from error


class Zeusd:
    """All counters of one daemon. While it is away nothing is read, and it is asked again ever more seldom."""

    def __init__(self, host: str, address: str, clock: Callable[[], float] = now) -> None:
        self.devices: tuple[Device, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._host, self._address, self._clock = host, address, clock
        self._client: ZeusdClient | None = None
        self._wait_s, self._retry_at = _RETRY_S[0], 0.0
        self._silent: set[str] = set()
        self._away = False
        try:
            self._connect()
        except _errors() as error:
            self._later()
            self._away = True
            self.notes = (
                f"{host}: zeusd at {address} does not answer ({error}): nothing of it is measured until then",
            )

    def read(self) -> list[Reading]:
        """One reading of every counter that answers; none while the daemon is away."""
        if self._clock() < self._retry_at:
            return []
        try:
            if self._client is None:
                self._connect()
            readings = [*self._read_gpus(), *self._read_cpus()]
        except _errors() as error:
            if not self._away:
                logger.warning("%s: zeusd at %s does not answer: %s", self._host, self._address, error)
            self._away = True
            self._later()
            return []
        if self._away:
            logger.warning("%s: zeusd at %s answers", self._host, self._address)
        self._away, self._wait_s = False, _RETRY_S[0]
        return readings

    def close(self) -> None:
        """Forget the client; its connections close with it."""
        self._client = None

    def _later(self) -> None:
        self._retry_at = self._clock() + self._wait_s
        self._wait_s = min(2 * self._wait_s, _RETRY_S[1])

    def _connect(self) -> None:
        client = connect(self._address)
        host, notes = self._host, []
        self._gpu_names: dict[int, str] = {}
        self._cpu_names: dict[int, tuple[str, str]] = {}
        self._steady: dict[str, Steady] = {}
        devices = []
        emulated = any(quality_of(gpu.name) is Quality.EMULATED for gpu in client.gpus)
        if client.can_read_gpu:
            self._gpu_names = {gpu.id: f"{host}/gpu:{gpu.id}" for gpu in client.gpus}
            devices += [Device(self._gpu_names[gpu.id], "gpu", gpu.name, quality_of(gpu.name)) for gpu in client.gpus]
        elif client.gpus:
            notes.append(f"{host}: zeusd does not let its GPUs be read: {client.auth_error or 'gpu-read is off'}")
        if client.can_read_cpu:
            quality = Quality.EMULATED if emulated else Quality.MEASURED  # a daemon's CPUs have no name of their own
            for cpu in client.cpus:
                names = self._cpu_names[cpu.id] = (f"{host}/cpu:{cpu.id}", f"{host}/dram:{cpu.id}")
                self._steady |= {name: Steady() for name in names}
                devices.append(Device(names[0], "cpu", f"CPU package {cpu.id}", quality))
                if cpu.dram_available:
                    devices.append(Device(names[1], "dram", f"DRAM of CPU package {cpu.id}", quality))
        elif client.cpus:
            notes.append(f"{host}: zeusd does not let its CPUs be read: {client.auth_error or 'cpu-read is off'}")
        if not devices and not notes:
            notes.append(f"{host}: zeusd at {self._address} has no counter at all")
        self._client, self.devices, self.notes = client, tuple(devices), tuple(notes)

    def _read_gpus(self) -> list[Reading]:
        """All GPUs at once; one by one when that fails, for one lost GPU fails the call for all."""
        from zeus.device.exception import ZeusdError

        ids = list(self._gpu_names)
        if not ids:
            return []
        try:
            return self._read_gpus_of(ids)
        except ZeusdError:
            readings = []
            for gpu_id in ids:
                name = self._gpu_names[gpu_id]
                try:
                    readings += self._read_gpus_of([gpu_id])
                    self._silent.discard(name)
                except ZeusdError as error:
                    if name not in self._silent:
                        logger.warning("%s cannot be read: %s", name, error)
                    self._silent.add(name)
            return readings

    def _read_gpus_of(self, ids: list[int]) -> list[Reading]:
        assert self._client is not None
        began = self._clock()
        energies_mj = self._client.get_gpu_energy(ids)
        t = (began + self._clock()) / 2
        return [Reading(self._gpu_names[i], t, energies_mj[i] * 1000) for i in ids if i in energies_mj]

    def _read_cpus(self) -> list[Reading]:
        from zeus.device.exception import ZeusdError

        if not self._cpu_names:
            return []
        assert self._client is not None
        began = self._clock()
        try:
            energies = self._client.get_cpu_energy(list(self._cpu_names))
        except ZeusdError as error:
            if "cpus" not in self._silent:
                logger.warning("%s: CPUs cannot be read: %s", self._host, error)
            self._silent.add("cpus")
            return []
        self._silent.discard("cpus")
        t = (began + self._clock()) / 2
        known = {device.name for device in self.devices}
        readings = []
        for cpu_id, energy in energies.items():
            for name, uj in zip(self._cpu_names[cpu_id], (energy.cpu_energy_uj, energy.dram_energy_uj), strict=True):
                if name in known and uj is not None and (value_uj := self._steady[name].at(uj, t)) is not None:
                    readings.append(Reading(name, t, value_uj))
        return readings


def _errors() -> tuple[type[Exception], ...]:
    """What a daemon that is away, or answers nonsense, raises."""
    from zeus.exception import ZeusBaseError

    return ZeusBaseError, httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError
