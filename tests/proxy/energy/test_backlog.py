from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.backlog import squeeze, without_receipts
from proxy.energy.ledger import Ledger
from proxy.energy.receipts import Attempt, Book, Receipt, Second
from proxy.energy.records import DeviceRecord, Outcome, Phase, Quality
from proxy.energy.share import Settled, Share
from proxy.energy.sources import Device
from proxy.energy.work import Progress
from proxy.identify import identify

GPU = "h1/gpu:0"
DEVICES = {GPU: Device(GPU, "gpu", "NVIDIA H200", Quality.MEASURED)}
Rows = Callable[[Path, str], list[tuple]]


class Life:
    """A book, and what happens to it; every second is handed over with what the device's counter moved."""

    def __init__(self) -> None:
        self.book = Book(str.upper, lambda _, step: step)
        self.now = 100.0
        self.moved_uj = 0
        self.numbers = count()
        self.receipts: list[Receipt] = []

    def open(self, run: str | None = None) -> Receipt:
        request_id = f"q{next(self.numbers):04d}"
        headers = {b"x-workflow-name": b"search", b"x-workflow-id": (run or request_id).encode()}
        if run is None:
            headers[b"x-workflow-final"] = b"true"
        identity = identify(headers, None, request_id)
        receipt = self.book.open(identity, "t", request_id, "/v1", 60.0, self.now)
        progress = Progress(request_id, 1, "e", self.now)
        receipt.attempts.append(Attempt(1, "e", self.now, progress))
        receipt.output_tokens = 7
        self.receipts.append(receipt)
        return receipt

    def spend(self, uj: int) -> None:
        """Joules for everything that is not settled, ended or not."""
        held = [self.book._receipts[one.id] for one in self.receipts if one.id in self.book._receipts]
        shares = [Share(one.attempts[0].progress, Phase.DECODE, uj, uj // 2, 2 * uj) for one in held]  # type: ignore
        self.book.book(Settled(GPU, self.now, self.now + 1, tuple(shares), idle_uj=3))
        self.moved_uj += uj * len(held) + 3

    def end(self, receipt: Receipt, outcome: Outcome = Outcome.OK) -> None:
        one = receipt.attempts[0]
        assert one.progress is not None
        one.ended = one.progress.ended = self.now
        one.outcome = outcome
        self.book.close(receipt, 200, outcome, self.now)

    def second(self, settled: bool = True) -> Second:
        self.now += 1.0
        ended, saved = lambda progress: settled and progress.ended is not None, lambda _: (Quality.ATTRIBUTED, 3)
        second = self.book.batch(self.now, DEVICES, ended, saved)
        second.batch.devices.append(DeviceRecord(GPU, "gpu", "H200", Quality.MEASURED, self.moved_uj, 0, self.now))
        self.moved_uj = 0
        return second


def held(second: Second) -> list[str]:
    return [record.id for record in second.batch.requests]


def test_whole_receipts_go_the_oldest_first_and_their_joules_stay() -> None:
    life = Life()
    early, running = life.open(), life.open()
    known = life.second()  # the ledger has this one
    seconds: list[Second] = []
    for _ in range(5):
        receipt = life.open()
        life.spend(10)
        life.end(receipt)
        seconds.append(life.second())
    life.end(early)
    life.spend(10)
    seconds.append(life.second())
    squeezed = squeeze(seconds, 5)
    kept = held(squeezed.second)
    assert early.id in held(known) and early.id in kept, "the ledger waits for its end"
    assert kept == ["q0006", early.id], "two of six"
    assert [(one.requests, one.output_tokens) for one in squeezed.dropped.requests] == [(4, 28)]
    assert [(one.uj, one.low_uj, one.high_uj) for one in squeezed.dropped.energy] == [(40, 20, 80)]
    assert squeezed.dropped == squeezed.second.batch.dropped
    assert [(one.saved_quality, one.saved_uj) for one in squeezed.dropped.requests] == [("attributed", 12)]
    assert squeezed.second.saved == [("SEARCH", Quality.ATTRIBUTED, 18)], "all are counted"
    spent = [record for one in seconds for record in one.batch.spent]
    assert [tuple(one) for one in squeezed.second.batch.spent] == [("t", 0, sum(one.uj for one in spent))]
    assert [(one.runs, one.duration_us) for one in squeezed.dropped.runs] == [(4, 0)] and len(squeezed.finals) == 4
    assert running.id not in squeezed.second.settled


def test_nothing_goes_where_there_is_room() -> None:
    life = Life()
    for _ in range(3):
        life.end(life.open())
    seconds = [life.second()]
    life.spend(1)
    seconds.append(life.second())
    squeezed = squeeze(seconds, 3)
    assert not squeezed.dropped and len(held(squeezed.second)) == 3


def test_windows_that_wait_are_told_by_the_minute() -> None:
    life = Life()
    seconds: list[Second] = []
    for _ in range(130):
        life.spend(0)
        seconds.append(life.second())
    windows = squeeze(seconds, 10).second.batch.windows
    assert [(window.second, window.idle_uj) for window in windows] == [(60, 57), (120, 180), (180, 153)]


def test_without_its_receipts_a_second_keeps_its_sums() -> None:
    life = Life()
    done, running = life.open(), life.open("r")
    life.spend(10)
    life.end(done)
    rest = without_receipts(life.second(), 86400.0)
    assert (rest.batch.requests, rest.batch.attempts, rest.batch.energy) == ([], [], [])
    assert [(one.workflow, one.outcome, one.requests) for one in rest.batch.dropped.requests] == [("search", "ok", 1)]
    assert [(one.day, one.workflow, one.uj) for one in rest.batch.dropped.energy] == [("1970-01-02", "SEARCH", 20)]
    assert sum(window.workflow_uj for window in rest.batch.windows) == 20
    life.book.renew()
    again = life.second().batch
    assert [one.id for one in again.requests] == [running.id] and len(again.attempts) == len(again.runs) == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from([None, None, "r1", "r2"])),
        st.tuples(st.just("end"), st.integers(0, 4), st.sampled_from([Outcome.OK, Outcome.FAILED])),
        st.tuples(st.just("spend"), st.integers(0, 100)),
        st.tuples(st.just("second"), st.booleans()),
        st.tuples(st.just("squeeze"), st.integers(0, 5)),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, down=st.integers(0, 5))
