"""Work that reached an engine past the gateway, as far as the engine's own count of output tokens betrays it.

The engine's count less ours is looked at only when no running attempt hides its tokens (one without a stream does), and
only a new high counts: an engine that counts a little ahead of our frames, or late, adds nothing.
"""

import logging
from collections import deque
from collections.abc import Iterable

from proxy.energy.work import Progress, part

log = logging.getLogger("joulegate.attribution")

RECENT_S = 10.0  # who last looked longer ago than this does not know
_LATE_S = 5.0  # by how much an engine may count later than the client left: llama.cpp looks for that now and then
_TOLERANCE = 8.0  # tokens by which an engine may be ahead of us without anybody else being there


class Foreign:
    """One engine's output tokens that are not ours. Times are Unix seconds."""

    def __init__(self) -> None:
        self._found: deque[tuple[float, float, float]] = deque()  # (from, to, tokens)
        self._made = 0.0  # output tokens, by the engine's counter
        self._relayed = 0.0  # output tokens that ended attempts brought through the gateway
        self._excess: float | None = None  # the engine's output tokens above those relayed: the highest seen so far
        self._blurred = 0.0  # when an attempt last ended whose tokens nobody told
        self._looked: float | None = None
        self._missed = False  # whether some were found too late

    def __bool__(self) -> bool:
        """Whether any are found that an open window may still need."""
        return bool(self._found)

    def follow(self, former: "Foreign") -> None:
        """Another engine takes a place: its counter is its own, but what was found on the devices stays found."""
        self._found, self._blurred = former._found, former._blurred

    def look(self, name: str, t: float, output_tokens: float, attempts: Iterable[Progress], settled: float) -> None:
        """The engine's cumulative count at `t`; `attempts` are those that have not been counted by `relay`.

        Of a running stream frames alone are known, so it is granted more; what that hides shows when it has ended.
        After an attempt that ended without a usage (a client that left) its true count is anybody's guess: the
        difference is then taken as ours.

        Tokens are spread evenly since the last look. What falls before `settled` comes too late: those joules are on
        requests for good. That is so after a time in which nobody could look, and is logged the first time.
        """
        attempts = list(attempts)
        blurred = [p.ended for p in attempts if p.ended is not None and p.output_tokens is None]
        self._blurred = max([self._blurred, *blurred])
        if output_tokens < self._made:
            self._excess = None  # the engine restarted
        self._made = output_tokens
        if any(not p.streamed for p in attempts if p.ended is None):
            return
        most = output_tokens - self._relayed  # as if it had counted nothing yet of the attempts in memory
        excess = most - sum(_made_at_most(p) for p in attempts)
        if self._excess is None or self._looked is None:
            self._excess = most
        elif self._looked <= self._blurred + _LATE_S:
            self._excess = max(self._excess, most)
        elif excess > self._excess + _TOLERANCE:
            tokens, self._excess = excess - self._excess, excess
            self._found.append((self._looked, t, tokens))
            late = tokens * part(settled, self._looked, t)
            if late > _TOLERANCE and not self._missed:
                self._missed = True
                what = "engine %s made %.0f tokens past the gateway, found too late: their joules stay on requests"
                log.warning(what, name, late)
        self._looked = t

    def relay(self, progress: Progress) -> None:
        """An ended attempt is forgotten; its tokens stay counted."""
        self._relayed += _relayed(progress)

    def tokens(self, t0: float, t1: float) -> float:
        """Foreign output tokens between two times, spread evenly between the two looks that found them."""
        return sum(n * (part(t1, a, b) - part(t0, a, b)) for a, b, n in self._found)

    def is_known(self, t: float) -> bool:
        """Whether anybody looked in the time before `t`."""
        return self._looked is not None and t - self._looked <= RECENT_S

    def forget(self, horizon: float) -> None:
        """Nobody will ask for a time before `horizon`."""
        while self._found and self._found[0][1] <= horizon:
            self._found.popleft()


def _relayed(progress: Progress) -> float:
    return progress.output_tokens if progress.output_tokens is not None else progress.frames


def _made_at_most(progress: Progress) -> float:
    """Output tokens that the engine can have made of an attempt: those relayed once it ended, generous until then."""
    return _relayed(progress) if progress.ended is not None else 2 * progress.frames + _TOLERANCE
