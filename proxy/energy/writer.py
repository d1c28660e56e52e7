"""Takes the books to the ledger, second by second, in a thread of its own; what it does not take waits here.

A ledger that cannot be written, or is slow, stops nobody: seconds wait in memory, and are made fewer when they are too
many (`backlog`).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from proxy import clock
from proxy.energy import backlog
from proxy.energy.ledger import Ledger
from proxy.energy.ledger_file import LedgerError, LedgerMismatch
from proxy.energy.receipts import Run, Second
from proxy.energy.records import Dropped
from proxy.energy.retention import Retention

log = logging.getLogger("joulegate.ledger")

MOST_SECONDS = 120  # that wait one by one
LAST_TRY_S = 10.0  # how long the end waits for a ledger that cannot be written
FORGET_EVERY_S = 60.0
FORGET_AT_MOST_S = 0.4  # of every second, in slices


class LedgerWriter:
    """Owns the ledger. `committed` is called with every second that is in it, in order; `dropped` with sums of receipts
    that had to be let go, and the runs that are gone with them; `renew` when it has lost what is open."""

    def __init__(
        self,
        ledger: Ledger,
        committed: Callable[[Second], None],
        dropped: Callable[[Dropped, list[Run]], None],
        renew: Callable[[], None],
        most_requests: int,
        retention: Retention,
    ) -> None:
        self._ledger, self._retention, self._most_requests = ledger, retention, most_requests
        self._committed, self._dropped, self._renew = committed, dropped, renew
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._queue: deque[Second] = deque()
        self._changing = asyncio.Lock()  # of the queue's head
        self._in_hand: Second | None = None
        self._flushing = asyncio.Lock()
        self._commit = asyncio.Event()
        self._forget_at = 0.0
        self.error: str | None = None

    @property
    def waiting(self) -> list[Second]:
        """The seconds that are not in the ledger, the oldest first."""
        return [*([self._in_hand] if self._in_hand else []), *self._queue]

    @property
    def requests(self) -> int:
        """How many requests wait."""
        return sum(len(second.batch.requests) for second in self.waiting)

    def add(self, second: Second) -> None:
        self._queue.append(second)

    async def next_commit(self) -> None:
        """Return when the ledger has everything that was added until then."""
        await self._commit.wait()

    async def flush(self) -> None:
        """Write what waits, the oldest first; what cannot be written goes on waiting. Then forget what is old."""
        async with self._flushing:
            while self._queue:
                async with self._changing:
                    self._in_hand = self._queue.popleft()
                written = None
                try:
                    written = await self._write(self._in_hand)
                finally:
                    if written is None:
                        async with self._changing:
                            self._queue.appendleft(self._in_hand)
                    self._in_hand = None
                if written is None:
                    return
                self._committed(written)
            self._commit.set()
            self._commit = asyncio.Event()
            await self._forget()

    async def make_room(self) -> None:
        """Where too much waits, make it one second, and let the oldest receipts go; all but what is being written."""
        async with self._changing:
            waiting = list(self._queue)
            requests = sum(len(second.batch.requests) for second in waiting)
            if len(waiting) < 2 or (len(waiting) <= MOST_SECONDS and requests <= self._most_requests):
                return
            squeezed = await asyncio.to_thread(backlog.squeeze, waiting, self._most_requests)
            for _ in waiting:
                self._queue.popleft()
            self._queue.appendleft(squeezed.second)
        if squeezed.dropped:
            self._dropped(squeezed.dropped, squeezed.finals)

    async def close(self) -> None:
        """Write what waits, trying again for some seconds, and close the ledger."""
        deadline = time.monotonic() + LAST_TRY_S
        await self.flush()
        while self._queue and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            await self.flush()
        if self._queue:
            log.error(
                "%d requests could not be written and are lost; their joules are a gap in the books: %s",
                self.requests,
                self.error,
            )
        self._thread.shutdown()
        self._ledger.close()

    async def _write(self, second: Second) -> Second | None:
        """Write a second; returns what was written of it, null when it has to wait."""
        loop = asyncio.get_running_loop()
        try:
            try:
                await loop.run_in_executor(self._thread, self._ledger.write, second.batch)
            except LedgerMismatch as error:
                rest = backlog.without_receipts(second, clock.now())
                await loop.run_in_executor(self._thread, self._ledger.write, rest.batch)
                log.error("%d receipts are kept as sums alone: %s", len(second.batch.requests), error)
                self._dropped(rest.batch.dropped, [])
                self._renew()
                second = rest
        except LedgerError as error:
            if self.error is None:
                log.error("the ledger cannot be written, its batches wait in memory: %s", error)
            self.error = str(error)
            return None
        if self.error is not None:
            log.warning("the ledger can be written again")
            self.error = None
        return second

    async def _forget(self) -> None:
        """Forget what is old enough, a slice at a time, for part of this second."""
        loop, began, now = asyncio.get_running_loop(), time.monotonic(), clock.now()
        while self._forget_at <= now and time.monotonic() - began < FORGET_AT_MOST_S:
            slice_began, most = time.monotonic(), self._retention.slice_rows
            try:
                more = await loop.run_in_executor(self._thread, self._ledger.forget, *self._retention.before(now), most)
            except LedgerError as error:
                log.warning("nothing can be forgotten now: %s", error)
                more = False
            if not more:
                self._forget_at = now + FORGET_EVERY_S
                return
            self._retention.took(time.monotonic() - slice_began)
