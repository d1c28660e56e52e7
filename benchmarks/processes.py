"""The processes of a benchmark: started, read (CPU, memory) and ended, with everything they started themselves."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
STOP_S = 10.0


class StartError(RuntimeError):
    """A process did not come up; the message is one line."""


class Process:
    """One server in a session of its own, so that a Ctrl-C reaches us alone and we end it in good order.

    `url` is where it answers on the loopback; its output goes to `log`.
    """

    def __init__(self, name: str, command: Sequence[str], port: int, log: Path, env: Mapping[str, str]) -> None:
        self.name, self.port, self.log = name, port, log
        with log.open("w") as out:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=ROOT, start_new_session=True
            )
        self._seen = psutil.Process(self._popen.pid)

    def alive(self) -> bool:
        return self._popen.poll() is None

    def last_words(self) -> str:
        """The last line of its output."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else "it said nothing"

    def cpu_ns(self) -> int:
        """Nanoseconds on a CPU so far, of all its threads and its children's, also those that ended (Linux alone)."""
        return sum(_cpu_ns(process.pid) for process in self._family())

    def rss_bytes(self) -> int:
        total = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is left of its session after a while. Stopping twice changes nothing."""
        family = self._family()
        if self.alive():
            self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_S)
        # It leads a group that nobody else is in; a group that is gone already is what we want.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        psutil.wait_procs(family, timeout=STOP_S)

    def _family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return [self._seen, *self._seen.children(recursive=True)]
        return []


_libc = ctypes.CDLL(None)


def _cpu_ns(pid: int) -> int:
    """The process's CPU clock: what /proc/PID/task/*/schedstat sums to, and ended threads as well."""
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        return 0  # it ended
    try:
        return time.clock_gettime_ns(clock.value)
    except OSError:
        return 0


def free_port() -> int:
    """A port on the loopback that nobody had a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
