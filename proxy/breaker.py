"""Takes an engine that keeps failing out of the choice, and lets it back in once it has shown that it works.

Sans-I/O: a request enters with the time and leaves with a verdict. Times are in seconds of any one clock.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import ceil


class State(StrEnum):
    CLOSED = "closed"  # in service
    OPEN = "open"  # no request goes there
    HALF_OPEN = "half_open"  # a few go, to see


@dataclass(slots=True)
class Breaker:
    """Opens after `failures` in a row; `open_s` later it is half-open and lets `probes` requests at a time through.

    A probe that is answered closes it, one that fails opens it anew, each time for twice as long, up to `longest_s`.
    Closed by a probe it is on trial: until a request ends well, the next failure opens it again.
    """

    failures: int = 5
    open_s: float = 5.0
    probes: int = 1
    longest_s: float = 60.0
    in_a_row: int = 0  # failures since the last request that ended well
    opened_at: float | None = None  # None: closed
    wait_s: float = 0.0  # how long it is, or was last, open; 0 once a request has ended well
    probing: int = 0  # probes on their way
    era: int = 0  # counts the changes of state, so that what began in an earlier one has no say in this one

    def state(self, now: float) -> State:
        if self.opened_at is None:
            return State.CLOSED
        return State.OPEN if now < self.opened_at + self.wait_s else State.HALF_OPEN

    def allows(self, now: float) -> bool:
        """Whether a request that came now would be let through."""
        return self.opened_at is None or (self.state(now) is State.HALF_OPEN and self.probing < self.probes)

    def enter(self, now: float) -> int | None:
        """A request goes to the engine; returns the permit to leave with, None when it may not go."""
        if not self.allows(now):
            return None
        if self.opened_at is not None:
            self.probing += 1
        return self.era

    def answered(self, permit: int) -> None:
        """The engine sent a first byte. That is enough of a probe: a stream may take minutes to end."""
        if permit == self.era and self.opened_at is not None:
            self._close()
            self.in_a_row = self.failures - 1

    def leave(self, permit: int, well: bool | None, now: float) -> None:
        """A request is over: `well`, or failed by the engine's fault, or None: it says nothing of the engine.

        One that was answered leaves with the permit it entered with, and still counts.
        """
        if permit == self.era and self.opened_at is not None:  # a probe
            self.probing -= 1
            if well is False:
                self._open(now)
            elif well:
                self._close()
                self.wait_s = 0.0
        elif self.opened_at is None and permit >= self.era - 1:  # of this era, or the probe that began it
            if well:
                self.in_a_row, self.wait_s = 0, 0.0
            elif well is False:
                self.in_a_row += 1
                if self.in_a_row >= self.failures:
                    self._open(now)

    def try_now(self, now: float) -> None:
        """There is a sign that the engine is back: do not wait any longer to probe it."""
        if self.opened_at is not None:
            self.opened_at = min(self.opened_at, now - self.wait_s)

    def retry_after_s(self, now: float) -> int:
        """Whole seconds after which it is worth asking again, at least 1."""
        left_s = 0.0 if self.opened_at is None else self.opened_at + self.wait_s - now
        return max(1, ceil(left_s))

    def _open(self, now: float) -> None:
        self.wait_s = min(self.wait_s * 2, max(self.longest_s, self.open_s)) if self.wait_s else self.open_s
        self.opened_at, self.probing = now, 0
        self.era += 1

    def _close(self) -> None:
        self.opened_at, self.probing, self.in_a_row = None, 0, 0
        self.era += 1
