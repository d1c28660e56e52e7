"""One writer per GPU on a host: a lock file for each, which names its holder.

The kernel lets go of a lock when its process dies, however it does; a file that is left then says nothing.
"""

import fcntl
import os
import re
import tempfile
from pathlib import Path

_FOLDERS = (Path("/run/lock"), Path(tempfile.gettempdir()))  # the first that takes files: all users of the host see it


class GpuLocks:
    """The locks that this process has on GPUs, each for as many purposes as it was taken for."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or next((f for f in _FOLDERS if os.access(f, os.W_OK)), _FOLDERS[-1])
        self._held: dict[str, tuple[int, set[str]]] = {}

    def take(self, place: str, purpose: str) -> str | None:
        """Hold a GPU's lock for a purpose; returns who holds it in our place, None where it is ours.

        Raises OSError where no lock can be kept.
        """
        if place in self._held:
            self._held[place][1].add(purpose)
            return None
        path = self._path(place)
        while True:
            lock = _opened(path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return path.read_text().strip() or "a process that does not say which" if path.exists() else "another"
            if _is_at(lock, path):
                break
            os.close(lock)  # its holder has just removed it
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()}\n".encode(), 0)
        self._held[place] = (lock, {purpose})
        return None

    def release(self, place: str, purpose: str) -> None:
        """Let go of it, once no purpose is left."""
        if place not in self._held:
            return
        lock, purposes = self._held[place]
        purposes.discard(purpose)
        if not purposes:
            self._path(place).unlink(missing_ok=True)
            os.close(lock)
            del self._held[place]

    def _path(self, place: str) -> Path:
        return self.folder / f"joulegate-{re.sub(r'[^A-Za-z0-9.-]+', '_', place)}.lock"


def _opened(path: Path) -> int:
    """The file, ours or made by another user: that one can be locked all the same."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | flags)
    except FileNotFoundError:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        os.fchmod(lock, 0o666)  # whatever the umask: another user's gateway is to see it held
        return lock


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
