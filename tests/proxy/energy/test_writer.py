import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy import clock
from proxy.energy.ledger_file import LedgerError, LedgerMismatch
from proxy.energy.receipts import Run, Second
from proxy.energy.records import Batch, Dropped, Quality, RequestRecord, RunRecord, WindowRecord
from proxy.energy.retention import Retention
from proxy.energy.writer import MOST_SECONDS, LedgerWriter


class StubLedger:
    """Takes batches, or does what a test wants instead."""

    def __init__(self) -> None:
        self.written: list[Batch] = []
        self.closed = False
        self.fault: Callable[[Batch], None] = lambda batch: None
        self.forgotten: list[tuple[float, float, int]] = []
        self.slices = 0

    def write(self, batch: Batch) -> None:
        self.fault(batch)
        self.written.append(batch)

    def forget(self, receipts_before: float, windows_before: float, most: int) -> bool:
        self.forgotten.append((receipts_before, windows_before, most))
        self.slices -= 1
        return self.slices >= 0

    def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """A writer over a stub, and what it said."""

    ledger: StubLedger
    writer: LedgerWriter = field(init=False)
    committed: list[Second] = field(default_factory=list)
    dropped: list[tuple[Dropped, list[Run]]] = field(default_factory=list)
    renewed: int = 0

    def __post_init__(self) -> None:
        ledger: Any = self.ledger
        self.writer = LedgerWriter(
            ledger, self.committed.append, lambda *what: self.dropped.append(what), self.renew, 10, Retention(1.0, 1.0)
        )

    def renew(self) -> None:
        self.renewed += 1


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(clock, "now", lambda: 864_000.0)
    world = World(StubLedger())
    yield world
    world.ledger.fault = lambda batch: None
    await world.writer.close()
    assert world.ledger.closed


def second(n: int, requests: int = 1) -> Second:
    """A second with requests that each were a run of their own, all over."""
    ids = [f"q{n}-{one}" for one in range(requests)]
    runs = {id_: Run(f"u{id_}", "t", id_, "search", "search", 1.0, 60.0, 1.0, 2.0, state="final") for id_ in ids}
    rest = (2.0, 200, "ok", 1, 1, 1, "engine")
    batch = Batch(
        [RunRecord(run.uid, "t", run.run, "search", 1.0, 2.0, "final") for run in runs.values()],
        [RequestRecord(id_, f"u{id_}", "s", None, "[]", "{}", "/", 1.0, "m", 0, *rest) for id_ in ids],
        windows=[WindowRecord("d", n, Quality.MEASURED, 0, 1, 0, 0)],
    )
    return Second(batch, [], [], [], {}, ids, [run.uid for run in runs.values()], runs, list(runs.values()))


def refuse(batch: Batch) -> None:
    raise LedgerError("disk full")


async def test_seconds_are_written_in_their_order(world: World) -> None:
    seconds = [second(n) for n in range(3)]
    for one in seconds:
        world.writer.add(one)
    waiting = asyncio.create_task(world.writer.next_commit())
    await asyncio.sleep(0)
    await world.writer.flush()
    assert world.committed == seconds and world.ledger.written == [one.batch for one in seconds]
    assert world.writer.waiting == [] and world.writer.requests == 0
    await asyncio.wait_for(waiting, 5)


