import math
from itertools import pairwise
from math import inf

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.energy.columns import Work, works
from proxy.energy.prior import Coefficients
from proxy.energy.seen import Seen
from proxy.energy.work import CHUNK, Progress, Steps, computed, hold, part, place_prompts

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
TIMES = st.floats(0, 100) | st.integers(0, 100).map(float)
TOKENS = st.integers(0, 5000)


def work_in(
    progress: Progress, t0: float, t1: float, now: float, prices: Coefficients, steps: Steps | None = None
) -> Work:
    """What one attempt did, whose `marks` say how many frames were seen by when."""
    ((row,),) = works([progress], (t0, t1), now, prices, steps, marked(progress)).tolist()
    return Work(*row)


def marked(progress: Progress) -> Seen:
    seen = Seen()
    if progress.visible:
        for t, frames in progress.marks:
            seen.mark(t, [Progress("r", 1, "e", 0.0, frames=round(frames), serial=progress.serial)])
    return seen


@st.composite
def attempts(draw: st.DrawFn) -> Progress:
    """Any attempt that has ended and whose tokens are known: streamed or not, marks, cached tokens, a length."""
    dispatched, *middle, ended = sorted(draw(st.lists(TIMES, min_size=2, max_size=8)))
    progress = Progress("r", 1, "e", dispatched, draw(TOKENS), streamed=draw(st.booleans()), ended=ended)
    if not progress.streamed or draw(st.booleans()):
        progress.prompt_tokens, progress.output_tokens = draw(TOKENS), draw(TOKENS)
        progress.cached_tokens = draw(st.none() | st.integers(0, progress.prompt_tokens))
    if progress.streamed and middle:
        progress.first, *readings = middle
        seen = 1
        for t in readings:
            progress.marks.append((t, seen := draw(st.integers(seen, seen + 50))))
        progress.frames = draw(st.integers(seen, seen + 50))
    return progress


def known(progress: Progress) -> tuple[float, int]:
    """Uncached prompt tokens and output tokens, by what is known of an ended attempt."""
    output = progress.frames if progress.output_tokens is None else progress.output_tokens
    return computed(progress, PRICES), output


def summed(progress: Progress, cuts: list[float]) -> Work:
    works = [work_in(progress, t0, t1, cuts[-1], PRICES) for t0, t1 in pairwise(cuts)]
    for work in works:
        assert min(work) >= 0
    return Work(*map(math.fsum, zip(*works, strict=True)))


