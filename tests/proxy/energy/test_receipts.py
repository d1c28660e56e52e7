import pickle
from collections import Counter
from collections.abc import Iterable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.receipts import Attempt, Book, Receipt, Second, tokens_by_label
from proxy.energy.records import Outcome, Phase, Quality
from proxy.energy.share import Settled, Share
from proxy.energy.sources import Device
from proxy.energy.work import Progress
from proxy.identify import identify

GPU, CPU = "h1/gpu:0", "h1/cpu:0"
DEVICES = {
    GPU: Device(GPU, "gpu", "NVIDIA H200", Quality.MEASURED),
    CPU: Device(CPU, "cpu", "a CPU", Quality.ESTIMATED),
}
QUIET_S = 60.0
NUMBERS = count(1)


def workflow_label(name: str) -> str:
    return name.upper()


def step_label(workflow: str, step: str) -> str:
    return step


@pytest.fixture
def book() -> Book:
    return Book(workflow_label, step_label)


def request(
    book: Book, run: str | None = "r1", tenant: str = "acme", now: float = 100.0, final: bool = False
) -> Receipt:
    headers = {b"x-workflow-name": b"search", b"x-workflow-step": b"query"}
    if run is not None:
        headers[b"x-workflow-id"] = run.encode()
    if final:
        headers[b"x-workflow-final"] = b"true"
    request_id = f"q{next(NUMBERS)}"
    return book.open(identify(headers, None, request_id), tenant, request_id, "/v1/completions", QUIET_S, now)


def attempt(receipt: Receipt, now: float = 100.0, engine: str = "e1") -> Attempt:
    n = len(receipt.attempts) + 1
    progress = Progress(receipt.id, n, engine, now)
    receipt.attempts.append(Attempt(n, engine, now, progress, outcome=Outcome.CANCELLED))
    return receipt.attempts[-1]


def end(one: Attempt, outcome: Outcome = Outcome.OK, now: float = 101.0) -> None:
    assert one.progress is not None
    one.ended = one.progress.ended = now
    one.outcome = outcome


def put(book: Book, windows: Iterable[Settled]) -> None:
    for settled in windows:
        book.book(settled)


