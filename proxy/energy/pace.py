"""How fast an engine goes: its steps by its own counter where it has one, else the pace that its answers show."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from proxy.energy.prior import Coefficients
from proxy.energy.seen import Seen
from proxy.energy.work import Progress, first_token, part

_ENOUGH_TOKENS = 32  # as many tell more than the prior
_BELIEVED_STEPS = 20.0  # that each is a token, before it is known better
_MEMORY_TOKENS = 20_000  # how much output the learned pace rests on at most: a load that changes is followed


class Pace:
    """One engine's steps over time. Times are Unix seconds."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque()  # (time, steps) by the counter
        self._tokens = self._seconds = 0.0  # of attempts that ended
        self._steps = self._seen = _BELIEVED_STEPS
        self.steps_seen = 1.0  # steps for each token of the request that got most; less where a step makes several

    @property
    def last(self) -> float | None:
        """When the counter was last heard of."""
        return self._marks[-1][0] if self._marks else None

    def count(self, t: float, steps: float) -> None:
        """The counter at `t`. One that fell begins anew."""
        if self._marks and steps < self._marks[-1][1]:
            self._marks.clear()
        self._marks.append((t, steps))

    def counted(self, t0: float, t1: float) -> float | None:
        """Steps by the counter; None for a time that it does not tell of."""
        if len(self._marks) < 2 or t1 <= self._marks[0][0] or t0 >= self._marks[-1][0]:
            return None
        return max(0.0, self._at(t1) - self._at(t0))

    def expected(self, t0: float, t1: float, step_s: float) -> float:
        """Steps by the counter, and at `step_s` seconds each for the time that it does not tell of."""
        steps = self.counted(t0, t1)
        if steps is None:
            return (t1 - t0) / step_s if step_s else 0.0
        untold_s = max(0.0, self._marks[0][0] - t0) + max(0.0, t1 - self._marks[-1][0])
        return steps + (untold_s / step_s if step_s else 0.0)

    def token_s(self, attempts: Sequence[Progress], seen: Seen, prices: Coefficients) -> float:
        """Seconds from token to token of one attempt: as attempts show and have shown, else by the prior."""
        streams = [progress for progress in attempts if progress.streamed and progress.first is not None]
        t, frames = seen.latest(np.array([progress.serial for progress in streams], dtype=np.int64))
        since_s = np.array([t - (progress.first or 0.0) for progress in streams])
        tokens = self._tokens + float((frames - 1)[frames > 0].sum())
        seconds = self._seconds + float(np.maximum(0.0, since_s)[frames > 0].sum())
        return seconds / tokens if seconds and tokens >= _ENOUGH_TOKENS else prices.step_s

    def learn(self, progress: Progress, prices: Coefficients) -> None:
        """An attempt is over, and how many tokens it had is known."""
        if progress.ended is None or not progress.output_tokens:
            return
        self._tokens += progress.output_tokens - 1  # the first comes with the prompt
        self._seconds += max(0.0, progress.ended - first_token(progress, progress.ended, prices))
        if self._tokens > _MEMORY_TOKENS:
            self._tokens, self._seconds = self._tokens / 2, self._seconds / 2

    def saw(self, counted: float | None, tokens: float) -> None:
        """In a stretch of time the counter moved so far, while whoever got most had so many tokens. Of use after
        `conclude` only: devices that are settled in one round are settled by the same, in whatever order."""
        if counted is None or not tokens:
            return
        self._steps += counted
        self._seen += tokens
        if self._seen > _MEMORY_TOKENS:
            self._steps, self._seen = self._steps / 2, self._seen / 2

    def conclude(self) -> None:
        """Use what was seen until now."""
        self.steps_seen = self._steps / self._seen

    def forget(self, horizon: float) -> None:
        """Nobody will ask for a time before `horizon`."""
        while len(self._marks) > 1 and self._marks[1][0] <= horizon:
            self._marks.popleft()

    def _at(self, t: float) -> float:
        before = self._marks[0]
        for mark in self._marks:
            if mark[0] >= t:
                return before[1] + (mark[1] - before[1]) * part(t, before[0], mark[0])
            before = mark
        return before[1]
