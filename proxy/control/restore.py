"""What was found before the first write to a device, kept in a file until it is set back, whatever becomes of us."""

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from platformdirs import user_state_path

from proxy.control.knobs import KnobError, PowerKnob

logger = logging.getLogger(__name__)

SAME_W = 1.0  # limits that differ by less are one: drivers round


@dataclass(frozen=True, slots=True)
class Found:
    """A device's limit as it was found, and the limits that we set since: only what is ours is ever set back."""

    device: str
    uuid: str | None
    limit_w: float
    t: float
    ours_w: tuple[float, ...] = ()

    def is_ours(self, limit_w: float) -> bool:
        """Whether a limit seen on the device is one that we set."""
        return any(abs(limit_w - ours_w) < SAME_W for ours_w in self.ours_w)


class RestoreFile:
    """The file, which one process at a time may hold: from its first write until everything is set back.

    A lock beside it says whether the holder lives: the kernel lets go of it when the process dies, however it does.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or user_state_path("joulegate") / "restore.json"
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
            founds = [Found(**{**entry, "ours_w": tuple(entry["ours_w"])}) for entry in data["found"]]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} cannot be understood ({error}): set the limits by hand, then delete it"
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


def set_back(found: Found, knob: PowerKnob) -> str:
    """Set a device back to what was found, if its limit is still ours, and say what was done. Raises KnobError."""
    seen_w = knob.get_limit_w()
    if abs(seen_w - found.limit_w) < SAME_W:
        return f"{found.device}: power limit is {seen_w:g} W, as it was found"
    if not found.is_ours(seen_w):
        return f"{found.device}: power limit was set to {seen_w:g} W by somebody else since: left alone"
    knob.set_limit_w(found.limit_w)
    return f"{found.device}: power limit set back to {found.limit_w:g} W, from {seen_w:g} W"


def restore_leftover(knobs: Mapping[str, PowerKnob], path: Path | None = None) -> list[str]:
    """Set back what a process that is gone left behind, and say in a line for each device what was done.

    A device that cannot be reached, or refuses, stays in the file for the next try. Nothing is touched while the
    process that wrote the file lives.
    """
    file = RestoreFile(path)
    if not file.path.exists():
        return []
    try:
        if not file.take():
            return [f"power limits are held by a running process ({file.holder()}): nothing is restored"]
    except OSError as error:
        return [f"power limits cannot be restored: {file.path}: {error.strerror}"]
    lines: list[str] = []
    try:
        left = file.read()
        for found in list(left.values()):
            knob = _knob_of(found, knobs)
            if knob is None:
                lines.append(f"{found.device}: cannot be reached to set its power limit back to {found.limit_w:g} W")
                continue
            try:
                lines.append(set_back(found, knob))
            except KnobError as error:
                lines.append(f"{found.device}: power limit could not be set back to {found.limit_w:g} W: {error}")
            else:
                del left[found.device]
        file.write(left)
    except (OSError, ValueError) as error:
        lines.append(str(error))
    finally:
        file.release()
    return lines


def _knob_of(found: Found, knobs: Mapping[str, PowerKnob]) -> PowerKnob | None:
    """The very GPU, under whatever name it goes now; by its name alone where it has no UUID."""
    if found.uuid is None:
        return knobs.get(found.device)
    return next((knob for knob in knobs.values() if knob.uuid == found.uuid), None)