def window(*shares: tuple[Attempt, int], device: str = GPU, t1: float = 101.0, idle: int = 0, gap: int = 0) -> Settled:
    booked = []
    for one, uj in shares:
        assert one.progress is not None
        booked.append(Share(one.progress, Phase.DECODE, uj, uj // 2, uj * 2))
    return Settled(device, t1 - 1, t1, tuple(booked), idle_uj=idle, gap_uj=gap)


def batch(book: Book, now: float = 102.0, settled: bool = True) -> Second:
    return book.batch(now, DEVICES, lambda progress: settled and progress.ended is not None)


def remembers_nothing(book: Book) -> bool:
    return len(pickle.dumps(book)) == len(pickle.dumps(Book(workflow_label, step_label)))


def states(second: Second) -> dict[str, str]:
    return {f"{run.tenant}/{run.run}": run.state for run in second.batch.runs}


# The life of a run ----------------------------------------------------------------------------------------------------


def test_a_run_is_open_while_something_of_it_runs_then_quiet_then_final(book: Book) -> None:
    receipt = request(book)
    assert states(batch(book, 102.0)) == {"acme/r1": "open"}
    assert not batch(book, 102.0 + 10 * QUIET_S), "in flight is not quiet"
    book.close(receipt, 200, Outcome.OK, 1000.0)
    assert states(batch(book, 1001.0)) == {"acme/r1": "open"}
    assert not batch(book, 1000.0 + QUIET_S - 1)
    assert book.runs("acme", "r1") == [receipt.run]
    last = batch(book, 1000.0 + QUIET_S)
    assert states(last) == {"acme/r1": "final"} and [run.run for run in last.finals] == ["r1"]
    assert last.batch.runs[0].ended == 1000.0, "the quiet time is no part of a run"
    assert book.runs("acme", "r1") == []


def test_a_closed_run_is_final_when_its_last_joule_is_settled(book: Book) -> None:
    receipt = request(book, final=True)
    end(attempt(receipt))
    book.close(receipt, 200, Outcome.OK, 101.0)
    assert states(batch(book, settled=False)) == {"acme/r1": "closed"}
    assert not batch(book, settled=False)
    assert [one.id for one in book.pending("acme", "r1")] == [receipt.id]
    last = batch(book)
    assert states(last) == {"acme/r1": "final"} and list(last.settled) == [receipt.id]
    assert book.pending("acme", "r1") == [] == book.runs("acme", "r1")


def test_a_request_without_a_run_closes_by_itself(book: Book) -> None:
    receipt = request(book, run=None)
    assert states(batch(book)) == {f"acme/{receipt.id}": "open"}
    book.close(receipt, 200, Outcome.OK, 101.0)
    assert states(batch(book)) == {f"acme/{receipt.id}": "final"}


def test_a_client_may_ask_to_close(book: Book) -> None:
    assert not book.ask_to_close("acme", "r1")
    receipt = request(book)
    assert not book.ask_to_close("other", "r1")
    assert book.ask_to_close("acme", "r1")
    assert states(batch(book)) == {"acme/r1": "open"}, "not while something is in flight"
    book.close(receipt, 200, Outcome.OK, 101.0)
    assert states(batch(book)) == {"acme/r1": "final"}
    assert not book.ask_to_close("acme", "r1")


def test_an_id_that_comes_back_opens_the_next_segment(book: Book) -> None:
    first = request(book, final=True)
    end(attempt(first))
    book.close(first, 200, Outcome.OK, 101.0)
    batch(book, settled=False)  # closed, with joules to come
    second = request(book, now=103.0)
    assert second.run is not first.run and second.run.uid != first.run.uid
    both = batch(book, 104.0)
    assert [(run.uid, run.state) for run in both.batch.runs if run.state == "final"] == [(first.run.uid, "final")]
    assert book.runs("acme", "r1") == [second.run]
    book.close(second, 200, Outcome.OK, 105.0)
    assert [run.uid for run in batch(book, 105.0 + QUIET_S).finals] == [second.run.uid]
    assert remembers_nothing(book)


def test_the_same_id_of_two_tenants_is_two_runs(book: Book) -> None:
    ours, theirs = request(book, tenant="acme", final=True), request(book, tenant="lab")
    assert ours.run is not theirs.run
    book.close(ours, 200, Outcome.OK, 101.0)
    assert states(batch(book)) == {"acme/r1": "final", "lab/r1": "open"}
    assert [one.id for one in book.pending("lab", "r1")] == [theirs.id]


def test_requests_of_one_run_share_it(book: Book) -> None:
    one, two = request(book), request(book, now=101.0, final=True)
    assert one.run is two.run and one.run.opened == 100.0
    book.close(two, 200, Outcome.OK, 102.0)
    assert states(batch(book)) == {"acme/r1": "open"}
    book.close(one, 200, Outcome.OK, 103.0)
    assert states(batch(book)) == {"acme/r1": "final"}


# Energy ---------------------------------------------------------------------------------------------------------------


def test_shares_reach_the_ledger_by_attempt_device_and_phase(book: Book) -> None:
    receipt = request(book)
    one = attempt(receipt)
    put(book, [window((one, 100), idle=5), window((one, 11)), window((one, 7), device=CPU, gap=3)])
    energy = {record.device: record for record in batch(book).batch.energy}
    assert (energy[GPU].decode_uj, energy[GPU].low_uj, energy[GPU].high_uj) == (111, 55, 222)
    assert (energy[GPU].quality, energy[GPU].component) == (Quality.ATTRIBUTED, "gpu")
    assert (energy[CPU].decode_uj, energy[CPU].quality) == (7, Quality.ESTIMATED), "a share of an estimate stays one"
    assert receipt.uj == one.uj == receipt.run.uj == 118


def test_what_a_window_cost_each_tenant_is_said_at_once_and_kept_by_the_hour(book: Book) -> None:
    ours, theirs = attempt(request(book)), attempt(request(book, tenant="lab"))
    assert book.book(window((ours, 10), (theirs, 3), (ours, 5), t1=7199.9, idle=9)) == {"acme": 15, "lab": 3}
    assert book.book(window((ours, 1), t1=7200.0)) == {"acme": 1}
    assert book.book(window(t1=7200.1, idle=7)) == {}
    spent = batch(book).batch.spent
    assert {tuple(record) for record in spent} == {("acme", 1, 15), ("lab", 1, 3), ("acme", 2, 1)}
    assert batch(book).batch.spent == []


def test_savings_are_handed_over_once_when_a_request_has_ended(book: Book) -> None:
    receipt = request(book)
    tries = [attempt(receipt), attempt(receipt), attempt(receipt)]
    for one, cached in zip(tries, (None, 40, 2), strict=True):
        end(one)
        assert one.progress is not None
        one.progress.cached_tokens = cached
    assert batch(book).batch.requests[0].saved_uj is None
    book.close(receipt, 200, Outcome.OK, 101.0)

    def saved(progress: Progress) -> tuple[Quality, int] | None:
        quality = Quality.ATTRIBUTED if progress.attempt == 2 else Quality.ESTIMATED
        return (quality, progress.cached_tokens * 10) if progress.cached_tokens else None

    second = book.batch(102.0, DEVICES, lambda _: False, saved)
    assert second.saved == [("SEARCH", Quality.ESTIMATED, 420)]
    assert [(one.saved_uj, one.saved_quality) for one in second.batch.requests] == [(420, "estimated")]
    book.renew()
    again = book.batch(103.0, DEVICES, lambda _: True, lambda _: None)
    assert again.saved == [] and again.batch.requests == second.batch.requests


def test_windows_are_summed_by_second(book: Book) -> None:
    one = attempt(request(book))
    put(book, [window((one, 10), t1=101.2, idle=1), window((one, 20), t1=101.9, idle=2), window(t1=102.0, gap=4)])
    parts = {(w.second, w.workflow_uj, w.idle_uj, w.gap_uj) for w in batch(book).batch.windows}
    assert parts == {(101, 30, 3, 0), (102, 0, 0, 4)}


def test_an_energy_record_never_comes_before_its_attempt(book: Book) -> None:
    """The ledger refuses joules of an attempt that it does not know, and the whole batch with them."""
    receipt = request(book)
    batch(book)
    one = attempt(receipt)  # nobody tells the book
    put(book, [window((one, 10))])
    second = batch(book, settled=False)
    written = [(record.request_id, record.n) for record in second.batch.attempts]
    assert [(record.request_id, record.attempt) for record in second.batch.energy] == written


def test_an_attempt_that_runs_has_no_outcome_yet(book: Book) -> None:
    """After a crash the ledger says of it that nobody knows, not that its client went away."""
    receipt = request(book)
    one = attempt(receipt)
    assert batch(book).batch.attempts[0].outcome is None
    end(one)
    put(book, [window((one, 1))])
    book.close(receipt, 200, Outcome.OK, 101.0)
    assert batch(book).batch.attempts[0].outcome == "ok"


@pytest.mark.parametrize(
    ("outcomes", "request_outcome", "reasons"),
    [
        ([Outcome.OK], Outcome.OK, {}),
        ([Outcome.CANCELLED], Outcome.CANCELLED, {"cancelled": 10}),
        ([Outcome.FAILED, Outcome.OK], Outcome.OK, {"retried": 10}),
        ([Outcome.FAILED, Outcome.FAILED], Outcome.FAILED, {"failed": 21}),
        ([Outcome.FAILED, Outcome.CANCELLED], Outcome.CANCELLED, {"failed": 10, "cancelled": 11}),
        ([Outcome.ERROR], Outcome.ERROR, {"failed": 10}),
        ([Outcome.REFUSED], Outcome.REFUSED, {"stopped": 10}),
    ],
)
@pytest.mark.parametrize("late", [0, 1, 2])
def test_joules_that_bought_nothing_are_counted_once(
    book: Book, outcomes: list[Outcome], request_outcome: Outcome, reasons: dict[str, int], late: int
) -> None:
    """Whether they were booked before the request ended, after, or some of each."""
    receipt = request(book)
    wasted: Counter[str] = Counter()
    tries = [attempt(receipt) for _ in outcomes]

    def take() -> None:
        for label, reason, uj in batch(book, settled=False).wasted:
            assert label == "SEARCH"
            wasted[reason] += uj

    before, after = ((10, 0), (4, 6), (0, 10))[late]
    put(book, [window(*((one, before + n * (before > 0)) for n, one in enumerate(tries)))])
    take()
    for one, outcome in zip(tries, outcomes, strict=True):
        end(one, outcome)
    book.close(receipt, 200, request_outcome, 102.0)
    take()
    put(book, [window(*((one, after + n * (before == 0)) for n, one in enumerate(tries)))])
    take()
    take()
    assert wasted == reasons


def test_tokens_are_summed_by_label(book: Book) -> None:
    receipts = [request(book), request(book), request(book, tenant="lab")]
    for receipt, counts in zip(receipts, [(10, None, 3), (20, 5, 4), (None, None, None)], strict=True):
        receipt.prompt_tokens, receipt.cached_tokens, receipt.output_tokens = counts
    assert tokens_by_label(receipts) == {("acme", "SEARCH", "query"): (30, 5, 7), ("lab", "SEARCH", "query"): (0, 0, 0)}


def test_a_request_that_never_ran_is_settled_at_once(book: Book) -> None:
    receipt = request(book, run=None)
    book.close(receipt, 429, Outcome.REFUSED, 100.5)
    second = batch(book)
    assert list(second.settled) == second.opened == [receipt.id] and second.finals == [receipt.run]


# Any history ----------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from(["r1", "r2", None]), st.sampled_from(["a", "b"]), st.booleans()),
        st.tuples(st.just("try"), st.integers(0, 5)),
        st.tuples(st.just("end"), st.integers(0, 5), st.sampled_from(list(Outcome))),
        st.tuples(st.just("close"), st.integers(0, 5), st.sampled_from(list(Outcome))),
        st.tuples(st.just("book"), st.lists(st.integers(0, 1000), max_size=6), st.integers(0, 9)),
        st.tuples(st.just("batch"), st.booleans(), st.sampled_from([0.1, 1.0, 61.0])),
    ),
    max_size=50,
)


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_what_is_handed_over_agrees_with_what_was_booked(steps: list[tuple]) -> None:
    book, now = Book(workflow_label, step_label), 100.0
    live: list[Receipt] = []
    seen_energy: Counter[str] = Counter()
    booked = handed = wasted = 0
    finals: list[str] = []
    settled_ids: list[str] = []

    def running(receipt: Receipt) -> list[Attempt]:
        return [one for one in receipt.attempts if one.ended is None]

    def take(settled: bool) -> None:
        nonlocal handed, wasted
        second = batch(book, now, settled)
        in_windows = sum(w.workflow_uj for w in second.batch.windows)
        assert (
            in_windows
            == sum(r.prefill_uj + r.decode_uj for r in second.batch.energy)
            == sum(d.uj for d in second.deltas)
        )
        handed += in_windows
        wasted += sum(uj for *_, uj in second.wasted)
        for record in second.batch.energy:
            seen_energy[record.request_id] += record.prefill_uj + record.decode_uj
        finals.extend(run.uid for run in second.finals)
        settled_ids.extend(second.settled)
        for run in second.finals:
            assert run.in_flight == run.unsettled == 0

    for step in [*steps, *[("close", 0, Outcome.OK)] * 50, ("batch", True, 61.0), ("batch", True, 61.0)]:
        open_now = [receipt for receipt in live if receipt.ended is None]
        match step:
            case "open", run, tenant, final:
                live.append(request(book, run, tenant, now, final))
            case "try", index if index < len(open_now) and not running(open_now[index]):
                attempt(open_now[index], now)
            case "end", index, outcome if index < len(open_now):
                for one in running(open_now[index]):
                    end(one, outcome, now)
            case "close", index, outcome if index < len(open_now):
                for one in running(open_now[index]):
                    end(one, outcome, now)
                book.close(open_now[index], 200, outcome, now)
            case "book", ujs, idle:
                tries = [one for receipt in live if receipt.id not in settled_ids for one in receipt.attempts]
                shares = list(zip(tries, ujs, strict=False))
                booked += sum(uj for _, uj in shares)
                put(book, [window(*shares, t1=now, idle=idle)])
            case "batch", settled, seconds:
                now += seconds
                take(settled)
    assert booked == handed == sum(receipt.uj for receipt in live) == sum(one.uj for r in live for one in r.attempts)
    assert wasted == sum(one.uj for receipt in live for one in receipt.attempts if one.waste)
    assert all(seen_energy[receipt.id] == receipt.uj for receipt in live)
    assert sorted(settled_ids) == sorted(receipt.id for receipt in live), "each settled once"
    assert sorted(finals) == sorted({receipt.run.uid for receipt in live}), "each run final once"
    assert remembers_nothing(book)
