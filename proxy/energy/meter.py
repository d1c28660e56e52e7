"""The shell around energy accounting: reads counters ten times a second, closes the books once a second.

Counters are read in a thread of their own, and the ledger is written in another (`writer`). What fails here is said and
tried again; it never reaches a request.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from proxy import clock
from proxy.energy.attribution import Attribution
from proxy.energy.cpu_part import CpuTime
from proxy.energy.ledger import Ledger
from proxy.energy.ledger_reader import LedgerReader, Parts
from proxy.energy.processes import Processes
from proxy.energy.receipts import Book, Run, Second
from proxy.energy.records import DeviceRecord, Dropped, Quality
from proxy.energy.retention import Retention
from proxy.energy.savings import saved
from proxy.energy.sources import Device, Reading, Source
from proxy.energy.spent import HOUR_S, MONTH_H, Spent
from proxy.energy.work import Progress
from proxy.energy.writer import LedgerWriter
from proxy.telemetry.metrics import Metrics

log = logging.getLogger("joulegate.meter")

COMMIT_S = 1.0
SLICE_S = 0.002
MOST_REQUESTS = 50_000  # that wait for the ledger in memory; about 1.5 kB each


class Meter:
    """Owns sources and ledger; feeds attribution and the book, and moves ledger and metrics together."""

    def __init__(
        self,
        sources: Sequence[Source],
        attribution: Attribution,
        book: Book,
        ledger: Ledger,
        metrics: Metrics,
        interval_s: float,
        most_requests: int = MOST_REQUESTS,
        retention: Retention | None = None,
        seen: Callable[[Sequence[Reading]], None] | None = None,
        processes: Processes | None = None,
    ) -> None:
        """`seen` is told of every round of readings; `processes` tells the CPU time of engines on this machine."""
        self._seen, self._processes = seen, processes
        self._sources, self._attribution, self._book = sources, attribution, book
        self._metrics, self._interval_s = metrics, interval_s
        self._reading = ThreadPoolExecutor(1, "counters")
        self.writer = LedgerWriter(
            ledger, self._count, self._count_dropped, book.renew, most_requests, retention or Retention()
        )
        self._booked_uj: Counter[str] = Counter()  # by device, settled and not yet in a batch
        self._committing = asyncio.Lock()
        self._flush: asyncio.Task[None] | None = None
        reader = LedgerReader(ledger.path)
        self._before: dict[str, DeviceRecord] = {record.device: record for record in reader.devices()}
        self._told_uj = {record.device: record.counter_uj for record in self._before.values()}  # to the ledger
        self.committed: dict[str, Parts] = reader.parts()
        self.spent = Spent(reader.spent(since=int(clock.now() // HOUR_S) - MONTH_H))
        self.last: dict[str, Reading] = {}
        self.power_w: dict[str, float] = {}
        self._power_from: dict[str, Reading] = {}

    @property
    def devices(self) -> dict[str, Device]:
        return {device.name: device for source in self._sources for device in source.devices}

    def counter_uj(self) -> dict[str, int]:
        """What each counter moved since the ledger began: what was booked before, and the raw readings since."""
        moved = self._attribution.counter_uj()
        return {
            name: moved.get(name, 0) + (self._before[name].counter_uj if name in self._before else 0)
            for name in {*moved, *self._before}
        }

    def open_uj(self) -> dict[str, int]:
        """What was read and is not yet committed, by device: open windows, and settled ones on their way to disk."""
        open_uj = self._attribution.open_uj()
        for device, uj in self._booked_uj.items():
            open_uj[device] += uj
        for second in self.writer.waiting:
            for w in second.batch.windows:
                open_uj[w.device] += w.workflow_uj + w.idle_uj + w.foreign_uj + w.gap_uj
        return open_uj

    def writing(self, tenant: str, run: str) -> set[str]:
        """The settled requests of a run that are on their way to the ledger."""
        settled = (one for second in self.writer.waiting for one in second.settled.items())
        return {request_id for request_id, whose in settled if whose.run == run and whose.tenant == tenant}

    async def next_commit(self) -> None:
        """Return when the ledger has committed what is settled now."""
        await self.writer.next_commit()

    async def read_forever(self) -> None:
        """Read all counters every interval, and never twice at once."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                await self.read()
            except Exception:
                log.exception("counters could not be read")
            due = max(due + self._interval_s, loop.time())
            await asyncio.sleep(due - loop.time())

    async def read(self) -> None:
        """One round of readings into attribution."""
        loop = asyncio.get_running_loop()
        readings, times = await loop.run_in_executor(self._reading, self._read_all)
        for reading in readings:
            self._take(reading)
        for time_ in times:
            self._attribution.cpu(time_)
        self._attribution.mark(clock.now())
        if self._seen is not None:
            self._seen(readings)

    def _read_all(self) -> tuple[list[Reading], list[CpuTime]]:
        readings = [reading for source in self._sources for reading in source.read()]
        return readings, self._processes.read() if self._processes is not None else []

    def _take(self, reading: Reading) -> None:
        name = reading.device
        before = self._before.get(name)
        if name not in self.last and before is not None and _goes_on(before, self.devices[name]):
            self._attribution.resume(name, reading.t, reading.energy_uj, before.raw_uj)
        else:
            self._attribution.reading(name, reading.t, reading.energy_uj)
        self.last[name] = reading
        start = self._power_from.setdefault(name, reading)
        if reading.t - start.t >= 1.0:
            if reading.energy_uj >= start.energy_uj:
                self.power_w[name] = (reading.energy_uj - start.energy_uj) / 1e6 / (reading.t - start.t)
            self._power_from[name] = reading

    async def commit_forever(self) -> None:
        """Close the books of every second. A ledger that takes its time, or has no time at all, is not waited for."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + COMMIT_S, loop.time())
            await asyncio.sleep(due - loop.time())
            try:
                await self._close_second()
                if self._flush is None or self._flush.done():
                    self._flush = asyncio.create_task(self._write())
                await self.writer.make_room()
            except Exception:
                log.exception("the books of this second could not be closed; they stay open")

    async def commit(self, until: float | None = None) -> None:
        """Settle what can be settled by `until` (now), write it, and count it in the metrics once it is written."""
        await self._close_second(until)
        await self.writer.flush()
        await self.writer.make_room()

    async def _close_second(self, until: float | None = None) -> None:
        async with self._committing:
            devices = self.devices
            now, began = until or clock.now(), time.monotonic()
            for settled in self._attribution.settle(now):
                for tenant, uj in self._book.book(settled).items():
                    self.spent.add(tenant, settled.t1, uj)
                self._booked_uj[settled.device] += settled.delta_uj
                if time.monotonic() - began > SLICE_S:  # whoever streams has waited long enough
                    await asyncio.sleep(0)
                    began = time.monotonic()
            second = self._book.batch(clock.now(), devices, self._attribution.settled(), partial(self._saved, devices))
            self._booked_uj.clear()
            second.batch.devices.extend(self._device_records(devices))
            if second:
                self.writer.add(second)

    def _saved(self, devices: Mapping[str, Device], progress: Progress) -> tuple[Quality, int] | None:
        serving = self._attribution.serving(progress.engine) if progress.cached_tokens else None
        return None if serving is None else saved(progress, serving, devices)

    async def _write(self) -> None:
        try:
            await self.writer.flush()
        except Exception:
            log.exception("what waits for the ledger could not be written; it goes on waiting")

    def _count(self, second: Second) -> None:
        metrics, batch = self._metrics, second.batch
        for window in batch.windows:
            old = self.committed.get(window.device, Parts())
            new = (window.workflow_uj, window.idle_uj, window.foreign_uj, window.gap_uj)
            self.committed[window.device] = Parts(*(a + b for a, b in zip(old, new, strict=True)))
        metrics.apply(second.deltas, batch.windows)
        for label, reason, uj in second.wasted:
            metrics.wasted(label, reason, uj)
        for label, quality, uj in second.saved:
            metrics.saved(label, quality, uj)
        for (tenant, workflow, step), (prompt, cached, output) in second.tokens.items():
            metrics.tokens(tenant, workflow, step, prompt, cached, output)
        for run in second.finals:
            metrics.run_done(run.label, run.run, run.uj, run.ended - run.opened, clock.now())

    def _count_dropped(self, dropped: Dropped, finals: list[Run]) -> None:
        self._metrics.dropped(sum(one.requests for one in dropped.requests), sum(one.uj for one in dropped.energy))
        for run in finals:
            self._metrics.run_done(run.label, run.run, run.uj, run.ended - run.opened, clock.now())

    def _device_records(self, devices: Mapping[str, Device]) -> list[DeviceRecord]:
        """Where each device's books stand with this batch, and what its counter adds to them by its raw readings."""
        counters, open_uj = self.counter_uj(), self._attribution.open_uj()
        records: list[DeviceRecord] = []
        for name, (raw_uj, t) in self._attribution.raw().items():
            device = devices.get(name)
            if device is not None:
                still_open = open_uj.get(name, 0)
                booked_uj = counters[name] - still_open
                told_uj, self._told_uj[name] = self._told_uj.get(name, 0), booked_uj
                what = (name, device.component, device.model, device.quality)
                records.append(DeviceRecord(*what, booked_uj - told_uj, raw_uj - still_open, t))
        return records

    async def close(self) -> None:
        """Read and settle once more, whatever is still waiting, and close ledger and sources."""
        try:
            await self.read()
            # Nobody is left to wait for: as if every window had waited its time.
            await self._close_second(until=clock.now() + 3600)
        except Exception:
            log.exception("the last books could not be closed")
        await self.writer.close()
        self._reading.shutdown()
        for source in self._sources:
            source.close()


def _goes_on(before: DeviceRecord, device: Device) -> bool:
    """Whether a device's counter may be the one that an earlier process read, so that the difference is energy.

    An estimate's never is: it counts from the start of its process, and only by chance stands above where the last one
    ended. Another model or quality under the same name is another counter, with a zero of its own.
    """
    if device.quality is Quality.ESTIMATED:
        return False
    return (before.model, before.quality) == (device.model, device.quality)
