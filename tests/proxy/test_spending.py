import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import clock, spending
from proxy.budget import Period, Standing, Terms
from proxy.draw import Draw, asked_uj
from proxy.energy.attribution import Attribution
from proxy.energy.ledger_file import LedgerError
from proxy.energy.prior import Coefficients
from proxy.energy.receipts import Attempt, Book, Receipt
from proxy.energy.records import Outcome
from proxy.energy.serving import Serving
from proxy.energy.sources import Device, Quality
from proxy.energy.spent import Spent
from proxy.energy.work import Progress
from proxy.identify import identify
from proxy.refusal import Refusal
from proxy.spending import Spending
from proxy.telemetry.metrics import Metrics

GPU = "h1/gpu:0"
DEVICES = {GPU: Device(GPU, "gpu", "NVIDIA H200", Quality.MEASURED)}
PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
HOUR = 494_000 * 3600.0  # an hour of 2026, and a day, begins
J = 1_000_000


@dataclass
class Scene:
    """A GPU at 100 W and what is booked of it, second by second, without a gateway around it."""

    now: float = HOUR + 600
    before: dict[str, dict[int, int]] = field(default_factory=dict)
    ledger: dict[tuple[str, str], int] = field(default_factory=dict)  # what earlier segments of runs spent
    raw_uj: int = 0
    ids: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.metrics = Metrics("test")
        self.book = Book(lambda name: name, lambda _, name: name)
        self.attribution = Attribution()
        self.attribution.add_engine("e1", [GPU], PRICES)
        self.spent = Spent(self.before)
        self.spending = Spending(self.book, self.attribution, self.spent, self.run_uj, self.metrics)
        self.attribution.reading(GPU, self.now, self.raw_uj)

    def run_uj(self, tenant: str, run: str, but: Sequence[str]) -> int:
        return self.ledger.get((tenant, run), 0)

    def pass_s(self, seconds: float, power_w: float = 100.0) -> None:
        """Time passes; counters are read all along, and the books closed once a second."""
        for tenth in range(round(seconds * 10)):
            self.now += 0.1
            self.raw_uj += round(power_w * 1e5)
            self.attribution.reading(GPU, self.now, self.raw_uj)
            if tenth % 10 == 9:
                self.commit()

    def commit(self) -> None:
        for window in self.attribution.settle(self.now):
            for tenant, uj in self.book.book(window).items():
                self.spent.add(tenant, window.t1, uj)
        self.book.batch(self.now, DEVICES, self.attribution.is_settled)

    def open(self, run: str = "r1", tenant: str = "acme", draw: Draw | None = None) -> Receipt:
        request_id = f"q{next(self.ids)}"
        headers = {b"x-workflow-id": run.encode(), b"x-workflow-name": b"search"}
        receipt = self.book.open(identify(headers, None, request_id), tenant, request_id, "/v1/x", 60.0, self.now)
        progress = Progress(request_id, 1, "e1", self.now, 10)
        receipt.attempts.append(Attempt(1, "e1", self.now, progress))
        self.attribution.start(progress)
        if draw is not None:
            draw.joins(receipt.run)
        return receipt

    def close(self, receipt: Receipt, draw: Draw | None = None) -> None:
        attempt = receipt.attempts[0]
        assert attempt.progress is not None
        attempt.ended = attempt.progress.ended = self.now
        attempt.progress.prompt_tokens, attempt.progress.output_tokens = 10, 5
        attempt.outcome = Outcome.OK
        self.book.close(receipt, 200, Outcome.OK, self.now)
        if draw is not None:
            self.spending.leave(draw)

    def enter(
        self, key: Terms | None = None, run: str = "r1", asked_uj: int | None = None, tenant: str = "acme"
    ) -> Draw | None:
        return asyncio.run(self.spending.enter(tenant, key, run, "search", False, asked_uj))

    def drawn(self, key: Terms | None = None, run: str = "r1", asked_uj: int | None = None) -> Draw:
        draw = self.enter(key, run, asked_uj)
        assert draw is not None
        return draw

    def refused(self, draw: Draw) -> Refusal | None:
        try:
            draw.check(self.now)
        except Refusal as refusal:
            return refusal
        return None

    def did(self, action: str, period: str) -> int:
        return self.metrics.budgets.totals.get(("acme", period, action), 0)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene()
    monkeypatch.setattr(clock, "now", lambda: scene.now)
    return scene


