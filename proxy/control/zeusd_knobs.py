"""The knobs of GPUs behind a zeusd, which tells of power limits alone: neither clocks nor what is enforced."""

import logging
from typing import TYPE_CHECKING

import httpx

from proxy.control.knobs import KnobError, Knobs, NoPrivilege, asked
from proxy.energy.daemon import connect

if TYPE_CHECKING:
    from zeus.utils.zeusd import ZeusdClient

logger = logging.getLogger(__name__)


class ZeusdGpu:
    """What the knobs of a GPU behind a zeusd share."""

    uuid = None

    def __init__(self, client: "ZeusdClient", address: str, gpu_id: int) -> None:
        self._client, self._address, self._id = client, address, gpu_id

    @property
    def place(self) -> str:
        return f"{self._address}-gpu-{self._id}"

    def _check_allowed(self) -> None:
        if not self._client.can_control_gpu:
            raise NoPrivilege(self._client.auth_error or "zeusd does not let this client control GPUs (gpu-control)")


class ZeusdPower(ZeusdGpu):
    """The power limit of a GPU behind a zeusd, which does not tell what is enforced."""

    def read(self) -> float:
        return asked(lambda: self._client.get_power_limit([self._id])[self._id]) / 1000

    def write(self, value: float) -> None:
        self._check_allowed()
        asked(lambda: self._client.set_power_limit([self._id], round(value * 1000)))

    def put_back(self, found: float | None) -> None:
        if found is None:
            raise KnobError("zeusd cannot reset a power limit")
        self.write(found)

    def range(self) -> tuple[float, float] | None:
        low_mw, high_mw = asked(lambda: self._client.get_power_limit_constraints([self._id])[self._id])
        return low_mw / 1000, high_mw / 1000

    def enforced(self) -> float:
        return self.read()

    def throttle(self) -> None:
        return None


class ZeusdClock(ZeusdGpu):
    """The SM clock of a GPU behind a zeusd, which tells neither clocks nor which ones there are."""

    def read(self) -> None:
        return None

    def write(self, value: float) -> None:
        self._check_allowed()
        asked(lambda: self._client.set_gpu_locked_clocks([self._id], 0, round(value)))

    def put_back(self, found: float | None) -> None:
        self._check_allowed()
        asked(lambda: self._client.reset_gpu_locked_clocks([self._id]))

    def range(self) -> None:
        return None

    def enforced(self) -> None:
        return None


def zeusd_knobs(host: str, address: str) -> Knobs:
    """The knobs of every GPU that the daemon lets be read, by device name."""
    from zeus.exception import ZeusBaseError

    try:
        client = connect(address)
    except (ZeusBaseError, httpx.HTTPError) as error:
        logger.warning("%s: power limits cannot be reached: %s", host, error)
        return Knobs()
    names = {f"{host}/gpu:{gpu_id}": gpu_id for gpu_id in (client.gpu_ids if client.can_read_gpu else [])}
    return Knobs(
        {name: ZeusdPower(client, address, gpu_id) for name, gpu_id in names.items()},
        {name: ZeusdClock(client, address, gpu_id) for name, gpu_id in names.items()},
    )
