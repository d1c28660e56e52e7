from typing import Any

import pytest

from policies.interface import Objective, Signals, WorkflowSignals
from proxy.control.arrivals import Arrivals
from proxy.control.learner import Learner
from proxy.control.sharing import Sharing
from proxy.energy.receipts import Attempt, Book, Receipt
from proxy.energy.records import Outcome
from proxy.energy.work import Progress
from proxy.identify import Identity, identify


def identity(run: str, **headers: str) -> Identity:
    given = {f"x-workflow-{name}".encode(): value.encode() for name, value in {"id": run, **headers}.items()}
    return identify(given, {}, f"req-{run}")


def serve(book: Book, receipt: Receipt, t: float, seconds: float) -> None:
    progress = Progress(receipt.id, 1, "e1", t + 0.5, first=t + 0.6)
    receipt.attempts.append(Attempt(1, "e1", t, progress, first=t + 0.6, ended=t + seconds))
    receipt.prompt_tokens, receipt.cached_tokens, receipt.output_tokens = 100, 60, 5
    book.close(receipt, 200, Outcome.OK, t + seconds)


def test_the_book_tells_of_requests_and_tickets_know_their_run() -> None:
    book, learner = Book(str, lambda workflow, step: step), Learner(0.0)
    arrivals = Arrivals(learner, Sharing())
    before = book.open(identity("r0", name="coding"), "t", "q0", "/v1/completions", 60, 1.0)
    book.watcher = arrivals
    book.close(before, 200, Outcome.OK, 2.0)  # it came when nobody watched
    asked = {"coding": WorkflowSignals(Objective(run_p95_s=20.0), served_s=2.0, depth=3.0)}
    arrivals.configure(Signals(0.0, asked), frozenset())
    who = identity("r1", name="coding", step="architect")
    receipt = book.open(who, "t", "q1", "/v1/completions", 60, 10.0)
    ticket = arrivals.ticket(receipt, 7, 11.0)
    assert (ticket.workflow, ticket.step, ticket.prefix) == ("coding", "architect", 7)
    assert (ticket.slack_s, ticket.attained_s) == (20 - 1 - 3 * 2, 0.0)
    serve(book, receipt, 10.0, 3.0)
    lately = learner.lately("coding", 14.0)
    assert (lately.prompt_tokens, lately.output_tokens, lately.served_s) == (40, 5, 2.5)
    follows = book.open(who, "t", "q2", "/v1/completions", 60, 14.0)
    assert arrivals.ticket(follows, 0, 14.0).attained_s == 2.5
    other = book.open(identity("r2", name="search"), "t", "q3", "/v1/completions", 60, 14.0)
    assert arrivals.ticket(other, 0, 14.0).slack_s is None


def test_the_last_request_of_a_run_ends_it() -> None:
    book, learner = Book(str, lambda workflow, step: step), Learner(0.0)
    book.watcher = Arrivals(learner, Sharing())
    for n in range(3):
        serve(
            book, book.open(identity("r", name="coding", final=str(n == 2)), "t", f"q{n}", "/", 60, n * 5.0), n * 5.0, 1
        )
    assert learner.runs_since("coding", 0.0) == [11.0]
    assert learner.lately("coding", 12.0).depth == 3.0


def test_the_wait_for_other_calls_of_the_run_is_no_wait_at_the_gate() -> None:
    book, learner = Book(str, lambda workflow, step: step), Learner(0.0)
    book.watcher = arrivals = Arrivals(learner, Sharing())
    first, second = [book.open(identity("r", name="coding"), "t", f"q{n}", "/", 60, 0.0) for n in range(2)]
    serve(book, first, 0.0, 8.0)
    second.held_s = 8.0
    arrivals.released(second)
    serve(book, second, 8.0, 3.0)
    lately = learner.lately("coding", 12.0)
    assert (lately.wait_p95_s, lately.ttft_p95_s) == (0.5, pytest.approx(0.6))


def test_prefixes_are_told_where_groups_are_made_by_them() -> None:
    book, sharing = Book(str, lambda workflow, step: step), Sharing()
    arrivals = Arrivals(Learner(0.0), sharing)
    body: dict[str, Any] = {"prompt": "s" * 1024}
    for grouped in (frozenset[str](), frozenset({"search"})):
        arrivals.configure(Signals(0.0), grouped)
        for n in range(3):
            receipt = book.open(identity(f"{n}", name="search"), "t", f"q{n}", "/", 60, n * 10.0 + 100 * len(grouped))
            number = arrivals.prefix(receipt, body)
        assert bool(number) is bool(grouped)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert sharing.part("search") == 1.0
