import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import clock
from proxy.energy.attribution import Attribution
from proxy.energy.ledger import Ledger
from proxy.energy.ledger_file import LedgerError
from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.meter import Meter
from proxy.energy.prior import prior
from proxy.energy.receipts import Attempt, Book, Receipt
from proxy.energy.records import Outcome, Quality
from proxy.energy.sources import Device, Reading
from proxy.energy.work import Progress
from proxy.identify import identify
from proxy.telemetry.metrics import Metrics

GPU, CPU = "h1/gpu:0", "h1/cpu:0"


class Counters:
    """Two counters at 100 W each that outlive a gateway, and the clock that goes with them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.raw_uj = {GPU: 7_000_000, CPU: 11}
        self.broken = False
        self.closed = False
        self.devices: tuple[Device, ...] = (
            Device(GPU, "gpu", "NVIDIA H200", Quality.MEASURED),
            Device(CPU, "cpu", "a CPU", Quality.MEASURED),
        )
        self.notes = ()

    def read(self) -> list[Reading]:
        if self.broken:
            raise RuntimeError("the driver is gone")
        return [Reading(name, self.now, uj) for name, uj in self.raw_uj.items()]

    def close(self) -> None:
        self.closed = True

    def move(self, seconds: float, power_w: float = 100.0) -> None:
        self.now += seconds
        for name in self.raw_uj:
            self.raw_uj[name] += round(seconds * power_w * 1e6)


class Gateway:
    """A meter with everything that it feeds, over a ledger file."""

    def __init__(self, counters: Counters, path: Path) -> None:
        self.counters, self.path = counters, path
        self.ledger = Ledger(path)
        self.attribution = Attribution()
        self.attribution.add_engine("e1", (GPU, CPU), prior("NVIDIA H200", "llama-2-7b"))
        self.metrics = Metrics("test")
        self.book = Book(self.metrics.bounds.workflow, self.metrics.bounds.step)
        self.meter = Meter([counters], self.attribution, self.book, self.ledger, self.metrics, 0.1)
        self.requests = 0

    async def spend(self, seconds: float, step_s: float = 0.5) -> None:
        """Time passes: counters are read all along, the books closed once a second."""
        for n in range(1, round(seconds / step_s) + 1):
            self.counters.move(step_s)
            await self.meter.read()
            if n * step_s % 1.0 == 0:
                await self.meter.commit()
                self.check()

    def open(self, run: str = "r1", streamed: bool = True) -> tuple[Receipt, Attempt]:
        self.requests += 1
        request_id, now = f"{self.path.stem}-{self.counters.now}-{self.requests}", self.counters.now
        headers = {b"x-workflow-id": run.encode(), b"x-workflow-name": b"search", b"x-workflow-step": b"query"}
        receipt = self.book.open(identify(headers, None, request_id), "default", request_id, "/v1/x", 60.0, now)
        progress = Progress(request_id, 1, "e1", now, 100, streamed)
        receipt.attempts.append(Attempt(1, "e1", now, progress))
        self.attribution.start(progress)
        return receipt, receipt.attempts[0]

    def end(self, receipt: Receipt, outcome: Outcome = Outcome.OK) -> None:
        one = receipt.attempts[0]
        assert one.progress is not None
        one.ended = one.progress.ended = self.counters.now
        one.outcome = outcome
        if outcome is Outcome.OK:
            one.progress.prompt_tokens = receipt.prompt_tokens = 90
            one.progress.output_tokens = receipt.output_tokens = 9
        self.book.close(receipt, 200, outcome, self.counters.now)

    def counted(self) -> dict[tuple[str, str], int]:
        """(device, share) → µJ in the metrics."""
        sums: Counter[tuple[str, str]] = Counter()
        for (host, device, share, _), uj in self.metrics.devices.totals.items():
            sums[f"{host}/{device}", share] += uj
        return sums

    def check(self) -> None:
        """The books balance, and the ledger, the live figures and the metrics are one."""
        parts = LedgerReader(self.path).parts()
        assert self.meter.committed == parts
        counter_uj, open_uj = self.meter.counter_uj(), self.meter.open_uj()
        for device, uj in counter_uj.items():
            assert uj == sum(parts.get(device, ())) + open_uj.get(device, 0), "residual"
        for device, row in LedgerReader(self.path).balance().items():
            assert row["residual_j"] == 0, device


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    counters = Counters()
    monkeypatch.setattr(clock, "now", lambda: counters.now)
    return counters


@asynccontextmanager
async def running(counters: Counters, path: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(counters, path)
    try:
        await gateway.meter.read()
        yield gateway
    finally:
        await gateway.meter.close()


@pytest.fixture
async def gateway(counters: Counters, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with running(counters, tmp_path / "ledger.sqlite") as gateway:
        yield gateway


async def test_metrics_and_ledger_move_together(gateway: Gateway) -> None:
    receipt, _ = gateway.open()
    await gateway.spend(2.0)
    gateway.end(receipt)
    await gateway.spend(3.0)
    row = LedgerReader(gateway.path).workflows()[0]
    assert receipt.uj == pytest.approx(2 * 200e6, rel=1e-6)
    assert row["joules"] == receipt.uj / 1e6 == sum(gateway.metrics.energy.totals.values()) / 1e6
    for device, parts in LedgerReader(gateway.path).parts().items():
        assert gateway.counted()[device, "workflow"] == parts.workflow_uj == pytest.approx(200e6, rel=1e-6)
        assert gateway.counted()[device, "idle"] == parts.idle_uj
    assert gateway.metrics.tokens_by_kind.totals["default", "search", "query", "output"] == 9
    assert gateway.meter.power_w == {GPU: pytest.approx(100.0), CPU: pytest.approx(100.0)}


async def test_an_attempt_that_outlasts_its_windows_is_written_all_along(gateway: Gateway) -> None:
    receipt, one = gateway.open()
    receipt.attempts.clear()
    await gateway.meter.commit()  # which is before the request finds an engine
    receipt.attempts.append(one)
    await gateway.spend(12.0)
    assert gateway.meter.writer.error is None and not gateway.meter.writer.waiting
    assert receipt.uj > 1e9
    found = LedgerReader(gateway.path).request(receipt.id)
    assert found is not None and found["joules"] == receipt.uj / 1e6
    gateway.end(receipt)
    await gateway.spend(2.0)
    assert gateway.attribution.is_settled(receipt.attempts[0].progress or pytest.fail())


async def test_waste_is_counted_in_ledger_and_metrics_alike(gateway: Gateway) -> None:
    receipt, _ = gateway.open(streamed=False)
    await gateway.spend(8.0)
    gateway.end(receipt, Outcome.CANCELLED)
    await gateway.spend(2.0)
    assert gateway.metrics.waste.totals == {("search", "cancelled"): receipt.uj}
    assert LedgerReader(gateway.path).workflows()[0]["joules_wasted"] == receipt.uj / 1e6 > 1500


async def test_what_the_cache_saved_is_told_alike_once_it_is_settled(gateway: Gateway) -> None:
    receipt, one = gateway.open()
    await gateway.spend(2.0)
    gateway.end(receipt)
    assert one.progress is not None
    one.progress.cached_tokens = receipt.cached_tokens = 80
    assert not gateway.metrics.savings.totals
    await gateway.spend(3.0)
    serving = gateway.attribution.serving("e1")
    assert serving is not None
    saved_uj = round(80 * serving.prices.prompt_j * 1e6)
    row = LedgerReader(gateway.path).workflows()[0]
    assert gateway.metrics.savings.totals == {("search", "estimated"): saved_uj}, "nothing is fitted yet"
    assert (row["saved_joules"], row["saved_quality"]) == (saved_uj / 1e6, "estimated") and saved_uj > 0
    assert row["joules"] == receipt.uj / 1e6 == LedgerReader(gateway.path).parts()[GPU].workflow_uj * 2 / 1e6


async def test_a_tenants_hours_are_what_its_requests_cost(gateway: Gateway) -> None:
    receipt, _ = gateway.open()
    await gateway.spend(2.0)
    gateway.end(receipt)
    await gateway.spend(2.0)
    assert LedgerReader(gateway.path).spent(since=0) == {"default": {0: receipt.uj}}


async def test_batches_wait_for_a_ledger_that_cannot_be_written(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt, _ = gateway.open()
    await gateway.spend(1.0)
    write = gateway.ledger.write
    monkeypatch.setattr(gateway.ledger, "write", refuse)
    before = gateway.counted()
    gateway.end(receipt)
    await gateway.spend(3.0)
    assert (len(gateway.meter.writer.waiting), gateway.meter.writer.error) == (3, "disk full")
    assert gateway.counted() == before
    assert gateway.meter.writing("default", "r1")
    monkeypatch.setattr(gateway.ledger, "write", write)
    await gateway.spend(1.0)
    assert (len(gateway.meter.writer.waiting), gateway.meter.writer.error) == (0, None)
    assert gateway.counted()[GPU, "workflow"] + gateway.counted()[CPU, "workflow"] == receipt.uj
    assert not gateway.meter.writing("default", "r1")
    await gateway.spend(1.0)
    assert sum(gateway.metrics.energy.totals.values()) == receipt.uj


async def test_who_waits_for_a_commit_waits_until_it_is_written(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gateway.ledger, "write", refuse)
        waiting = asyncio.create_task(gateway.meter.next_commit())
        await gateway.spend(2.0)
        assert not waiting.done()
    await gateway.spend(1.0)
    await asyncio.wait_for(waiting, 5)


async def test_what_was_spent_while_the_gateway_was_down_is_a_gap(counters: Counters, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    async with running(counters, path) as first:
        receipt, _ = first.open()
        await first.spend(3.0)
        first.end(receipt)
        await first.spend(2.0)
    counters.move(100.0)
    async with running(counters, path) as second:
        await second.spend(2.0)
        parts = LedgerReader(path).parts()
        assert parts[GPU].gap_uj == parts[CPU].gap_uj == 10_000_000_000
        assert sum(parts[GPU]) + second.meter.open_uj()[GPU] == counters.raw_uj[GPU] - 7_000_000


async def test_after_a_crash_the_hole_is_a_gap(counters: Counters, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    first = Gateway(counters, path)
    await first.meter.read()
    receipt, _ = first.open()
    await first.spend(3.0)
    lost_uj = first.meter.open_uj()[GPU]
    assert lost_uj == 300_000_000
    first.ledger.close()  # as the kernel does it for a process that was killed
    counters.move(1.0)
    async with running(counters, path) as second:
        await second.spend(2.0)
        assert LedgerReader(path).parts()[GPU].gap_uj == lost_uj + 100_000_000
        found = LedgerReader(path).request(receipt.id)
        assert found is not None and found["outcome"] == "orphaned"
    counters.raw_uj[GPU] = 5
    async with running(counters, path) as third:
        await third.spend(1.0)
        assert LedgerReader(path).parts()[GPU].gap_uj == lost_uj + 100_000_000, "a reset says nothing"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"quality": Quality.ESTIMATED}, {"quality": Quality.ESTIMATED}),
        ({"quality": Quality.ESTIMATED}, {}),
        ({}, {"quality": Quality.ESTIMATED}),
        ({"quality": Quality.EMULATED}, {}),
        ({"model": "NVIDIA A100"}, {}),
    ],
)
async def test_a_counter_that_is_not_the_same_one_begins_where_it_stands(
    counters: Counters, tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """An estimate's begins with its process; another device's has never been read. What lies between is no energy."""
    path, (gpu, cpu) = tmp_path / "ledger.sqlite", counters.devices
    counters.devices = (replace(gpu, **before), cpu)
    async with running(counters, path) as first:
        await first.spend(2.0)
    counters.devices = (replace(gpu, **after), cpu)
    counters.move(100.0)
    async with running(counters, path) as second:
        await second.spend(2.0)
        second.check()
    parts = LedgerReader(path).parts()
    assert (parts[GPU].gap_uj, parts[CPU].gap_uj) == (0, 10_000_000_000)
    assert sum(parts[GPU]) == 400_000_000


async def test_while_windows_settle_the_balance_holds(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settling makes way for whoever streams, and whoever asks then finds every joule."""
    monkeypatch.setattr("proxy.energy.meter.SLICE_S", 0.0)
    await gateway.spend(0.5, step_s=0.1)
    seen: list[int] = []
    committing = asyncio.create_task(gateway.meter.commit())
    while not committing.done():
        open_uj, committed = gateway.meter.open_uj(), gateway.meter.committed
        for device, uj in gateway.meter.counter_uj().items():
            assert uj == sum(committed.get(device, ())) + open_uj[device]
        seen.append(gateway.attribution.open_uj()[GPU])
        await asyncio.sleep(0)
    await committing
    assert len(set(seen)) > 2, "it was looked at between windows"


