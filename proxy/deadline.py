"""How long one attempt may still keep its client waiting."""

import asyncio
from types import TracebackType
from typing import Any, Self

NEVER = float("inf")


class Overdue(TimeoutError):
    """A limit ran out; `what` says which, for the client."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Deadline:
    """Ends the task's wait for an engine: for its first byte, then between any two, and at `ends` in any case.

    One timer of the loop, which looks when the engine was last waited for and is set anew only when it has run out: a
    chunk costs two assignments. While the client is waited for (`heard` but not `wait`) only `ends` counts. Used as a
    context manager it raises Overdue. Times are the loop's, limits in seconds.
    """

    __slots__ = ("_ends", "_limit_s", "_loop", "_outside", "_since", "_task", "_timer", "over")

    def __init__(self, task: asyncio.Task[Any], first_byte_s: float, ends: float = NEVER) -> None:
        """`task` is the one that will wait."""
        self._task, self._limit_s, self._ends = task, first_byte_s, ends
        self._loop = task.get_loop()
        self._since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._outside = 0
        self.over: str | None = None

    def __enter__(self) -> Self:
        self._outside = self._task.cancelling()
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self.over is None:
            return
        # As asyncio.timeout does: a cancellation by somebody else at the same time is not ours to swallow.
        if self._task.uncancel() <= self._outside and kind is asyncio.CancelledError:
            raise Overdue(self.over) from error

    def first_byte(self, idle_s: float) -> None:
        """The first byte is here: from now on the limit is `idle_s` between two."""
        self._limit_s, self._since = idle_s, NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._look()

    def wait(self) -> None:
        """The engine is waited for from now on."""
        self._since = self._loop.time()

    def heard(self) -> None:
        """It has sent something."""
        self._since = NEVER

    def stop(self) -> None:
        """Nothing is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._ends:
            self._end("the request took longer than it may in all")
        elif now >= self._since + self._limit_s:
            self._end(f"nothing came for {self._limit_s:g} s")
        else:
            # Not waiting now, it may begin to at any moment, and cannot then be late before a whole limit has passed.
            silent_at = (now if self._since == NEVER else self._since) + self._limit_s
            self._timer = self._loop.call_at(min(silent_at, self._ends), self._look)

    def _end(self, what: str) -> None:
        self._timer, self.over = None, what
        self._task.cancel()
