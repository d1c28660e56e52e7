"""Under which setting of clocks and limits a device ran when."""

from bisect import bisect_right
from collections import defaultdict

_FOUND = ""  # the setting of a device that nobody has set: as it was found
_SWITCH_S = 1.0  # what is set is not at once in force, and the counter shows it a little later
_MEMORY_S = 3600.0  # no window is open longer


class Settings:
    """One name at a time for each device; times are Unix seconds."""

    def __init__(self) -> None:
        self._changes: dict[str, list[tuple[float, str]]] = defaultdict(list)

    def change(self, device: str, t: float, setting: str) -> None:
        """From `t` on a device runs under `setting`; the empty one is as it was found."""
        if setting != self.now(device):
            changes = self._changes[device]
            past = bisect_right(changes, t - _MEMORY_S, key=lambda change: change[0])
            del changes[: max(0, past - 1)]
            changes.append((t, setting))

    def now(self, device: str) -> str:
        changes = self._changes.get(device)
        return changes[-1][1] if changes else _FOUND

    def during(self, device: str, t0: float, t1: float) -> str | None:
        """The one setting that was in force all the time from `t0` to `t1`, None where it changed."""
        changes = self._changes.get(device)
        if not changes:
            return _FOUND
        index = bisect_right(changes, t0, key=lambda change: change[0])
        begun, setting = changes[index - 1] if index else (-float("inf"), _FOUND)
        ends = changes[index][0] if index < len(changes) else float("inf")
        return setting if begun + _SWITCH_S <= t0 and t1 <= ends else None
