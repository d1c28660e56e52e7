"""What comes of holding requests until they can run together: how many there are, what it saves, who may join.

What a step costs is shared by all that are in flight, so what counts is how much of the time the engine is busy at all:

    f0 = 1 - exp(-Σ λ·S)                      released at once: Poisson arrivals, λ a second, each served for S seconds
    f1 = (S + X) / (X + x + 1/Λ + W)          held for W seconds, joining what is in flight where that takes x more
    saved watts = (f0 - f1) · (step_j/step_s - rest_w)

Λ is the rate of those that have patience. A batch of n = 1 + Λ·W leaves every W + 1/Λ seconds and is served for S; then
others join it as long as each comes within x of the one before, which they do with probability p = 1 - exp(-Λ·x):
p/(1-p) of them, X seconds in all. The busy time of those without patience is not ours to save: both parts are of what
they leave. Where batches would run into one another (f1 near 1) nothing is saved and nothing is held: so it ends by
itself near saturation.

One that joins x seconds after the last puts off the next batch by 1/Λ, and keeps the engine busy for x: it pays where
x < S/n, its fair share of a batch of its own. `EAGER` of S is put on top: in simulations over 0.5-3 s of patience it
cost less than a fiftieth of the saving, if anything, and took up to a tenth off the latency. Where runs are chains of
calls, a batch comes back as a batch: the calls that wait for it arrive together, the engine rests for W in every S + W
seconds, and f1 is taken to be halfway to that; what is let in late comes back late, and where all come back at times of
their own it never rests. So the part of S stays within `CHAIN_JOIN`: less of it the likelier others are in flight,
1 - exp(-Λ·S). Where they seldom are, it rests anyway, and one that comes while another has more than W to go cannot
wait for its end and go with what follows: waiting would only lose what they share, so that at least 1 - W/S of S is
let in.

The prompts of a batch are computed one after the other, each in a time c: that delays the first token of the last,
who was held for least, by n·c; interrupts the answers of the first; and each makes every step longer. W is at most what
leaves the objectives, and the cache, room for that: at the peak of the rate, for n requests, of chains n + Λ·S since
they come back together, and the root of it more, as chance may have it. Those that come back together are held for all
of W, and the last of them waits for the prompts of Λ·S besides.

Whoever runs beside a batch gets its tokens later, by some percent for each companion. Where a workflow that is not held
is at work too, those that are held stay within what would often be in flight of them anyway: a + 2·√a, with a = λ·S.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, exp, inf, sqrt

from policies.interface import Prices, WorkflowSignals

EAGER = 0.15
CHAIN = 1.5  # calls in a row
CHAIN_HOLD = 10.0  # times S: by then chains rest for nine tenths of the time, and would pile up for nothing more
MOST_JOIN = 0.8  # of the time that a request is expected to take
CHAIN_JOIN = 0.5, 0.34  # in chains, where others are seldom in flight, and where they always are
TTFT_ROOM, ITL_ROOM = 0.95, 0.85  # of an objective may be used up: the means that are known are exceeded now and then
SLOWER = 0.5  # of what a companion adds to a step's joules, it adds to its seconds; measured: 0.4 to 0.8
KV_FULL = 0.8
MOST_SHARED = 0.99


@dataclass(frozen=True, slots=True)
class Stream:
    """A workflow's requests at one engine: how many a second, how long in flight, how many of a run in a row."""

    name: str
    rate: float
    served_s: float
    depth: float
    hold_s: float  # how long they may be held
    prompt_s: float  # of computing a prompt
    slower_s: float  # by which each makes a step of all longer
    tokens_w: float  # watts that its tokens cost, in company or not


@dataclass(frozen=True, slots=True)
class Gathering:
    """What comes of holding: requests in a batch, and the engine's watts with it and without."""

    together: float
    join: float  # the part of its own time by which one may keep the engine busy for longer
    saved_w: float
    default_w: float

    @property
    def part(self) -> float:
        return self.saved_w / self.default_w if self.default_w > 0 else 0.0


def stream_of(name: str, one: WorkflowSignals, engines: int, prices: Prices) -> Stream:
    rate, output, prompt = one.requests_per_s / engines, one.output_tokens or 0.0, one.prompt_tokens or 0.0
    shared = min(one.sharing or 0.0, MOST_SHARED)
    context = prompt / (1 - shared) + output / 2  # what was found in the cache is read all the same
    step_j = prices.output_j + prices.context_j * context
    return Stream(
        name=name,
        rate=rate,
        served_s=one.served_s or 0.0,
        depth=depth_of(one),
        hold_s=one.objective.patience_s,
        prompt_s=prices.prompt_s * prompt,
        slower_s=SLOWER * prices.step_s * step_j / prices.step_j,
        tokens_w=rate * (prices.prompt_j * prompt + output * step_j),
    )


