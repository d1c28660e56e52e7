"""A process that sets GPUs back when the gateway dies without having done so itself.

The gateway starts it before its first write, and holds the other end of its standard input: when that closes, or the
gateway is no longer its parent, whatever is left to set back is set back. It outlives the signals that a terminal or a
supervisor sends to all processes of the gateway; what it cannot outlive is left to the next start.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the process waits for long, and is to be small while it does
    from proxy.config import Host

_LOOK_S = 1.0
_TRY_S = 20.0


class Watchdog:
    """The gateway's end of it: `start` as often as one likes, `stop` once everything is set back."""

    def __init__(self, hosts: Mapping[str, "Host"], folder: Path | None = None) -> None:
        """`hosts` have the GPUs; in `folder` is what was found (default: where it usually is)."""
        self._hosts = {name: host.model_dump(mode="json") for name, host in hosts.items()}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """See to it that one is there. Raises OSError when there cannot be one."""
        if self._process is not None and self._process.poll() is None:
            return
        command = [sys.executable, "-m", "proxy.control.watchdog"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        assert self._process.stdin is not None
        told = {"hosts": self._hosts, "folder": None if self._folder is None else str(self._folder)}
        self._process.stdin.write(json.dumps(told).encode() + b"\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """Let it go; it looks once more whether anything is left."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TRY_S)
            self._process = None


def _watch() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    told = json.loads(line)
    folder = None if told["folder"] is None else Path(told["folder"])
    while os.getppid() == parent:
        ready, _, _ = select.select([0], [], [], _LOOK_S)
        if ready and not os.read(0, 1024):
            break
    _set_back(told["hosts"], folder)


def _set_back(hosts: Mapping[str, Mapping[str, object]], folder: Path | None) -> None:
    from proxy.config import Host
    from proxy.control.gpus import open_knobs
    from proxy.control.lock import GpuLocks
    from proxy.control.restore import is_anything_left, restore_all

    ends = time.monotonic() + _TRY_S
    while is_anything_left(folder) and time.monotonic() < ends:
        knobs = open_knobs({name: Host.model_validate(host) for name, host in hosts.items()})
        for line in restore_all(knobs, folder, GpuLocks()):
            with contextlib.suppress(OSError):
                print(f"joulegate watchdog: {line}", file=sys.stderr, flush=True)
        if is_anything_left(folder):
            time.sleep(_LOOK_S)


if __name__ == "__main__":
    _watch()