@given(attempts(), st.lists(TIMES, max_size=10))
def test_however_time_is_cut_the_work_sums_to_the_usage(progress: Progress, cuts: list[float]) -> None:
    total = summed(progress, [-1.0, *sorted({*cuts}), 101.0])
    prompt, output = known(progress)
    assert progress.ended is not None
    assert total.prompt == pytest.approx(prompt, rel=1e-9, abs=1e-9)
    assert total.output == pytest.approx(output, rel=1e-9, abs=1e-9)
    assert total.decode_steps == pytest.approx(max(0, output - 1), rel=1e-9, abs=1e-9)
    assert total.prefill_steps == pytest.approx(1 + prompt // CHUNK)
    assert total.prefill_s + total.decode_s == pytest.approx(progress.ended - progress.dispatched, abs=1e-9)


@given(attempts(), st.lists(TIMES, max_size=10))
def test_the_context_read_does_not_depend_on_the_cuts(progress: Progress, cuts: list[float]) -> None:
    whole = work_in(progress, -1.0, 101.0, 101.0, PRICES)
    total = summed(progress, [-1.0, *sorted({*cuts}), 101.0])
    assert total.context == pytest.approx(whole.context, rel=1e-9, abs=1e-6)
    prompt = progress.prompt_guess if progress.prompt_tokens is None else progress.prompt_tokens
    output = known(progress)[1]
    # The k-th output token reads the prompt and the k before it.
    assert whole.context == pytest.approx(output * (prompt + output / 2), abs=1e-6)


@given(attempts(), st.lists(TIMES, max_size=10))
def test_nothing_is_lost_in_windows_that_an_attempt_only_touches(progress: Progress, cuts: list[float]) -> None:
    """Attribution asks of the windows that overlap an attempt alone."""
    assume(progress.ended is not None and progress.ended > progress.dispatched)
    assume(progress.first is None or progress.first > progress.dispatched)
    edges = [-1.0, *sorted({*cuts}), 101.0]
    began, ended = progress.dispatched, progress.ended or inf
    works = [work_in(progress, t0, t1, 101.0, PRICES) for t0, t1 in pairwise(edges) if began < t1 and ended > t0]
    prompt, output = known(progress)
    assert math.fsum(work.output for work in works) == pytest.approx(output, abs=1e-9)
    if not progress.streamed and not progress.output_tokens:
        assert math.fsum(work.prompt for work in works) == pytest.approx(prompt, abs=1e-9)


def test_the_prompt_is_spread_until_the_first_token_and_its_cached_part_costs_nothing() -> None:
    progress = Progress(
        "r", 1, "e", 10.0, first=12.0, ended=14.0, frames=5, prompt_tokens=100, cached_tokens=60, output_tokens=10
    )
    assert work_in(progress, 10.0, 11.0, 14.0, PRICES).prompt == 20
    after = work_in(progress, 12.0, 13.0, 14.0, PRICES)
    assert (after.prefill_s, after.decode_s, after.prompt, after.output) == (0.0, 1.0, 0.0, 5.0)
    assert after.context == 5.0 * (100 + 2.5)  # cached tokens are read all the same


def streamed(first: float, prompt: int, cached: int | None = 0, dispatched: float = 0.0) -> Progress:
    return Progress("r", 1, "e", dispatched, first=first, prompt_tokens=prompt, cached_tokens=cached)


def test_a_prompt_is_computed_in_the_time_before_its_first_token_that_its_price_says() -> None:
    progress = streamed(first=1.0, prompt=4000)
    place_prompts([progress], PRICES)
    assert progress.begun == pytest.approx(1.0 - 4000 * PRICES.prompt_s - PRICES.step_s)
    assert work_in(progress, 0.0, 0.8, 2.0, PRICES).prompt == 0, "it waited"
    assert work_in(progress, 0.8, 1.0, 2.0, PRICES).prompt == 4000


def test_prompts_whose_first_tokens_come_together_were_computed_together() -> None:
    batch, later = [streamed(1.0, 4000), streamed(1.001, 2000, dispatched=0.95)], streamed(1.2, 1000)
    place_prompts([later, *batch], PRICES)
    took_s = 6000 * PRICES.prompt_s + PRICES.step_s
    assert [batch[0].begun, batch[1].begun] == pytest.approx([1.0 - took_s, 0.95]), "not before it was there"
    assert later.begun == pytest.approx(1.2 - 1000 * PRICES.prompt_s - PRICES.step_s)


def test_what_was_found_in_the_cache_and_not_told_of_shows_in_the_time_to_the_first_token() -> None:
    assert computed(streamed(first=0.01, prompt=3000, cached=None), PRICES) == pytest.approx(0.01 / PRICES.prompt_s)
    assert computed(streamed(first=5.0, prompt=3000, cached=None), PRICES) == 3000
    assert computed(streamed(first=0.01, prompt=3000), PRICES) == 3000, "who says 0 means it"


def test_without_a_stream_the_price_of_the_prompt_places_the_first_token() -> None:
    progress = Progress("r", 1, "e", 0.0, streamed=False, ended=10.0, prompt_tokens=40_000, output_tokens=50)
    assert work_in(progress, 0.0, 10.0, 10.0, PRICES).prefill_s == pytest.approx(1.0)
    assert work_in(progress, 0.0, 1.0, 10.0, PRICES).output == pytest.approx(0.0)
    assert work_in(progress, 1.0, 5.5, 10.0, PRICES).output == pytest.approx(25.0)


def test_who_was_faster_than_the_prices_was_so_in_prompt_and_output() -> None:
    progress = Progress("r", 1, "e", 0.0, streamed=False, ended=0.1, prompt_tokens=9200, output_tokens=50)
    work = work_in(progress, 0.0, 0.1, 0.1, PRICES)  # 0.23 s of prompt and 0.23 s of output, by the prices
    assert (work.prefill_s, work.output) == (pytest.approx(0.05), pytest.approx(50.0))


def test_no_output_means_that_all_of_it_was_prompt() -> None:
    progress = Progress("r", 1, "e", 0.0, streamed=False, ended=10.0, prompt_tokens=100, output_tokens=0)
    assert work_in(progress, 0.0, 10.0, 10.0, PRICES) == Work(10.0, 0.0, 1.0, 0.0, 100.0, 0.0, 0.0)


def test_an_unseen_attempt_makes_a_token_a_step_after_its_prompt() -> None:
    progress = Progress("r", 1, "e", 0.0, prompt_guess=40_000, streamed=False)
    assert work_in(progress, 0.0, 1.0, 9.0, PRICES, tenfold) == Work(1.0, 0.0, 5.0, 0.0, 40_000.0, 0.0, 0.0)
    work = work_in(progress, 1.0, 3.0, 9.0, PRICES, tenfold)
    assert work == Work(0.0, 2.0, 0.0, 19.0, 0.0, 20.0, 20 * (40_000 + 10))
    assert work_in(progress, 1.0, 3.3, 9.0, PRICES).output == pytest.approx(2.3 / 0.0046)
    progress.ended = 2.0  # without a usage: a client that left
    assert work_in(progress, 0.0, 9.0, 9.0, PRICES, tenfold).output == 10


def tenfold(t0: float, t1: float) -> float:
    return 10 * (t1 - t0)


@given(
    prompt=TOKENS,
    output=TOKENS,
    rates=st.lists(st.floats(0, 500), min_size=2, max_size=40),
    settled=st.integers(0, 38),
)
def test_what_was_guessed_and_what_is_left_sum_to_the_usage(
    prompt: int, output: int, rates: list[float], settled: int
) -> None:
    """Windows settle on a guess while an attempt runs; when its usage comes the others get the rest, and never less
    than nothing."""
    settled = min(settled, len(rates) - 1)
    progress = Progress("r", 1, "e", 0.0, prompt, streamed=False)
    guessed = 0.0
    for second in range(settled):
        for _ in range(2):  # as for another device with the same window
            hold(progress, second + 1.0, second + 6.0, PRICES, lambda a, b, s=second: rates[s] * (b - a))
        guessed += work_in(progress, second, second + 1.0, second + 6.0, PRICES).output
    assert 0 <= guessed <= sum(rates[:settled]) + 1e-6
    progress.ended, progress.prompt_tokens, progress.output_tokens = float(len(rates)), prompt // 2, output
    works = [work_in(progress, s, s + 1.0, 99.0, PRICES) for s in range(len(rates))]
    assert math.fsum(work.output for work in works[:settled]) == pytest.approx(guessed, abs=1e-6)
    assert math.fsum(work.output for work in works) == pytest.approx(max(output, guessed), rel=1e-9, abs=1e-6)


def test_a_stream_that_nobody_asked_for_is_seen() -> None:
    progress = Progress("r", 1, "e", 0.0, streamed=False, first=1.0, frames=10, marks=[(2.0, 10)])
    hold(progress, 3.0, 9.0, PRICES, tenfold)
    assert work_in(progress, 0.0, 3.0, 9.0, PRICES, tenfold).output == 10 and progress.first_guess is None


def test_before_the_first_token_the_guessed_prompt_lasts_until_now() -> None:
    progress = Progress("r", 1, "e", dispatched=0.0, prompt_guess=40)
    work = work_in(progress, 0.0, 1.0, now=4.0, prices=PRICES)
    assert work == Work(1.0, 0.0, 0.25, 0.0, 10.0, 0.0, 0.0)


def test_the_prompt_of_a_stream_takes_the_time_that_its_price_says_at_least() -> None:
    progress = Progress("r", 1, "e", dispatched=0.0, prompt_guess=40_000)
    assert work_in(progress, 0.0, 0.1, now=0.1, prices=PRICES).prompt == pytest.approx(4000)


def test_an_attempt_of_no_length_does_nothing_anywhere_else() -> None:
    progress = Progress("r", 1, "e", dispatched=1.0, ended=1.0, prompt_tokens=5, output_tokens=0)
    assert work_in(progress, 2.0, 3.0, 3.0, PRICES) == Work(*[0.0] * 7)


@given(TIMES, TIMES, TIMES)
def test_a_part_lies_between_nothing_and_all(t: float, a: float, b: float) -> None:
    t0, t1 = sorted((a, b))
    assert 0.0 <= part(t, t0, t1) <= 1.0
    assert (part(t0 - 1, t0, t1), part(t1, t0, t1)) == (0.0, 1.0)