def test_totals_are_the_same_as_if_all_had_been_written(
    steps: list[tuple], down: int, rows: Rows, totals_equal_detail: Callable[[Path], bool]
) -> None:
    """One ledger takes every second; the other takes some, then none, and at last what is left of the others."""
    life = Life()
    with TemporaryDirectory() as folder:
        whole, squeezed = Ledger(Path(folder) / "whole.sqlite"), Ledger(Path(folder) / "squeezed.sqlite")
        waiting: list[Second] = []
        dropped: Counter[str] = Counter()
        made = 0
        for step in [*steps, *[("end", 0, Outcome.OK)] * 60, ("second", True), ("squeeze", 0)]:
            running = [receipt for receipt in life.receipts if receipt.ended is None]
            match step:
                case "open", run:
                    life.open(run)
                case "end", index, outcome if index < len(running):
                    life.end(running[index], outcome)
                case "spend", uj:
                    life.spend(uj)
                case "second", settled:
                    second = life.second(settled)
                    whole.write(second.batch)
                    made += 1
                    if made <= down:
                        squeezed.write(second.batch)
                    else:
                        waiting.append(second)
                case "squeeze", most if waiting:
                    let_go = squeeze(waiting, most)
                    dropped["requests"] += sum(one.requests for one in let_go.dropped.requests)
                    dropped["uj"] += sum(one.uj for one in let_go.dropped.energy)
                    waiting = [let_go.second]
        for second in waiting:
            squeezed.write(second.batch)
        paths = (whole.path, squeezed.path)
        for table in ("total_runs", "total_requests", "total_energy", "total_windows", "devices", "spent"):
            sums = [[row for row in rows(path, f"SELECT * FROM {table}") if any(row[-2:])] for path in paths]
            assert sorted(sums[0]) == sorted(sums[1]), table
        assert totals_equal_detail(whole.path) and totals_equal_detail(squeezed.path)
        assert rows(squeezed.path, "SELECT ifnull(sum(requests), 0), ifnull(sum(uj), 0) FROM dropped") == [
            (dropped["requests"], dropped["uj"])
        ]
        kept = rows(squeezed.path, "SELECT count(*) FROM requests")[0][0]
        assert kept + dropped["requests"] == rows(whole.path, "SELECT count(*) FROM requests")[0][0]
        whole.close()
        squeezed.close()
