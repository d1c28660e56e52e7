"""What a device draws with the weights loaded and nothing to do: learnt from windows in which nothing was in flight.

    active_k = max(0, busy_k - floor · busy seconds_k)

is what a window's work took above that. It is summed by device alone; a request's part of it follows its busy joules.
"""

from collections import deque
from statistics import median
from typing import Any

from proxy.energy.share import Settled

ENOUGH = 20  # idle windows: two seconds on an H200
_MEMORY = 600
_QUIET_S = 2.0  # after work a GPU needs so long to slow its clocks down


class Floor:
    """One device's. Energies are microjoules."""

    def __init__(self) -> None:
        self.workflow_uj = 0.0  # of windows since the floor is known: joules of requests,
        self.active_uj = 0.0  # and what of them lay above it
        self._idle_w: deque[float] = deque(maxlen=_MEMORY)
        self._quiet_since: float | None = None
        self._watts: float | None = None

    @property
    def watts(self) -> float | None:
        """The median power of idle windows, None while too few are known."""
        if self._watts is None and len(self._idle_w) >= ENOUGH:
            self._watts = median(self._idle_w)
        return self._watts

    def look(self, settled: Settled, busy: float, loaded: bool) -> None:
        """Take a settled window in. Something was in flight for `busy` of its time (0 to 1), and `loaded` tells whether
        an engine on the device had its weights in memory."""
        workflow_uj = sum(share.uj for share in settled.shares)
        busy_uj, idle_uj, seconds = workflow_uj + settled.foreign_uj, settled.idle_uj, settled.t1 - settled.t0
        if settled.gap_uj or seconds <= 0:
            self._quiet_since = None
        elif not busy_uj:
            self._quiet_since = settled.t0 if self._quiet_since is None else self._quiet_since
            if loaded and settled.t0 - self._quiet_since >= _QUIET_S:
                self._idle_w.append(idle_uj / 1e6 / seconds)
                self._watts = None
        else:
            self._quiet_since = None
            if (watts := self.watts) is not None:
                active_uj = max(0.0, busy_uj - watts * busy * seconds * 1e6)
                self.workflow_uj += workflow_uj
                self.active_uj += active_uj * workflow_uj / busy_uj

    def state(self) -> dict[str, Any]:
        """All that is worth to outlive the process."""
        return {"watts": self.watts, "workflow_uj": self.workflow_uj, "active_uj": self.active_uj}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Floor":
        """What `state` gave. Raises KeyError, TypeError or ValueError for anything else."""
        floor, watts = cls(), state["watts"]
        floor.workflow_uj, floor.active_uj = float(state["workflow_uj"]), float(state["active_uj"])
        if watts is not None:
            floor._idle_w.extend([float(watts)] * ENOUGH)  # counts for little beside what is seen from now on
        return floor
