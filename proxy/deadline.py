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


class Watch:
    """Looks at all deadlines that are running, ten times a second: a timer for each would cost more than all else here.

    So an end may come a tenth of a second late. One loop has it.
    """

    __slots__ = ("_running", "_timer")

    def __init__(self) -> None:
        self._running: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, deadline: "Deadline", loop: asyncio.AbstractEventLoop) -> None:
        self._running[deadline] = None
        if self._timer is None:
            self._timer = loop.call_later(_EVERY_S, self._look, loop)

    def drop(self, deadline: "Deadline") -> None:
        self._running.pop(deadline, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for deadline in [*self._running]:
            deadline.look(now)
        self._timer = loop.call_later(_EVERY_S, self._look, loop) if self._running else None


_EVERY_S = 0.1


class Deadline:
    """Ends the task's wait for an engine: for its first byte, then between any two, and at `ends` in any case.

    A chunk costs two assignments. While the client is waited for (`heard` but not `wait`) only `ends` counts. Used as a
    context manager it raises Overdue. Times are the loop's, limits in seconds.
    """

    __slots__ = ("_ends", "_limit_s", "_loop", "_outside", "_since", "_task", "_watch", "over")

    def __init__(
        self, task: asyncio.Task[Any], first_byte_s: float, ends: float = NEVER, watch: Watch | None = None
    ) -> None:
        """`task` is the one that will wait; `watch` one that many share."""
        self._task, self._limit_s, self._ends = task, first_byte_s, ends
        self._loop = task.get_loop()
        self._watch = watch or Watch()
        self.over: str | None = None

    def __enter__(self) -> Self:
        self._outside = self._task.cancelling()
        self._since = self._loop.time()
        self._watch.add(self, self._loop)
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

    def wait(self) -> None:
        """The engine is waited for from now on."""
        self._since = self._loop.time()

    def heard(self) -> None:
        """It has sent something."""
        self._since = NEVER

    def stop(self) -> None:
        """Nothing is waited for any more."""
        self._watch.drop(self)

    def look(self, now: float) -> None:
        """End the wait if it is time."""
        if now >= self._ends:
            self._end("the request took longer than it may in all")
        elif now >= self._since + self._limit_s:
            self._end(f"nothing came for {self._limit_s:g} s")

    def _end(self, what: str) -> None:
        self.stop()
        self.over = what
        self._task.cancel()
