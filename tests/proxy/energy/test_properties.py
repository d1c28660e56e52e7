"""What must hold of attribution whatever happens (`docs/attribution.md` names them): a small physics, and any history.

That every microjoule is booked once is shown in `test_attribution`, with histories that keep no order at all.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.attribution import Attribution
from proxy.energy.cpu_part import CpuTime
from proxy.energy.prior import Coefficients
from proxy.energy.receipts import Attempt, Book
from proxy.energy.records import Outcome, Quality
from proxy.energy.share import Settled
from proxy.energy.sources import Device
from proxy.energy.work import Progress
from proxy.identify import identify

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
GPU, OTHER, CPU = "h1/gpu:0", "h1/gpu:1", "h1/cpu:0"
RATE = 40.0  # steps a second, and tokens of everybody who decodes
IDLE_W = 80.0
END_S = 13.0


@dataclass(frozen=True)
class Request:
    """One request as it went, in seconds from the beginning; it decodes a token with every step of the engine."""

    begins: float
    prompt: int
    output: int
    streamed: bool = True
    engine: str = "e1"
    outcome: str = "ok"
    run: str = "r1"

    @property
    def first(self) -> float:
        return self.begins + self.prompt * PRICES.prompt_s + PRICES.step_s

    @property
    def ends(self) -> float:
        return self.first + self.output / RATE

    def made(self, t: np.ndarray[Any, Any] | float) -> Any:
        return np.clip((np.asarray(t) - self.first) * RATE, 0, self.output)

    def joules(self, t: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What its tokens have cost until `t`."""
        made = self.made(t)
        read = np.clip((t - self.begins) / (self.first - self.begins), 0, 1)
        return (
            PRICES.prompt_j * self.prompt * read
            + PRICES.output_j * made
            + PRICES.context_j * made * (self.prompt + made / 2)
        )


def drawn_uj(requests: list[Request], times: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What a machine of these very prices has drawn until each time: at rest, its steps, and the tokens of all."""
    grid = np.linspace(0, END_S, 4801)
    decodes, rests = np.zeros(grid.size, bool), np.ones(grid.size, bool)
    for request in requests:
        decodes |= (grid >= request.first) & (grid < request.ends)
        rests &= (grid < request.begins) | (grid >= request.ends)
    power_w = decodes * RATE * PRICES.step_j + rests * IDLE_W
    drawn_j = np.concatenate(([0.0], np.cumsum(power_w[:-1] * np.diff(grid))))
    return 1e6 * (np.interp(times, grid, drawn_j) + sum(request.joules(times) for request in requests))


@dataclass
class Outcomes:
    """What came out, by request, and the parts of each device's counter."""

    uj: list[int]
    low_uj: list[int]
    high_uj: list[int]
    settled: list[Settled] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    counter_uj: dict[str, int] = field(default_factory=dict)


def attribute(
    requests: list[Request],
    edges: np.ndarray[Any, Any],
    devices: dict[str, tuple[str, ...]] | None = None,
    order: Random | None = None,
    counters: bool = True,
) -> Outcomes:
    """Live through it with readings at `edges`; `order` shuffles what comes at the same time."""
    engines = devices or {"e1": (GPU,)}
    names = sorted({name for of_engine in engines.values() for name in of_engine})
    attribution = Attribution()
    for engine in _shuffled(list(engines), order):
        attribution.add_engine(engine, engines[engine], PRICES)
    raw_uj = drawn_uj(requests, edges).astype(np.int64)
    waiting, running = sorted(enumerate(requests), key=lambda one: one[1].begins), dict[int, Progress]()
    every: dict[int, Progress] = {}
    settled: list[Settled] = []
    for t, uj in zip(edges.tolist(), raw_uj.tolist(), strict=True):
        came = [one for one in waiting if one[1].begins <= t]
        waiting = waiting[len(came) :]
        for index, request in _shuffled(came, order):
            one = Progress(f"q{index}", 1, request.engine, 1000.0 + request.begins, request.prompt, request.streamed)
            attribution.start(one)
            running[index] = every[index] = one
        for index, one in list(running.items()):
            _go_on(one, requests[index], t)
            if one.ended is not None:
                del running[index]
        calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            (attribution.reading, (name, 1000.0 + t, uj)) for name in names
        ]
        if counters:
            calls += [
                (attribution.engine, (name, 1000.0 + t, t * RATE, _tokens(requests, name, t))) for name in engines
            ]
        for call, arguments in _shuffled(calls, order):
            call(*arguments)
        attribution.mark(1000.0 + t)
        settled += attribution.settle(1000.0 + t)
    settled += attribution.settle(1000.0 + END_S + 100)
    sums: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for window in settled:
        for share in window.shares:
            of_request = sums[int(share.progress.request_id[1:])]
            for place, amount in enumerate(share[2:]):
                of_request[place] += amount
    assert not any(attribution.open_uj().values())
    uj, low_uj, high_uj = ([sums[index][place] for index in range(len(requests))] for place in range(3))
    in_order = [every[index] for index in range(len(requests))]
    return Outcomes(uj, low_uj, high_uj, settled, in_order, attribution.counter_uj())


