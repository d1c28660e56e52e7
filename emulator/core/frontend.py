"""The HTTP server before the engine: one thread that works through requests as they come."""

from heapq import heappop, heappush
from math import inf

from emulator.core.sequence import Sequence, State


class Frontend:
    """A request takes `request_s`, and `token_s` for each token of its prompt, after those that came before it."""

    def __init__(self, request_s: float, token_s: float) -> None:
        self._request_s = request_s
        self._token_s = token_s
        self._free_at = -inf
        self._arrivals: list[tuple[float, int, Sequence]] = []  # a heap
        self._count = 0

    def arrive(self, sequence: Sequence) -> None:
        heappush(self._arrivals, (sequence.arrived_at, self._count, sequence))
        self._count += 1

    def next_at(self) -> float:
        """When the engine sees the next request, as far as is known now; inf if there is none."""
        arrivals = self._arrivals
        while arrivals and arrivals[0][2].state is State.ENDED:
            heappop(arrivals)
        if not arrivals:
            return inf
        at, _, sequence = arrivals[0]
        return max(at, self._free_at) + self._request_s + self._token_s * sequence.prompt_tokens

    def pass_on(self) -> Sequence:
        """The next request, to be given to the engine."""
        self._free_at = self.next_at()
        return heappop(self._arrivals)[2]
