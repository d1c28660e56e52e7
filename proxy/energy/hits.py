"""Prompt tokens that an engine found in its prefix cache, where no usage says whose they are.

vLLM tells them in a usage only when it is asked to (`--enable-prompt-tokens-details`), but always counts them: when it
takes a request up. So what its counter moved between two looks belongs to those that were waiting for their first token
meanwhile, in proportion to what is left of their prompts.
"""

from collections.abc import Iterable

from proxy.energy.work import Progress

_LATE_S = 1.0  # who is sent is taken up within so long, or waits for others that are


class Hits:
    """One engine's cached prompt tokens. Times are Unix seconds."""

    def __init__(self) -> None:
        self.told = False  # whether a usage of this engine ever said: then one that does not means none
        self.counted = False
        self._total: float | None = None
        self._looked = 0.0

    def look(self, t: float, total: float, attempts: Iterable[Progress]) -> None:
        """The engine's cumulative count at `t`; a count that fell begins anew."""
        before, since = self._total, self._looked
        self._total, self._looked, self.counted = total, t, True
        if before is None or total <= before or self.told:
            return
        taken_up = [progress for progress in attempts if _may_be_taken_up(progress, since, t)]
        left = [max(0, progress.uncached - 1) for progress in taken_up]  # an engine computes the last token at least
        found = min(1.0, (total - before) / (sum(left) or 1))
        for progress, tokens in zip(taken_up, left, strict=True):
            progress.cached_guess += round(tokens * found)

    def relay(self, progress: Progress) -> None:
        """An attempt is over, and what its usage says is known."""
        self.told = self.told or progress.cached_tokens is not None


def _may_be_taken_up(progress: Progress, since: float, t: float) -> bool:
    if progress.cached_tokens is not None or progress.dispatched > t:
        return False
    if progress.first is not None:
        return progress.first >= since
    waits = progress.ended is None or progress.ended >= since
    return waits and (progress.streamed or progress.dispatched >= since - _LATE_S)