def _go_on(one: Progress, request: Request, t: float) -> None:
    if request.streamed:
        one.frames = int(request.made(t))
        one.first = 1000.0 + request.first if t >= request.first and one.frames else one.first
    if t >= request.ends:
        one.ended = 1000.0 + request.ends
        one.first = 1000.0 + request.first if request.streamed else None
        one.frames = request.output if request.streamed else 0
        if request.outcome == "ok":
            one.prompt_tokens, one.cached_tokens, one.output_tokens = request.prompt, 0, request.output


def _tokens(requests: list[Request], engine: str, t: float) -> float:
    return float(sum(np.floor(request.made(t)) for request in requests if request.engine == engine))


def _shuffled(items: list[Any], order: Random | None) -> list[Any]:
    return items if order is None else order.sample(items, len(items))


REQUESTS = st.lists(
    st.builds(
        Request,
        begins=st.integers(15, 80).map(lambda tenth: tenth / 10 + 0.013),
        prompt=st.integers(1, 4000),
        output=st.integers(1, 120),
    ),
    min_size=1,
    max_size=6,
)
TENTHS = np.arange(0, END_S + 0.05, 0.1)


@settings(max_examples=40, deadline=None, derandomize=True)  # within bounds, where the others are exact
@given(REQUESTS, st.sampled_from([0.04, 0.15, 0.3]), st.integers(0, 99))
def test_however_windows_are_cut_a_request_costs_what_its_band_says(
    requests: list[Request], length_s: float, seed: int
) -> None:
    """Readings ten times a second, and others at random with another mean distance."""
    others = np.concatenate(([0.0], np.cumsum([length_s * Random(seed + n).uniform(0.3, 1.7) for n in range(400)])))
    others = others[others < END_S + 1]
    usual, cut = attribute(requests, TENTHS), attribute(requests, others)
    for n, one in enumerate(requests):
        margin_uj = 0.03 * usual.uj[n] + 0.2 * max(changing_uj(requests, one, edges) for edges in (TENTHS, others))
        assert usual.low_uj[n] - margin_uj <= cut.uj[n] <= usual.high_uj[n] + margin_uj


def changing_uj(requests: list[Request], one: Request, edges: np.ndarray[Any, Any]) -> float:
    """What was drawn, while it ran, in those windows in which anybody came or went: who was there when is not seen."""
    times = [t for other in requests for t in (other.begins, other.ends) if one.begins <= t <= one.ends]
    after = np.unique(np.searchsorted(edges, times))
    drawn = drawn_uj(requests, edges)
    return float((drawn[after] - drawn[after - 1]).sum())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(REQUESTS)
def test_a_machine_of_these_prices_gives_everybody_his_due(requests: list[Request]) -> None:
    """Each his tokens, and his part of the steps that he was in: what the Shapley value says of such a machine."""
    found = attribute(requests, TENTHS)
    grid = np.linspace(0, END_S, 4801)
    decodes = np.array([(grid >= one.first) & (grid < one.ends) for one in requests])
    company = np.maximum(1, decodes.sum(axis=0))
    steps_j = (decodes / company * RATE * PRICES.step_j * END_S / 4800).sum(axis=1)
    for one, due_j, low, uj, high in zip(requests, steps_j, found.low_uj, found.uj, found.high_uj, strict=True):
        whole_uj = 1e6 * (due_j + float(one.joules(np.array([END_S + 99]))[0]))
        assert low - 0.1 * whole_uj - 2e6 <= whole_uj <= high + 0.1 * whole_uj + 2e6, uj


@settings(max_examples=40, deadline=None)
@given(REQUESTS, st.integers(0, 99), st.booleans())
def test_the_order_of_what_comes_at_once_does_not_matter(requests: list[Request], seed: int, streamed: bool) -> None:
    requests = [replace(one, streamed=streamed, engine=("e1", "e2")[n % 2]) for n, one in enumerate(requests)]
    devices = {"e1": (GPU, CPU), "e2": (GPU, OTHER)}
    usual, shuffled = (attribute(requests, TENTHS, devices, order) for order in (None, Random(seed)))
    assert shuffled.counter_uj == usual.counter_uj
    windows = len(usual.settled)
    assert shuffled.uj == pytest.approx(usual.uj, abs=windows), "to the microjoules that are left over in a window"


@settings(max_examples=40, deadline=None)
@given(REQUESTS, st.sampled_from(["ok", "cancelled"]), st.booleans(), st.booleans())
def test_equal_requests_get_equal_shares(requests: list[Request], outcome: str, streamed: bool, counters: bool) -> None:
    twin = replace(requests[0], outcome=outcome, streamed=streamed)
    found = attribute([twin, *requests[1:], twin, twin], TENTHS, counters=counters)
    twins = [found.uj[0], found.uj[-2], found.uj[-1]]
    assert max(twins) - min(twins) <= 2 * len(found.settled)