def hourly(uj: int, **more: object) -> Terms:
    return Terms({Period.HOUR: uj}, **more)  # pyright: ignore[reportArgumentType]


# Tenants --------------------------------------------------------------------------------------------------------------


def test_who_has_no_budget_has_no_account(scene: Scene) -> None:
    scene.spending.configure({}, [("other", hourly(1))])
    assert scene.enter() is None


def test_predicted_joules_count_at_once_and_settled_ones_instead_of_them_later(scene: Scene) -> None:
    terms = hourly(1000 * J)
    scene.spending.configure({}, [("acme", terms)])
    draw = scene.drawn(terms)
    receipt = scene.open(draw=draw)
    scene.pass_s(3.0)
    scene.spending.look(scene.now)
    assert receipt.uj == 0, "nothing is settled while it runs"
    (standing,) = draw.standings(scene.now)
    assert standing.spent_uj == pytest.approx(300 * J, rel=0.01)
    scene.close(receipt, draw)
    scene.pass_s(7.0)
    scene.spending.look(scene.now)
    (standing,) = scene.drawn(terms).standings(scene.now)
    assert receipt.uj == standing.spent_uj == pytest.approx(300 * J, rel=0.01)


def test_a_spent_budget_is_refused_until_its_hour_is_over(scene: Scene) -> None:
    terms = hourly(150 * J)
    scene.spending.configure({}, [("acme", terms)])
    receipt, draw = scene.open(), scene.drawn(terms)
    assert scene.refused(draw) is None
    scene.pass_s(1.0)
    assert scene.refused(draw) is None
    scene.pass_s(1.0)
    refusal = scene.refused(draw)
    assert refusal is not None and (refusal.status, refusal.code) == (429, "budget_spent")
    assert refusal.retry_after_s == pytest.approx(3600 - 602, abs=1) and not refusal.retry, (
        "an OpenAI client would try again in seconds"
    )
    assert "tenant acme has spent its budget of 150 J for this hour" in refusal.message
    scene.close(receipt)
    scene.pass_s(8.0)
    scene.now = HOUR + 3600
    assert scene.refused(draw) is None, "and nobody has to look first"
    assert scene.did("refused", "hour") == 1


def test_the_last_minute_of_an_hour_may_be_waited_for(scene: Scene) -> None:
    scene.now = HOUR + 3590
    scene.spent.add("acme", scene.now, 10)
    terms = hourly(10)
    scene.spending.configure({}, [("acme", terms)])
    refusal = scene.refused(scene.drawn(terms))
    assert refusal is not None and refusal.text_headers() == {"retry-after": "10"}


