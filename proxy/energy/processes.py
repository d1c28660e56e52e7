"""The CPU time of engines that run on this machine: of the process that listens, and of all that it started."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import psutil

from proxy import clock
from proxy.energy.cpu_part import CpuTime
from proxy.energy.estimate import busy_s

logger = logging.getLogger(__name__)

_FIND_S = (2.0, 60.0)  # from one look for a process to the next: the first, and at most
_FAMILY_S = 5.0  # from one look for children to the next
# Who listens for somebody else: its CPU time is not the engine's.
_GO_BETWEENS = ("docker-proxy", "rootlessport", "slirp4netns", "pasta", "kubectl", "ssh", "sshd", "socat")


class Engine(Protocol):
    """What tells where an engine runs."""

    name: str
    url: str
    local: bool
    devices: tuple[str, ...]


class Processes:
    """Reads the CPU time of those engines whose process is known. For one thread; a reading takes some 0.1 ms."""

    def __init__(self, engines: Callable[[], Sequence[Engine]]) -> None:
        """`engines` names those to look at now."""
        self._engines = engines
        self._known: dict[str, _Family] = {}

    def read(self) -> list[CpuTime]:
        """One reading for each of the engines."""
        engines = self._engines()
        families = {engine.name: self._known.get(engine.name) or _Family() for engine in engines}
        self._known = families
        if not engines:
            return []
        now = clock.now()
        own_s = [families[engine.name].cpu_s(engine, now) for engine in engines]
        t, host_s = (now + clock.now()) / 2, busy_s()
        return [CpuTime(engine.name, t, own, host_s) for engine, own in zip(engines, own_s, strict=True)]


@dataclass(slots=True)
class _Family:
    """An engine's process and its descendants."""

    members: list[psutil.Process] = field(default_factory=list)
    look_at: float = 0.0  # when to look next for the process, or for new children of it
    wait_s: float = _FIND_S[0]

    def cpu_s(self, engine: Engine, now: float) -> float | None:
        """CPU-seconds so far, None while no process is known. A child that ended stays counted with its parent."""
        if now >= self.look_at:
            self._look(engine, now)
        total_s, first = 0.0, True
        for member in self.members:
            try:
                times = member.cpu_times()
            except psutil.Error:
                if first:
                    self.members, self.look_at, self.wait_s = [], now, _FIND_S[0]
                    return None
                continue
            first = False
            total_s += times.user + times.system + getattr(times, "children_user", 0.0)
            total_s += getattr(times, "children_system", 0.0)
        return total_s if self.members else None

    def _look(self, engine: Engine, now: float) -> None:
        root = self._root(engine)
        if root is None:
            self.members, self.look_at = [], now + self.wait_s
            self.wait_s = min(2 * self.wait_s, _FIND_S[1])
            return
        children: list[psutil.Process] = []
        with suppress(psutil.Error):
            children = root.children(recursive=True)
        self.members, self.look_at, self.wait_s = [root, *children], now + _FAMILY_S, _FIND_S[0]

    def _root(self, engine: Engine) -> psutil.Process | None:
        with suppress(psutil.Error):
            if hasattr(engine, "pid"):  # one that the gateway itself started
                pid: int | None = getattr(engine, "pid", None)
                return None if pid is None else psutil.Process(pid)
            if self.members and self.members[0].is_running():
                return self.members[0]
            return listener(urlsplit(engine.url).port)
        return None


def listener(port: int | None) -> psutil.Process | None:
    """The process that listens on a TCP port of this machine, if it can be seen and is no go-between."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError, RuntimeError):  # macOS wants root for it
        return None
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.pid
        if listens and tuple(connection.laddr)[1:] == (port,):
            process = psutil.Process(connection.pid)
            if process.name() not in _GO_BETWEENS:
                return process
    return None