@settings(max_examples=40, deadline=None)
@given(REQUESTS, st.lists(st.sampled_from(["e1", "e2"]), min_size=6, max_size=6))
def test_two_engines_never_count_a_joule_twice(requests: list[Request], where: list[str]) -> None:
    requests = [replace(one, engine=engine) for one, engine in zip(requests, where, strict=False)]
    found = attribute(requests, TENTHS, {"e1": (GPU, CPU), "e2": (GPU, OTHER)})
    shared: dict[str, int] = defaultdict(int)
    for window in found.settled:
        shared[window.device] += window.delta_uj
    assert shared == found.counter_uj
    of_gpu = sum(s.uj for window in found.settled if window.device == GPU for s in window.shares)
    one_engine = attribute([replace(one, engine="e1") for one in requests], TENTHS)
    assert of_gpu == pytest.approx(sum(one_engine.uj), rel=1e-3, abs=2e6), "as much as if all had been on one"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=30))
def test_engines_on_a_processor_never_have_more_than_it_drew(times: list[tuple[float, float]]) -> None:
    attribution, now, used_s = Attribution(), 1000.0, [0.0, 0.0]
    attempts = []
    for number, name in enumerate(("e1", "e2")):
        attribution.add_engine(name, (CPU,), PRICES)
        attempts.append(Progress(f"q{number}", 1, name, now, 10))
    attribution.reading(CPU, now, 0)
    for one in attempts:
        attribution.start(one)
    settled: list[Settled] = []
    for n, cpu_s in enumerate(times, start=1):
        now += 0.5
        for number, name in enumerate(("e1", "e2")):
            used_s[number] += cpu_s[number]
            attribution.cpu(CpuTime(name, now, used_s[number], now - 1000.0))
        attribution.reading(CPU, now, n * 10_000_000)
        settled += attribution.settle(now)
    settled += attribution.settle(now + 100)
    assert sum(window.delta_uj for window in settled) == attribution.counter_uj()[CPU]
    for window in settled:
        assert sum(share.uj for share in window.shares) + window.foreign_uj + window.idle_uj == window.delta_uj


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.integers(-(10**9), 10**9)), min_size=2, max_size=40),
    st.booleans(),
)
def test_resets_and_jumps_of_time_never_make_energy(steps: list[tuple[float, int]], busy: bool) -> None:
    """Of what a counter shows only its rises are energy, and a fall is none, whatever time is said to be."""
    attribution, t, raw_uj, most_uj = Attribution(), 1000.0, 10**9, 0
    attribution.add_engine("e1", (GPU,), PRICES)
    attribution.reading(GPU, t, raw_uj)
    if busy:
        attribution.start(Progress("q", 1, "e1", t, 100))
    settled: list[Settled] = []
    for seconds, moved_uj in steps:
        t, before_uj = t + seconds, raw_uj
        raw_uj = max(0, raw_uj + moved_uj)
        most_uj += max(0, raw_uj - before_uj)
        attribution.reading(GPU, t, raw_uj)
        settled += attribution.settle(max(t, 1000.0))
    settled += attribution.settle(5000.0)
    booked_uj = sum(window.delta_uj for window in settled)
    assert booked_uj == attribution.counter_uj()[GPU]
    # A reading that came with a time of the past is passed over, and what it showed comes with the next.
    assert booked_uj <= most_uj
    assert all(window.t1 >= window.t0 for window in settled)


@settings(max_examples=30, deadline=None)
@given(REQUESTS, st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_a_run_costs_what_its_requests_do_however_they_are_dealt_out(requests: list[Request], runs: list[int]) -> None:
    found = attribute(requests, TENTHS)
    book, receipts = Book(lambda name: name, lambda _, step: step), {}
    for number, progress in enumerate(found.progress):
        headers = {b"x-workflow-id": b"run-%d" % runs[number], b"x-workflow-name": b"w", b"x-workflow-step": b"s"}
        identity = identify(headers, None, progress.request_id)
        receipt = book.open(identity, "default", progress.request_id, "/v1/x", 60.0, progress.dispatched)
        receipt.attempts.append(Attempt(1, "e1", progress.dispatched, progress))
        receipts[progress.request_id] = receipt
    for window in found.settled:
        book.book(window)
    for receipt in receipts.values():
        receipt.attempts[0].outcome = Outcome.OK
        book.close(receipt, 200, Outcome.OK, 1100.0)
    second = book.batch(1100.0, {GPU: Device(GPU, "gpu", "H200", Quality.MEASURED)}, lambda _: True)
    by_run: dict[str, int] = defaultdict(int)
    for record in second.batch.energy:
        by_run[receipts[record.request_id].run.run] += record.prefill_uj + record.decode_uj
    for number, progress in enumerate(found.progress):
        assert receipts[progress.request_id].uj == found.uj[number], "whatever run it is in"
    for run in {receipt.run.run: receipt.run for receipt in receipts.values()}.values():
        own = [receipt.uj for receipt in receipts.values() if receipt.run is run]
        assert run.uj == by_run[run.run] == sum(own)
    assert sum(by_run.values()) == sum(window.workflow_uj for window in second.batch.windows)
