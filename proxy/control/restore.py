"""What was found before the first write to a device, kept in a file until it is set back, whatever becomes of us.

A file for each quantity: power limits are set back to what they were, SM clocks, which cannot be read, to the driver's.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from platformdirs import user_state_path

from proxy.control.knobs import POWER, SM_CLOCK, Knob, KnobError, Knobs, Quantity
from proxy.control.lock import GpuLocks

_WAIT_S = 5.0
FILES = {POWER: "restore.json", SM_CLOCK: "restore-clocks.json"}


@dataclass(frozen=True, slots=True)
class Found:
    """What a device was found with (null: nobody could tell), and what we set since: only that is ever set back."""

    device: str
    uuid: str | None
    value: float | None
    t: float
    ours: tuple[float, ...] = ()

    def is_ours(self, seen: float | None, same: float) -> bool:
        """Whether what is seen on the device is something that we set. What cannot be seen is taken to be."""
        return seen is None or any(abs(seen - one) < same for one in self.ours)


class RestoreFile:
    """The file, which one process at a time may hold: from its first write until everything is set back.

    A lock beside it says whether the holder lives: the kernel lets go of it when the process dies, however it does.
    """

    def __init__(self, path: Path | None = None, quantity: Quantity = POWER) -> None:
        self.path = path or user_state_path("joulegate") / FILES[quantity]
        self._lock: int | None = None

    def take(self) -> bool:
        """Hold it; False when another process does. Raises OSError when the folder cannot be written."""
        if self._lock is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def release(self) -> None:
        """Let go of it; what it says stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self) -> dict[str, Found]:
        """What it says, by device; nothing when there is none. Raises ValueError for one that cannot be understood."""
        try:
            data = json.loads(self.path.read_text())
            founds = [Found(**{**entry, "ours": tuple(entry["ours"])}) for entry in data["found"]]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} cannot be understood ({error}): set by hand what was found, then delete it"
            ) from None
        return {found.device: found for found in founds}

    def holder(self) -> int | None:
        """The process that wrote it last."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(json.loads(self.path.read_text())["pid"])
        return None

    def write(self, found: Mapping[str, Found]) -> None:
        """Replace what it says, durably and at once; without anything found the file goes away. Raises OSError."""
        if not found:
            self.path.unlink(missing_ok=True)
            return
        text = json.dumps({"pid": os.getpid(), "found": [asdict(entry) for entry in found.values()]}, indent=1)
        partial = self.path.with_suffix(".partial")
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)


def set_back(found: Found, knob: Knob, quantity: Quantity = POWER) -> str:
    """Set a device back to what was found, if what it has is still ours, and say what was done. Raises KnobError."""
    seen, name = knob.read(), f"{found.device}: {quantity.name}"
    if seen is None or found.value is None:
        knob.put_back(found.value)
        return f"{name} is {quantity.words(found.value)} again"
    if abs(seen - found.value) < quantity.same:
        return f"{name} is {quantity.words(seen)}, as it was found"
    if not found.is_ours(seen, quantity.same):
        return f"{name} was set to {quantity.words(seen)} by somebody else since: left alone"
    knob.put_back(found.value)
    return f"{name} set back to {quantity.words(found.value)}, from {quantity.words(seen)}"


def restore_all(knobs: Knobs, folder: Path | None = None, locks: GpuLocks | None = None) -> list[str]:
    """Set back everything that a process which is gone left behind; a line for each thing that was, or could not be."""
    lines: list[str] = []
    for quantity, own in ((POWER, knobs.power), (SM_CLOCK, knobs.sm_clock)):
        path = None if folder is None else folder / FILES[quantity]
        lines += restore_leftover(own, path, quantity, locks)
    return lines


def is_anything_left(folder: Path | None = None) -> bool:
    return any(((folder or user_state_path("joulegate")) / file).exists() for file in FILES.values())


def restore_leftover(
    knobs: Mapping[str, Knob], path: Path | None = None, quantity: Quantity = POWER, locks: GpuLocks | None = None
) -> list[str]:
    """Set back what a process that is gone left behind, and say in a line for each device what was done.

    A device that cannot be reached, or refuses, stays in the file for the next try. Nothing is touched while the
    process that wrote the file lives, nor, with `locks`, a GPU that another one holds.
    """
    file = RestoreFile(path, quantity)
    if not file.path.exists():
        return []
    try:
        if not _taken(file):
            return [f"{quantity.name}s are held by a running process ({file.holder()}): nothing is restored"]
    except OSError as error:
        return [f"{quantity.name}s cannot be restored: {file.path}: {error.strerror}"]
    lines: list[str] = []
    try:
        left = file.read()
        for found in list(left.values()):
            name, then = f"{found.device}: {quantity.name}", quantity.words(found.value)
            knob = _knob_of(found, knobs)
            if knob is None:
                lines.append(f"{found.device}: cannot be reached to set its {quantity.name} back to {then}")
                continue
            if locks and (holder := locks.take(knob.place, quantity.name)) is not None:
                lines.append(f"{name}: not set back to {then}: the GPU is held by {holder}")
                continue
            try:
                lines.append(set_back(found, knob, quantity))
            except KnobError as error:
                lines.append(f"{name} could not be set back to {then}: {error}")
            else:
                del left[found.device]
            finally:
                if locks:
                    locks.release(knob.place, quantity.name)
        file.write(left)
    except (OSError, ValueError) as error:
        lines.append(str(error))
    finally:
        file.release()
    return lines


def _taken(file: RestoreFile) -> bool:
    """Hold the file; where its writer is gone somebody sets back already, for whom we wait a little."""
    ends = time.monotonic() + _WAIT_S
    while not file.take():
        if (pid := file.holder()) is not None and psutil.pid_exists(pid):
            return False
        if time.monotonic() > ends:
            return False
        time.sleep(0.1)
    return True


def _knob_of(found: Found, knobs: Mapping[str, Knob]) -> Knob | None:
    """The very GPU, under whatever name it goes now; by its name alone where it has no UUID."""
    if found.uuid is None:
        return knobs.get(found.device)
    return next((knob for knob in knobs.values() if knob.uuid == found.uuid), None)
