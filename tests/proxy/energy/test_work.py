import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.energy.prior import Coefficients
from proxy.energy.work import Progress, Work, part, work_in

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
TIMES = st.floats(0, 100) | st.integers(0, 100).map(float)
TOKENS = st.integers(0, 5000)


@st.composite
def attempts(draw: st.DrawFn) -> Progress:
    """Any attempt that has ended: with and without a stream, marks, usage, a cached part, a length in time."""
    dispatched, *middle, ended = sorted(draw(st.lists(TIMES, min_size=2, max_size=8)))
    progress = Progress("r", 1, "e", dispatched, draw(TOKENS), streamed=draw(st.booleans()), ended=ended)
    if draw(st.booleans()):
        progress.prompt_tokens, progress.output_tokens = draw(TOKENS), draw(TOKENS)
        progress.cached_tokens = draw(st.none() | st.integers(0, progress.prompt_tokens))
    if progress.streamed and middle:
        progress.first, *readings = middle
        seen = 1
        for t in readings:
            progress.marks.append((t, seen := draw(st.integers(seen, seen + 50))))
        progress.frames = draw(st.integers(seen, seen + 50))
    return progress


def known(progress: Progress) -> tuple[int, int]:
    """Uncached prompt tokens and output tokens, by what is known of an ended attempt."""
    prompt = progress.prompt_guess if progress.prompt_tokens is None else progress.prompt_tokens
    output = progress.frames if progress.output_tokens is None else progress.output_tokens
    return prompt - (progress.cached_tokens or 0), output


def summed(progress: Progress, cuts: list[float]) -> Work:
    works = [work_in(progress, t0, t1, cuts[-1], PRICES) for t0, t1 in pairwise(cuts)]
    for work in works:
        assert min(work.prefill_s, work.decode_s, work.prompt, work.output, work.context) >= 0
    return Work(*(math.fsum(getattr(work, name) for work in works) for name in Work.__slots__))


@given(attempts(), st.lists(TIMES, max_size=10))
def test_however_time_is_cut_the_work_sums_to_the_usage(progress: Progress, cuts: list[float]) -> None:
    total = summed(progress, [-1.0, *sorted({*cuts}), 101.0])
    prompt, output = known(progress)
    assert progress.ended is not None
    assert total.prompt == pytest.approx(prompt, rel=1e-9, abs=1e-9)
    assert total.output == pytest.approx(output, rel=1e-9, abs=1e-9)
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
    assume(progress.streamed or not progress.output_tokens or progress.prompt_tokens)
    edges = [-1.0, *sorted({*cuts}), 101.0]
    works = [work_in(progress, t0, t1, 101.0, PRICES) for t0, t1 in pairwise(edges) if progress.overlaps(t0, t1)]
    prompt, output = known(progress)
    assert math.fsum(work.output for work in works) == pytest.approx(output, abs=1e-9)
    if not progress.streamed and not progress.output_tokens:
        assert math.fsum(work.prompt for work in works) == pytest.approx(prompt, abs=1e-9)


@given(attempts(), TIMES, TIMES)
def test_what_was_seen_only_grows(progress: Progress, a: float, b: float) -> None:
    assert 0 <= progress.frames_at(min(a, b)) <= progress.frames_at(max(a, b)) <= progress.frames


def test_frames_follow_the_marks() -> None:
    progress = Progress("r", 1, "e", dispatched=0.0, first=1.0, frames=12, ended=4.0, marks=[(2.0, 10), (3.0, 10)])
    assert [progress.frames_at(t) for t in (0.5, 1.0, 1.5, 2.0, 2.5, 3.5, 4.0, 9.0)] == [0, 0, 5, 10, 10, 11, 12, 12]


def test_a_mark_in_the_moment_of_the_end_hides_nothing() -> None:
    progress = Progress("r", 1, "e", dispatched=0.0, first=1.0, frames=12, ended=2.0, marks=[(2.0, 10)])
    assert progress.frames_at(2.0) == 12


def test_the_prompt_is_spread_until_the_first_token_and_its_cached_part_costs_nothing() -> None:
    progress = Progress(
        "r", 1, "e", 10.0, first=12.0, ended=14.0, frames=5, prompt_tokens=100, cached_tokens=60, output_tokens=10
    )
    assert work_in(progress, 10.0, 11.0, 14.0, PRICES).prompt == 20
    after = work_in(progress, 12.0, 13.0, 14.0, PRICES)
    assert (after.prefill_s, after.decode_s, after.prompt, after.output) == (0.0, 1.0, 0.0, 5.0)
    assert after.context == 5.0 * (100 + 2.5)  # cached tokens are read all the same


def test_without_a_stream_prices_place_the_first_token() -> None:
    progress = Progress("r", 1, "e", 0.0, streamed=False, ended=10.0, prompt_tokens=9200, output_tokens=50)
    work = work_in(progress, 0.0, 10.0, 10.0, PRICES)  # 0.23 s of prompt, 0.23 s of output
    assert work.prefill_s == pytest.approx(5.0)
    assert work_in(progress, 0.0, 5.0, 10.0, PRICES).output == pytest.approx(0.0)
    assert work_in(progress, 5.0, 7.5, 10.0, PRICES).output == pytest.approx(25.0)


def test_before_the_first_token_the_guessed_prompt_lasts_until_now() -> None:
    progress = Progress("r", 1, "e", dispatched=0.0, prompt_guess=40)
    work = work_in(progress, 0.0, 1.0, now=4.0, prices=PRICES)
    assert work == Work(1.0, 0.0, 10.0, 0.0, 0.0)


def test_an_attempt_of_no_length_does_nothing_anywhere_else() -> None:
    progress = Progress("r", 1, "e", dispatched=1.0, ended=1.0, prompt_tokens=5, output_tokens=0)
    assert work_in(progress, 2.0, 3.0, 3.0, PRICES) == Work(0.0, 0.0, 0.0, 0.0, 0.0)


@given(TIMES, TIMES, TIMES)
def test_a_part_lies_between_nothing_and_all(t: float, a: float, b: float) -> None:
    t0, t1 = sorted((a, b))
    assert 0.0 <= part(t, t0, t1) <= 1.0
    assert (part(t0 - 1, t0, t1), part(t1, t0, t1)) == (0.0, 1.0)