def depth_of(one: WorkflowSignals) -> float:
    """Calls of a run in a row. Before one has ended nobody knows; then it is taken to be a chain, held with care."""
    return one.depth or 2.0


def most_hold_s(
    one: WorkflowSignals, streams: Iterable[tuple[Stream, float]], prices: Prices, kv_each: float = 0.0
) -> float:
    """Patience, as far as there is room when all streams that have patience come in batches: in the engine's cache, of
    which each takes `kv_each`, and in the objectives for tokens. Streams come with the peak of their rate.

    (The objective for a run is kept ticket by ticket: the gate holds none for longer than its run can spare.)
    """
    asked = one.objective
    batched = [(stream, peak) for stream, peak in streams if stream.hold_s > 0]
    rate = sum(peak for _, peak in batched)
    prompt_s = sum(peak * stream.prompt_s for stream, peak in batched) / rate if rate else 0.0
    slower_s = sum(peak * stream.slower_s for stream, peak in batched) / rate if rate else 0.0
    returning = sum(stream.rate * stream.served_s for stream, _ in batched if stream.depth > CHAIN)
    engine_s = max(0.0, (one.ttft_p95_s or 0.0) - (one.wait_p95_s or 0.0))  # what it takes for a first token now

    def fits(hold_s: float) -> bool:
        most, first = _most(1 + rate * hold_s + returning), _most(returning)
        if most * kv_each > KV_FULL:
            return False
        # Prompts are computed in the order of arrival: who came last waits for all of them, but was held for least.
        ttft_s = max(hold_s + max(first * prompt_s, engine_s), most * prompt_s)
        if asked.ttft_p95_s is not None and ttft_s > TTFT_ROOM * asked.ttft_p95_s:
            return False
        if asked.itl_p95_s is None or not one.output_tokens:
            return True
        itl_s = prices.step_s + most * slower_s + most * prompt_s / one.output_tokens
        return itl_s <= ITL_ROOM * asked.itl_p95_s

    most_s = CHAIN_HOLD * one.served_s if one.served_s is not None and depth_of(one) > CHAIN else inf
    return _largest(fits, min(asked.patience_s, most_s))


def _most(mean: float) -> float:
    """As many as there may be, of arrivals by chance: a deviation more than the mean."""
    return mean + sqrt(mean)


def _largest(fits: Callable[[float], bool], most: float) -> float:
    """The largest value up to `most` that fits, where all below one that fits do; 0 where none does."""
    if fits(most):
        return most
    least = 0.0
    for _ in range(20):
        middle = (least + most) / 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


def gather(patient: Iterable[Stream], others: Iterable[Stream], prices: Prices) -> Gathering:
    """What holding the patient ones comes to. At least one is patient, and has a rate above 0."""
    patient, others = sorted(patient, key=lambda stream: stream.hold_s), list(others)
    rate = sum(stream.rate for stream in patient)
    served_s = sum(stream.rate * stream.served_s for stream in patient) / rate
    depth = rate / sum(stream.rate / stream.depth for stream in patient)
    every_s, arriving = inf, 0.0  # the first that is due takes all with it
    for stream in patient:
        arriving += stream.rate
        every_s = min(every_s, stream.hold_s + 1 / arriving)
    together = max(1.0, rate * every_s)
    join = min(MOST_JOIN, 1 / together + EAGER)
    left = exp(-sum(stream.rate * stream.served_s for stream in others))
    busy = left * (1 - exp(-rate * served_s))
    if depth > CHAIN:
        alone = max(CHAIN_JOIN[0], min(MOST_JOIN, 1 - patient[0].hold_s / served_s))
        join = alone + (CHAIN_JOIN[1] - alone) * (1 - exp(-rate * served_s))
    held = _held(rate, served_s, every_s, join * served_s)
    if depth > CHAIN:
        held = min(held, (held + served_s / (served_s + patient[0].hold_s)) / 2)
    rest_w = prices.rest_w or 0.0
    working_w = max(0.0, prices.step_j / prices.step_s - rest_w)
    default_w = rest_w + (1 - left + busy) * working_w + sum(stream.tokens_w for stream in (*patient, *others))
    return Gathering(together, join, (busy - left * held) * working_w, default_w)


def _held(rate: float, served_s: float, every_s: float, join_s: float) -> float:
    """The part of the time in which the engine is busy with batches and with who joins them (f1)."""
    within = 1 - exp(-rate * join_s)
    if within < 1e-6:
        return min(1.0, served_s / every_s)
    joined_s = (1 / rate - join_s * (1 - within) / within) * within / max(1 - within, 1e-12)
    return min(1.0, (served_s + joined_s) / (joined_s + join_s + every_s))


def usual(rate: float, served_s: float) -> int:
    """Requests in flight that are exceeded once in twenty or forty times when all are released at once."""
    mean = rate * served_s
    return ceil(mean + 2 * sqrt(mean))