async def test_a_window_that_cannot_be_shared_leaves_the_books_in_order(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt, _ = gateway.open()
    await gateway.spend(1.0)
    gateway.end(receipt)
    with monkeypatch.context() as patch:
        patch.setattr("proxy.energy.serving.plan", refuse)
        await gateway.spend(1.0)
    await gateway.spend(2.0)
    parts = LedgerReader(gateway.path).parts()
    assert parts[GPU].gap_uj == 200_000_000 and parts[GPU].idle_uj > 0
    assert gateway.attribution.is_settled(receipt.attempts[0].progress or pytest.fail())


async def test_closing_settles_and_writes_what_is_open(counters: Counters, tmp_path: Path) -> None:
    async with running(counters, tmp_path / "ledger.sqlite") as gateway:
        receipt, _ = gateway.open()
        await gateway.spend(2.0)
        gateway.end(receipt)
        counters.move(0.5)
    assert counters.closed and not any(gateway.meter.open_uj().values())
    parts = LedgerReader(gateway.path).parts()
    assert sum(parts[GPU]) == 250_000_000 and parts[GPU].gap_uj == 0
    assert receipt.uj == pytest.approx(400_000_000, abs=4)


async def test_counters_that_fail_stop_neither_reading_nor_closing(
    counters: Counters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(counters, tmp_path / "ledger.sqlite")
    gateway.meter._interval_s = 0.001
    counters.broken = True
    reading = asyncio.create_task(gateway.meter.read_forever())
    await asyncio.sleep(0.02)
    assert not reading.done() and gateway.meter.last == {}
    counters.broken = False
    while not gateway.meter.last:
        await asyncio.wait([reading], timeout=0.001)
    counters.broken = True
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await gateway.meter.close()
    assert counters.closed


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), st.sampled_from([1.0, 2.0, 6.0])),
        st.tuples(st.just("open"), st.sampled_from(["r1", "r2"]), st.booleans()),
        st.tuples(st.just("end"), st.integers(0, 3), st.sampled_from([Outcome.OK, Outcome.CANCELLED, Outcome.FAILED])),
        st.tuples(st.just("ledger"), st.booleans()),
        st.tuples(st.just("reset"), st.sampled_from([GPU, CPU])),
        st.tuples(st.just("restart"), st.booleans()),
    ),
    max_size=14,
)