async def test_what_cannot_be_written_waits_and_is_written_later(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.ledger.fault = refuse
    for n in range(3):
        world.writer.add(second(n))
        await world.writer.flush()
        await world.writer.make_room()
    assert len(world.writer.waiting) == 3 and world.writer.requests == 3 and world.writer.error == "disk full"
    world.ledger.fault = lambda batch: None
    await world.writer.flush()
    assert [one.batch.windows[0].second for one in world.committed] == [0, 1, 2] and world.writer.error is None
    said = [record.message for record in caplog.records if record.name == "joulegate.ledger"]
    assert len(said) == 2 and "disk full" in said[0] and said[1] == "the ledger can be written again"


async def test_a_fault_of_ours_loses_no_second(world: World) -> None:
    def break_down(batch: Batch) -> None:
        raise RuntimeError("a bug")

    world.ledger.fault = break_down
    world.writer.add(second(1))
    with pytest.raises(RuntimeError):
        await world.writer.flush()
    assert len(world.writer.waiting) == 1
    world.ledger.fault = lambda batch: None
    await world.writer.flush()
    assert len(world.ledger.written) == 1


async def test_too_many_requests_are_let_go_and_counted(world: World) -> None:
    world.ledger.fault = refuse
    for n in range(6):
        world.writer.add(second(n, 2))
        await world.writer.make_room()
        assert world.writer.requests <= 10
    ((dropped, finals),) = world.dropped
    assert sum(one.requests for one in dropped.requests) == len(finals) == 7
    world.ledger.fault = lambda batch: None
    await world.writer.flush()
    assert sum(one.requests for batch in world.ledger.written for one in batch.dropped.requests) == 7
    assert sum(len(batch.requests) for batch in world.ledger.written) == 5
    assert sum(window.idle_uj for batch in world.ledger.written for window in batch.windows) == 6


async def test_a_long_time_is_few_seconds(world: World) -> None:
    for n in range(3 * MOST_SECONDS):
        world.writer.add(second(n, 0))
        await world.writer.make_room()
    assert len(world.writer.waiting) <= MOST_SECONDS and not world.dropped


async def test_a_ledger_that_hangs_holds_one_second_and_no_other(world: World) -> None:
    stuck, goes_on = threading.Event(), threading.Event()

    def hang(batch: Batch) -> None:
        stuck.set()
        goes_on.wait(30)

    world.ledger.fault = hang
    world.writer.add(second(0, 3))
    flushing = asyncio.create_task(world.writer.flush())
    await asyncio.to_thread(stuck.wait, 30)
    for n in range(1, 7):
        world.writer.add(second(n, 2))
        await world.writer.make_room()
    assert [len(one.batch.requests) for one in world.writer.waiting] == [3, 5]
    goes_on.set()
    await flushing
    assert [len(batch.requests) for batch in world.ledger.written] == [3, 5]


async def test_a_second_that_does_not_fit_the_file_is_written_as_sums(world: World) -> None:
    def mismatch(batch: Batch) -> None:
        if batch.requests:
            raise LedgerMismatch("never written")

    world.ledger.fault = mismatch
    world.writer.add(second(1, 2))
    world.writer.add(second(2, 0))
    await world.writer.flush()
    assert [len(one.batch.dropped.requests) for one in world.committed] == [1, 0] and world.writer.error is None
    assert world.committed[0].batch.dropped.requests[0].requests == 2
    assert world.dropped == [(world.committed[0].batch.dropped, [])] and world.renewed == 1


async def test_old_detail_is_forgotten_in_slices_once_a_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ledger.slices = 2
    await world.writer.flush()
    assert [one[:2] for one in world.ledger.forgotten] == [(777_600.0, 777_600.0)] * 3
    await world.writer.flush()
    assert len(world.ledger.forgotten) == 3
    monkeypatch.setattr(clock, "now", lambda: 864_061.0)
    await world.writer.flush()
    assert len(world.ledger.forgotten) == 4


async def test_the_end_tries_again_and_says_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("proxy.energy.writer.LAST_TRY_S", 0.0)
    world = World(StubLedger())
    world.ledger.fault = refuse
    world.writer.add(second(1, 4))
    await world.writer.close()
    assert "4 requests could not be written and are lost" in caplog.text and world.ledger.closed
    monkeypatch.setattr("proxy.energy.writer.LAST_TRY_S", 30.0)
    world = World(StubLedger())

    def once(batch: Batch) -> None:
        world.ledger.fault = lambda batch: None
        raise LedgerError("locked")

    world.ledger.fault = once
    world.writer.add(second(1, 4))
    await world.writer.close()
    assert len(world.ledger.written) == 1
