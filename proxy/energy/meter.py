"""The shell around energy accounting: reads counters ten times a second, closes the books once a second.

Counters and ledger are each read and written in a thread of their own. What fails here is said and tried again; it
never reaches a request.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from proxy import clock
from proxy.energy.attribution import Attribution
from proxy.energy.ledger import Ledger, LedgerError
from proxy.energy.ledger_reader import LedgerReader, Parts
from proxy.energy.receipts import Book, Receipt, Second, tokens_by_label
from proxy.energy.records import DeviceRecord, Quality
from proxy.energy.savings import saved
from proxy.energy.sources import Device, Reading, Source
from proxy.energy.spent import HOUR_S, MONTH_H, Spent
from proxy.energy.work import Progress
from proxy.telemetry.metrics import Metrics

log = logging.getLogger("joulegate.meter")

COMMIT_S = 1.0
SLICE_S = 0.002


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
    ) -> None:
        self._sources, self._attribution, self._book = sources, attribution, book
        self._ledger, self._metrics, self._interval_s = ledger, metrics, interval_s
        self._reading = ThreadPoolExecutor(1, "counters")
        self._writing = ThreadPoolExecutor(1, "ledger")
        self._backlog: deque[Second] = deque()
        self._booked_uj: Counter[str] = Counter()  # by device, settled and not yet in a batch
        self._committing = asyncio.Lock()
        self._commit = asyncio.Event()
        reader = LedgerReader(ledger.path)
        self._before: dict[str, DeviceRecord] = {record.device: record for record in reader.devices()}
        self.committed: dict[str, Parts] = reader.parts()
        self.spent = Spent(reader.spent(since=int(clock.now() // HOUR_S) - MONTH_H))
        self.last: dict[str, Reading] = {}
        self.power_w: dict[str, float] = {}
        self._power_from: dict[str, Reading] = {}
        self.ledger_error: str | None = None

    @property
    def devices(self) -> dict[str, Device]:
        return {device.name: device for source in self._sources for device in source.devices}

    @property
    def backlog(self) -> int:
        return len(self._backlog)

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
        for second in self._backlog:
            for w in second.batch.windows:
                open_uj[w.device] += w.workflow_uj + w.idle_uj + w.foreign_uj + w.gap_uj
        return open_uj

    def writing(self, tenant: str, run: str) -> list[Receipt]:
        """The settled receipts of a run that are on their way to the ledger."""
        settled = (receipt for second in self._backlog for receipt in second.settled)
        return [one for one in settled if one.run.run == run and one.run.tenant == tenant]

    async def next_commit(self) -> None:
        """Return when the ledger has committed what is settled now."""
        await self._commit.wait()

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
        for reading in await loop.run_in_executor(self._reading, self._read_sources):
            self._take(reading)
        self._attribution.mark(clock.now())

    def _read_sources(self) -> list[Reading]:
        return [reading for source in self._sources for reading in source.read()]

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
        while True:
            await asyncio.sleep(COMMIT_S)
            try:
                await self.commit()
            except Exception:
                log.exception("the books of this second could not be closed; they stay open")

    async def commit(self, until: float | None = None) -> None:
        """Settle what can be settled by `until` (now), write it, and count it in the metrics once it is written."""
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
            second = self._book.batch(clock.now(), devices, self._attribution.is_settled, partial(self._saved, devices))
            self._booked_uj.clear()
            second.batch.devices.extend(self._device_records(devices))
            if second:
                self._backlog.append(second)
            await self._flush()

    def _saved(self, devices: Mapping[str, Device], progress: Progress) -> tuple[Quality, int] | None:
        serving = self._attribution.serving(progress.engine)
        return None if serving is None else saved(progress, serving, devices)

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._backlog:
            second = self._backlog[0]
            try:
                await loop.run_in_executor(self._writing, self._ledger.write, second.batch)
            except LedgerError as error:
                if self.ledger_error is None:
                    log.error("the ledger cannot be written, its batches wait in memory: %s", error)
                self.ledger_error = str(error)
                return
            if self.ledger_error is not None:
                log.warning("the ledger can be written again")
                self.ledger_error = None
            self._backlog.popleft()
            self._count(second)
        self._commit.set()
        self._commit = asyncio.Event()

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
        for (tenant, workflow, step), (prompt, cached, output) in tokens_by_label(second.ended).items():
            metrics.tokens(tenant, workflow, step, prompt, cached, output)
        for run in second.finals:
            metrics.run_done(run.label, run.run, run.uj, run.ended - run.opened, clock.now())

    def _device_records(self, devices: Mapping[str, Device]) -> list[DeviceRecord]:
        """Where each device's books stand with this batch: the raw reading up to which its joules are in it."""
        counters, open_uj = self.counter_uj(), self._attribution.open_uj()
        records: list[DeviceRecord] = []
        for name, (raw_uj, t) in self._attribution.raw().items():
            device = devices.get(name)
            if device is not None:
                still_open = open_uj.get(name, 0)
                booked = counters[name] - still_open
                records.append(
                    DeviceRecord(name, device.component, device.model, device.quality, booked, raw_uj - still_open, t)
                )
        return records

    async def close(self) -> None:
        """Read and settle once more, whatever is still waiting, and close ledger and sources."""
        try:
            await self.read()
            # Nobody is left to wait for: as if every window had waited its time.
            await self.commit(until=clock.now() + 3600)
        except Exception:
            log.exception("the last books could not be closed")
        self._reading.shutdown()
        self._writing.shutdown()
        self._ledger.close()
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


def worst_quality(devices: Mapping[str, Device]) -> Quality | None:
    """The worst quality among the counters, None without any."""
    return max((d.quality for d in devices.values()), key=list(Quality).index, default=None)
