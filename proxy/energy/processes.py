"""The CPU time of engines that run on this machine: of the process that listens, and of all that it started."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import psutil

from proxy import clock
from proxy.energy.cpu_part import CpuTime
from proxy.energy.estimate import busy_s

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
    """Reads the CPU time of those engines whose process is known. For one thread."""

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
    """An engine's process and its descendants: CPU-seconds by process id, the engine's own first."""

    seen_s: dict[int, float] = field(default_factory=dict)
    ended_s: float = 0.0  # of those that ended
    root: psutil.Process | None = None
    look_at: float = 0.0  # when to look next for the process, or for new children of it
    wait_s: float = _FIND_S[0]

    def cpu_s(self, engine: Engine, now: float) -> float | None:
        """CPU-seconds so far, None while no process is known. A child that ended stays counted."""
        if now >= self.look_at:
            self._look(engine, now)
        if self.root is None:
            return None
        for pid, before_s in list(self.seen_s.items()):
            at_s = process_cpu_s(pid)
            if at_s is not None and at_s >= before_s:
                self.seen_s[pid] = at_s
                continue
            if pid == self.root.pid:
                self.root, self.look_at, self.wait_s = None, now, _FIND_S[0]
                return None
            self.ended_s += self.seen_s.pop(pid)
        return self.ended_s + sum(self.seen_s.values())

    def _look(self, engine: Engine, now: float) -> None:
        root = self._find(engine)
        if root is None or root != self.root:
            self.root, self.seen_s, self.ended_s = root, {}, 0.0
        if root is None:
            self.look_at = now + self.wait_s
            self.wait_s = min(2 * self.wait_s, _FIND_S[1])
            return
        self.look_at, self.wait_s = now + _FAMILY_S, _FIND_S[0]
        members = [root]
        with suppress(psutil.Error):
            members += root.children(recursive=True)
        for member in members:
            self.seen_s.setdefault(member.pid, 0.0)

    def _find(self, engine: Engine) -> psutil.Process | None:
        with suppress(psutil.Error):
            if hasattr(engine, "pid"):  # one that the gateway itself started
                pid: int | None = getattr(engine, "pid", None)
                return None if pid is None else psutil.Process(pid)
            if self.root is not None and self.root.is_running():
                return self.root
            return listener(urlsplit(engine.url).port)
        return None


def process_cpu_s(pid: int) -> float | None:
    """CPU-seconds of a process with all of its threads, None where there is none.

    Linux has a clock for each (clock_getcpuclockid(3)): to the nanosecond, where /proc counts ticks of 10 ms.
    """
    try:
        if sys.platform == "linux":
            return time.clock_gettime(~pid << 3 | 2)
        times = psutil.Process(pid).cpu_times()
    except (OSError, psutil.Error):
        return None
    return times.user + times.system


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