@settings(max_examples=20, deadline=None)
@given(STEPS)
def test_the_books_balance_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        counters = Counters()
        patch.setattr(clock, "now", lambda: counters.now)
        asyncio.run(live(counters, Path(folder) / "ledger.sqlite", steps))


async def live(counters: Counters, path: Path, steps: list[tuple[Any, ...]]) -> None:
    """Live through the steps, with crashes and restarts; afterwards all that the counters moved is in the ledger."""
    moved_uj = dict.fromkeys(counters.raw_uj, 0)
    requests: list[Receipt] = []
    gateway = Gateway(counters, path)
    await gateway.meter.read()
    for step in [("spend", 1.0), *steps, ("ledger", True), *[("end", 0, Outcome.OK)] * 20, ("spend", 7.0)]:
        before_uj = dict(counters.raw_uj)
        match step:
            case "spend", seconds:
                await gateway.spend(seconds)
            case "open", run, streamed:
                requests.append(gateway.open(run, streamed)[0])
            case "end", index, outcome if index < len(running := [r for r in requests if r.ended is None]):
                gateway.end(running[index], outcome)
            case "ledger", works:
                vars(gateway.ledger).pop("write", None)
                if not works:
                    vars(gateway.ledger)["write"] = refuse
            case "reset", device if "write" not in vars(gateway.ledger):  # else a crash would hide the reset
                await gateway.meter.read()
                before_uj[device] = counters.raw_uj[device] = 3
                counters.now += 0.1
                await gateway.meter.read()
                await gateway.spend(1.0)
            case "restart", crash:
                if crash:
                    gateway.ledger.close()
                else:
                    await gateway.meter.close()
                counters.move(3.0)
                requests = []
                gateway = Gateway(counters, path)
                await gateway.meter.read()
        for device, uj in counters.raw_uj.items():
            moved_uj[device] += uj - before_uj[device]
    assert all(gateway.attribution.is_settled(r.attempts[0].progress or pytest.fail()) for r in requests)
    await gateway.meter.close()
    gateway.check()
    parts = LedgerReader(path).parts()
    assert {device: sum(parts[device]) for device in moved_uj} == moved_uj
    booked = sum(record["joules"] or 0 for record in LedgerReader(path).workflows())
    assert round(booked * 1e6) == sum(part.workflow_uj for part in parts.values())


def refuse(*_: Any, **__: Any) -> None:
    raise LedgerError("disk full")
