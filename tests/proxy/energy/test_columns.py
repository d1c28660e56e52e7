"""What is computed in columns is what `work` says of each attempt."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proxy.energy import columns
from proxy.energy.columns import first_tokens, works
from proxy.energy.prior import Coefficients
from proxy.energy.seen import Seen
from proxy.energy.work import Progress, computed, first_token, made_until

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
FREE = Coefficients(2.0, 0.0, 0.025, 0.00007, 0.0046, 0.0, 1.25, "test")
LATER_S = st.floats(0, 10)
TOKENS = st.integers(0, 5000)


@st.composite
def attempts(draw: st.DrawFn) -> Progress:
    """Any attempt: running or over, seen or not, with whatever is known of it."""
    progress = Progress("r", 1, "e", draw(st.floats(0, 100)), draw(TOKENS), streamed=draw(st.booleans()))
    progress.frames = draw(st.sampled_from((0, 0, 7)))
    if progress.frames:
        progress.first = progress.dispatched + draw(LATER_S)
    progress.ended = draw(st.none() | LATER_S.map(lambda s: (progress.first or progress.dispatched) + s))
    progress.prompt_tokens, progress.cached_guess = draw(st.none() | TOKENS), draw(TOKENS)
    progress.cached_tokens, progress.output_tokens = draw(st.none() | TOKENS), draw(st.none() | TOKENS)
    if draw(st.booleans()) and progress.ended is None:
        progress.first_guess = progress.dispatched + draw(LATER_S)
        progress.marks.append((progress.first_guess + draw(LATER_S), draw(TOKENS)))
    return progress


@given(st.lists(attempts(), min_size=1, max_size=6), st.sampled_from((PRICES, FREE)))
def test_first_tokens_and_computed_prompts_are_those_of_each(some: list[Progress], prices: Coefficients) -> None:
    now = 200.0
    told = columns._told(some)
    ends = [now if progress.ended is None else progress.ended for progress in some]
    firsts = [first_token(progress, end, prices) for progress, end in zip(some, ends, strict=True)]
    assert first_tokens(told, np.array(ends), prices).tolist() == firsts
    assert columns._computed(told, prices).tolist() == [computed(progress, prices) for progress in some]


@given(st.lists(attempts(), min_size=1, max_size=6), LATER_S)
def test_output_that_nobody_saw_is_that_of_each(some: list[Progress], length_s: float) -> None:
    now, t0 = 200.0, 50.0
    silent = [progress for progress in some if not progress.frames]
    if not silent:
        return
    t1 = t0 + length_s
    table = works(silent, (t0, t1), now, PRICES, None, Seen())
    for progress, output in zip(silent, table[0, :, 5].tolist(), strict=True):
        end = now if progress.ended is None else progress.ended
        first = first_token(progress, end, PRICES)
        before, after = (made_until(progress, t, first, end, PRICES, None) for t in (t0, t1))
        assert output == max(after, before) - before