def test_what_was_spent_in_an_earlier_life_counts_in_its_period(scene: Scene) -> None:
    hour = int(HOUR // 3600)
    scene.before.update({"acme": {hour: 5, hour - 1: 70, hour - 24 * 40: 900}, "other": {hour: 1000}})
    scene.__post_init__()
    terms = Terms(dict.fromkeys((Period.HOUR, Period.DAY, Period.MONTH), 10_000))
    scene.spending.configure({}, [("acme", terms)])
    spent = {standing.period: standing.spent_uj for standing in scene.drawn(terms).standings(scene.now)}
    began = int(Period.DAY.began(scene.now) // 3600)
    assert spent == {Period.HOUR: 5, Period.DAY: 75 if hour - 1 >= began else 5, Period.MONTH: 75}


def test_a_key_counts_what_all_of_its_tenants_keys_spend(scene: Scene) -> None:
    strict, loose = hourly(50 * J), hourly(1000 * J)
    scene.spending.configure({}, [("acme", strict), ("acme", loose)])
    scene.open()
    scene.open(tenant="other")
    scene.pass_s(2.0)
    assert scene.refused(scene.drawn(strict)) is not None
    (standing,) = scene.drawn(loose).standings(scene.now)
    assert standing.spent_uj == pytest.approx(100 * J, rel=0.02), "the other half is another tenant's"


def test_it_is_said_once_an_hour_that_a_budget_is_low_and_that_it_is_spent(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    terms = hourly(100 * J, warn=0.5)
    scene.spending.configure({}, [("acme", terms)])
    with caplog.at_level(logging.WARNING, "joulegate.budget"):
        for _ in range(2):
            receipt = scene.open()
            for _ in range(6):
                scene.pass_s(0.3)
                scene.spending.look(scene.now)
            scene.close(receipt)
            scene.pass_s(10.0, power_w=0)
            scene.spending.look(scene.now)
            assert [record.message.count("refused") for record in caplog.records] == [0, 1]
            assert all(record.message.startswith("tenant acme has spent ") for record in caplog.records)
            caplog.clear()
            scene.now += 3600
            scene.attribution.reading(GPU, scene.now, scene.raw_uj)
            scene.spending.look(scene.now)
    assert (scene.did("low", "hour"), scene.did("spent", "hour")) == (2, 2)


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_run_that_has_spent_its_budget_never_runs_again(scene: Scene) -> None:
    scene.spending.configure({"search": Terms({Period.RUN: 150 * J})}, [])
    draw = scene.drawn()
    receipt = scene.open(draw=draw)
    scene.pass_s(2.0)
    scene.spending.look(scene.now)
    refusal = scene.refused(draw)
    assert refusal is not None and (refusal.status, refusal.code) == (429, "run_budget_spent")
    assert refusal.text_headers() == {"x-should-retry": "false"}
    assert scene.refused(scene.drawn(run="r2")) is None
    scene.close(receipt, draw)
    scene.pass_s(10.0, power_w=0)
    scene.now += 86_400 * 40
    assert scene.refused(scene.drawn()) is not None


def test_a_new_segment_goes_on_with_the_same_budget(scene: Scene) -> None:
    scene.spending.configure({"search": Terms({Period.RUN: 250 * J})}, [])
    for _ in range(2):
        draw = scene.drawn()
        assert scene.refused(draw) is None
        receipt = scene.open(draw=draw)
        scene.pass_s(1.5)
        scene.close(receipt, draw)
        scene.pass_s(90.0, power_w=0)  # quiet for so long that the segment is over
        scene.spending.look(scene.now)
        assert scene.book.runs("acme", "r1") == []
    assert scene.refused(scene.drawn()) is not None


def test_what_the_ledger_has_of_a_run_counts(scene: Scene) -> None:
    scene.spending.configure({"search": Terms({Period.RUN: 100})}, [])
    scene.ledger = {("acme", "r1"): 99, ("acme", "r2"): 100, ("other", "r1"): 1000}
    assert scene.refused(scene.drawn()) is None
    assert scene.refused(scene.drawn(run="r2")) is not None


def test_a_ledger_that_cannot_be_read_fails_no_request(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise LedgerError("the disk is gone")

    monkeypatch.setattr(scene.spending, "_run_uj", broken)
    scene.spending.configure({"search": Terms({Period.RUN: 100})}, [])
    assert scene.refused(scene.drawn()) is None


def test_a_client_may_only_lower_its_runs_budget(scene: Scene) -> None:
    terms = Terms({Period.RUN: 100}, warn=0.3, cap_tokens=7, stop=True)
    scene.spending.configure({"search": terms}, [])
    for asked, holds in [(200, 100), (50, 50), (None, 50), (70, 50), (20, 20)]:
        draw = scene.drawn(asked_uj=asked)
        (standing,) = draw.standings(scene.now)
        assert standing.limit_uj == holds
        assert (standing.terms.warn, standing.terms.cap_tokens, standing.terms.stop) == (0.3, 7, True)
    (standing,) = scene.drawn(run="r2").standings(scene.now)
    assert standing.limit_uj == 100


def test_a_client_may_give_its_run_a_budget_of_its_own_at_any_time(scene: Scene) -> None:
    scene.spending.configure({}, [])
    receipt = scene.open()
    assert scene.enter() is None
    scene.pass_s(3.0)
    draw = scene.drawn(asked_uj=200 * J)
    scene.spending.look(scene.now)
    assert scene.refused(draw) is not None, "what it spent before it was asked counts"
    assert scene.refused(scene.drawn()) is not None, "and the budget holds for all that come"
    assert scene.enter(tenant="other") is None
    scene.close(receipt)


def test_a_budget_that_is_taken_away_lets_go_of_what_drew_on_it(scene: Scene) -> None:
    scene.spending.configure({"search": Terms({Period.RUN: 100 * J})}, [])
    draw = scene.drawn()
    assert draw.check(scene.now) == 100 * J
    scene.spending.configure({}, [])
    assert scene.enter() is None
    assert draw.check(scene.now) is None and draw.most_tokens(None, 1, 0, 1, None, scene.now) is None
    scene.spending.leave(draw)


def test_the_tightest_of_a_keys_and_a_runs_budgets_holds(scene: Scene) -> None:
    key = hourly(1000 * J)
    scene.spending.configure({"search": Terms({Period.RUN: 50 * J})}, [("acme", key)])
    draw = scene.drawn(key)
    scene.open(draw=draw)
    scene.pass_s(1.0)
    scene.spending.look(scene.now)
    refusal = scene.refused(draw)
    assert refusal is not None and refusal.code == "run_budget_spent"
    assert scene.refused(scene.drawn(key, run="r2")) is None


def test_a_request_that_is_its_own_run_leaves_nothing_behind(scene: Scene) -> None:
    scene.spending.configure({"ungrouped": Terms({Period.RUN: 100})}, [])
    draw = asyncio.run(scene.spending.enter("acme", None, "q1", "ungrouped", True, None))
    assert draw is not None
    scene.spending.leave(draw)
    assert not scene.spending._runs


def test_no_more_accounts_than_fit_are_kept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending, "MOST_RUNS", 3)
    scene.spending.configure({"search": Terms({Period.RUN: 100})}, [])
    busy = scene.drawn(run="busy")
    for n in range(10):
        scene.spending.leave(scene.drawn(run=f"r{n}"))
    assert len(scene.spending._runs) == 3 and ("acme", "busy") in scene.spending._runs
    scene.spending.leave(busy)


# Those in flight ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [True, False])
def test_requests_in_flight_are_stopped_only_where_the_budget_says_so(scene: Scene, stop: bool) -> None:
    terms = hourly(150 * J, stop=stop)
    scene.spending.configure({"search": Terms({Period.RUN: 1000 * J}, stop=True)}, [("acme", terms)])
    stopped: list[Standing] = []
    draw = scene.drawn(terms)
    draw.stop = stopped.append
    scene.open(draw=draw)
    spent_uj: list[int] = []
    for _ in range(8):
        scene.pass_s(0.5)
        scene.spending.look(scene.now)
        if stopped and not spent_uj:
            spent_uj.append(stopped[0].spent_uj)
    assert [(one.period, one.terms) for one in stopped] == ([(Period.HOUR, terms)] if stop else [])
    assert scene.did("stopped", "hour") == len(stopped)
    if stop:
        assert 150 * J <= spent_uj[0] <= 210 * J, "within one look of half a second at 100 W"


def test_a_low_budget_is_shared_by_those_who_draw_on_it(scene: Scene) -> None:
    """By hand: 100 mJ left among three, 3 mJ for a prompt of no tokens, at 10.1 mJ a token with 200 in flight."""
    prices = replace(PRICES, context_j=0.0, output_j=0.0001)
    serving = Serving("e1", [GPU], prices)
    key = hourly(1 * J)
    scene.spending.configure({"search": Terms({Period.RUN: 1000 * J})}, [("acme", key)])
    scene.spent.add("acme", scene.now, 900_000)
    ours = [scene.drawn(key, run) for run in ("r1", "r1", "r2")]

    def most(draw: Draw, asked: int | None, choices: int = 1, of: Serving | None = serving) -> int | None:
        return draw.most_tokens(of, 200, 0, choices, asked, scene.now)

    assert [most(draw, 100) for draw in ours] == [3, 3, 3]
    scene.spending.leave(ours.pop())
    assert [most(draw, 100) for draw in ours] == [4, 4] and most(ours[0], 100, choices=2) == 2
    assert most(ours[0], None) == 4 and most(ours[0], 100, of=None) is None, "nobody knows what it costs there"


def test_an_answer_without_a_limit_is_given_none_that_a_model_could_not_have(scene: Scene) -> None:
    serving = Serving("e1", [GPU], replace(PRICES, context_j=0.0))
    for left_j, cap, asked, most in [
        (2025.0, None, None, 1000),
        (20_250.0, None, None, None),
        (20_250.0, None, 50_000, 10_000),
        (20_250.0, 5000, None, 5000),
        (20_250.0, 50, 10, 50),
    ]:
        terms = Terms({Period.RUN: 1000_000 * J}, warn=0.5, cap_tokens=cap)
        scene.spending.configure({"search": terms}, [])
        run = f"r{next(scene.ids)}"
        scene.ledger["acme", run] = 1000_000 * J - round(left_j * J)
        assert scene.drawn(run=run).most_tokens(serving, 1, 0, 1, asked, scene.now) == most


@pytest.mark.parametrize("raw", [b"", b"0", b"-1", b"nan", b"inf", b"1e13", b"1 J", b"\xff", b"0.0000001"])
def test_a_budget_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(Refusal, match="a number of joules") as refused:
        asked_uj({b"x-workflow-budget": raw})
    assert (refused.value.status, refused.value.code) == (400, "invalid_workflow_header")


def test_a_budget_is_read_in_joules() -> None:
    assert asked_uj({b"x-workflow-budget": b" 12.5"}) == 12_500_000 and asked_uj({}) is None


# Any history ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    limit_j=st.integers(1, 400),
    steps=st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 300)), min_size=1, max_size=8),
)
def test_never_below_its_budget_and_always_above(limit_j: int, steps: list[tuple[int, bool, int]]) -> None:
    """Below and above by what the scene knows of the truth: the GPU's joules while a request was in flight.

    Prediction and look lag behind by half a second and a window, and hours end: a request is let in after each.
    """
    scene = Scene()
    terms = hourly(limit_j * J)
    scene.spending.configure({}, [("acme", terms)])
    true_uj = {int(scene.now // 3600): 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", lambda: scene.now)
        for tenths, is_other, power_w in steps:
            receipt = scene.open(tenant="other" if is_other else "acme")
            for _ in range(tenths):
                scene.pass_s(0.1, power_w)
                if not is_other:
                    true_uj[int(scene.now // 3600)] += round(power_w * 1e5)
            scene.close(receipt)
            scene.commit()
            scene.spending.look(scene.now)
            truth_uj = true_uj[int(scene.now // 3600)]
            refused = scene.refused(scene.drawn(terms)) is not None
            slack_uj = 0.02 * truth_uj + round(power_w * 1e5)
            if truth_uj + slack_uj < limit_j * J:
                assert not refused
            if truth_uj - slack_uj >= limit_j * J:
                assert refused
