"""Beside a load over HTTP: asks the gateway for joules and counters, and watches how the generator itself fares."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

import gevent
import numpy as np

from loadgen.gateway import Receipt, balance, settled_run
from loadgen.record import Sample
from loadgen.wire import Server, WireError

SETTLED_AFTER_S = 4.0  # a run's joules are settled within a few seconds as a rule
ASKED_AGAIN_S = 1.5
PULSE_S = 0.02


class Collector:
    """Receipts of runs and samples of devices, from a target that may be a gateway or not.

    A run is asked for once, when its figures should be settled, so that a load is not disturbed by questions.
    `on_receipts` is told of every run that is settled: (run id, receipts by node).
    """

    def __init__(
        self,
        server: Server,
        headers: Mapping[str, str],
        clock: Callable[[], float],
        on_receipts: Callable[[str, Mapping[str, Receipt]], None],
    ) -> None:
        self.samples: list[Sample] = []
        self.why_not: str | None = "nobody asked for joules"  # why there are none
        self._server, self._headers, self._clock, self._on_receipts = server, headers, clock, on_receipts
        self._before_j: dict[str, float] | None = None
        self._due: deque[tuple[float, str]] = deque()  # in the order of their times, as every wait is the same

    def begin(self) -> None:
        """Read the counters as the load begins, which also tells whether there are any."""
        try:
            found = self._balance()
        except (WireError, ValueError) as error:
            self.why_not = f"the target keeps no energy books: {error}"
            return
        if not found:
            self.why_not = "the target keeps no energy books: it names no device"
            return
        self.why_not = None
        self._before_j = {sample.device: sample.energy_j for sample in found}

    def ended(self, run: str) -> None:
        if self._before_j is not None:
            self._due.append((self._clock() + SETTLED_AFTER_S, run))

    def sample(self) -> None:
        if self._before_j is not None:
            with suppress(WireError, ValueError):  # a sample that is missing is seen by its time
                self.samples += self._balance(self._before_j)

    def sampling(self, every_s: float) -> None:
        """Sample for ever; a greenlet to be killed."""
        due_s = self._clock()
        while self._before_j is not None:
            self.sample()
            due_s += every_s
            gevent.sleep(max(0.0, due_s - self._clock()))

    def settling(self) -> None:
        """Ask for runs as they become due, for ever; a greenlet to be killed."""
        while True:
            if self._due and self._due[0][0] <= self._clock():
                self._ask(self._due.popleft()[1])
            else:
                gevent.sleep(0.1)

    def settle(self, within_s: float) -> int:
        """Wait until every run is settled, at most so long; how many are not."""
        until = self._clock() + within_s
        while self._due and self._clock() < until:
            due_s, run = self._due.popleft()
            gevent.sleep(max(0.0, min(due_s, until) - self._clock()))
            self._ask(run)
        return len(self._due)

    def _ask(self, run: str) -> None:
        try:
            status, body = self._server.get(f"/energy/runs/{run}", self._headers)
            receipts = settled_run(body) if status == 200 else None
        except (WireError, ValueError):
            receipts = None
        if receipts is None:
            self._due.append((self._clock() + ASKED_AGAIN_S, run))
        else:
            self._on_receipts(run, receipts)

    def _balance(self, before_j: Mapping[str, float] | None = None) -> list[Sample]:
        status, body = self._server.get("/energy/balance", self._headers)
        if status != 200:
            raise ValueError(f"/energy/balance answers HTTP {status}")
        return balance(body, self._clock(), before_j)


class Pulse:
    """Wakes up every 20 ms and counts how late; and how much CPU this process took."""

    def __init__(self) -> None:
        self._late_s: list[float] = []
        self._began = (time.perf_counter(), time.process_time())
        self._greenlet = gevent.spawn(self._beat)

    def stop(self) -> tuple[float, float]:
        """Lateness at the 99th percentile in seconds, and CPU in shares of one core."""
        self._greenlet.kill()
        wall_s, cpu_s = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        late_s = float(np.percentile(self._late_s, 99)) if self._late_s else 0.0
        return late_s, cpu_s / wall_s

    def _beat(self) -> None:
        while True:
            due = time.perf_counter() + PULSE_S
            gevent.sleep(PULSE_S)
            self._late_s.append(max(0.0, time.perf_counter() - due))
