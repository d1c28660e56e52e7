"""The power limit of a GPU, as something to read and to turn: through Zeus here, through zeusd elsewhere."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

import httpx

from proxy.config import Host
from proxy.energy.daemon import connect

if TYPE_CHECKING:
    from zeus.device.gpu.common import GPU
    from zeus.utils.zeusd import ZeusdClient

T = TypeVar("T")
logger = logging.getLogger(__name__)


class KnobError(RuntimeError):
    """The device did not do what it was asked; the message says why."""


class NoPrivilege(KnobError):
    """This process, or its token, may not set power limits."""


class PowerKnob(Protocol):
    """One GPU's power limit, in watts. Every call may block for some milliseconds and raise KnobError."""

    @property
    def uuid(self) -> str | None: ...

    def get_limit_w(self) -> float:
        """The limit that was set last, by whomever."""
        ...

    def set_limit_w(self, limit_w: float) -> None:
        """Set it. Raises NoPrivilege when that is not allowed."""
        ...

    def range_w(self) -> tuple[float, float] | None:
        """Smallest and largest limit that the device takes; None where it does not say."""
        ...

    def enforced_w(self) -> float:
        """What is really enforced, which another limiter may hold below the limit."""
        ...


class ZeusKnob:
    """A GPU of this machine."""

    def __init__(self, gpu: "GPU") -> None:
        from zeus.device.gpu.nvidia import NVIDIAGPU

        self._gpu = gpu
        self._handle = gpu.handle if isinstance(gpu, NVIDIAGPU) else None
        self.uuid = self._nvml_uuid()

    def get_limit_w(self) -> float:
        return _asked(self._gpu.get_power_management_limit) / 1000

    def set_limit_w(self, limit_w: float) -> None:
        _asked(lambda: self._gpu.set_power_management_limit(round(limit_w * 1000)))

    def range_w(self) -> tuple[float, float] | None:
        low_mw, high_mw = _asked(self._gpu.get_power_management_limit_constraints)
        return low_mw / 1000, high_mw / 1000

    def enforced_w(self) -> float:
        if self._handle is None:
            return self.get_limit_w()
        import pynvml

        return _asked(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(self._handle)) / 1000

    def _nvml_uuid(self) -> str | None:
        if self._handle is None:
            return None
        import pynvml

        return _asked(lambda: pynvml.nvmlDeviceGetUUID(self._handle))


class ZeusdKnob:
    """A GPU behind a zeusd, which does not tell what is enforced."""

    uuid = None

    def __init__(self, client: "ZeusdClient", gpu_id: int) -> None:
        self._client, self._id = client, gpu_id

    def get_limit_w(self) -> float:
        return _asked(lambda: self._client.get_power_limit([self._id])[self._id]) / 1000

    def set_limit_w(self, limit_w: float) -> None:
        if not self._client.can_control_gpu:
            raise NoPrivilege(self._client.auth_error or "zeusd does not let this client control GPUs (gpu-control)")
        _asked(lambda: self._client.set_power_limit([self._id], round(limit_w * 1000)))

    def range_w(self) -> tuple[float, float] | None:
        low_mw, high_mw = _asked(lambda: self._client.get_power_limit_constraints([self._id])[self._id])
        return low_mw / 1000, high_mw / 1000

    def enforced_w(self) -> float:
        return self.get_limit_w()


def open_knobs(hosts: Mapping[str, Host]) -> dict[str, PowerKnob]:
    """The knobs of every GPU that can be reached now, by device name. What cannot be reached is logged."""
    knobs: dict[str, PowerKnob] = {}
    for host, settings in hosts.items():
        if settings.local:
            knobs |= _local_knobs(host)
        elif settings.zeusd:
            knobs |= _zeusd_knobs(host, settings.zeusd)
    return knobs


def _local_knobs(host: str) -> dict[str, PowerKnob]:
    from zeus.device import get_gpus
    from zeus.exception import ZeusBaseError

    try:
        gpus = get_gpus().gpus
    except (ZeusBaseError, ImportError, ValueError) as error:
        logger.info("%s: no GPU whose power could be limited: %s", host, error)
        return {}
    knobs: dict[str, PowerKnob] = {}
    for gpu in gpus:
        name = f"{host}/gpu:{gpu.gpu_index}"
        try:
            knob = ZeusKnob(gpu)
            knob.get_limit_w()
        except KnobError as error:
            logger.warning("%s has no power limit to set: %s", name, error)
        else:
            knobs[name] = knob
    return knobs


def _zeusd_knobs(host: str, address: str) -> dict[str, PowerKnob]:
    from zeus.exception import ZeusBaseError

    try:
        client = connect(address)
    except (ZeusBaseError, httpx.HTTPError) as error:
        logger.warning("%s: power limits cannot be reached: %s", host, error)
        return {}
    readable = client.gpu_ids if client.can_read_gpu else []
    return {f"{host}/gpu:{gpu_id}": ZeusdKnob(client, gpu_id) for gpu_id in readable}


def _asked(ask: Callable[[], T]) -> T:
    """Ask the device, with whatever it raises turned into our two errors."""
    import pynvml
    from zeus.device.gpu.common import ZeusGPUNoPermissionError
    from zeus.exception import ZeusBaseError

    try:
        return ask()
    except ZeusGPUNoPermissionError as error:
        raise NoPrivilege(str(error)) from error
    except (ZeusBaseError, pynvml.NVMLError, httpx.HTTPError, ValueError, KeyError) as error:
        # zeusd gives NVML's own words for a missing privilege of its own
        if "nsufficient permission" in str(error) or "does not have permission" in str(error):
            raise NoPrivilege(str(error)) from error
        raise KnobError(str(error)) from error
