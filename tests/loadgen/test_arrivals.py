from itertools import islice, takewhile
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from loadgen.arrivals import Closed, Constant, Poisson, Ramp, Trace, parse

rates = st.floats(0.01, 100)
opened = st.one_of(
    st.builds(Poisson, rates), st.builds(Constant, rates), st.builds(Ramp, st.floats(0, 100), rates, st.floats(1, 100))
)


@given(arrivals=opened, seed=st.integers())
def test_times_follow_from_the_seed_and_never_go_back(arrivals: Poisson | Constant | Ramp, seed: int) -> None:
    times = list(islice(arrivals.times_s(Random(seed)), 200))
    assert times == list(islice(arrivals.times_s(Random(seed)), 200)) == sorted(times)
    assert times[0] >= 0


def test_poisson_gaps_are_exponential() -> None:
    times = list(islice(Poisson(4.0).times_s(Random(1)), 4000))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert kstest(gaps, "expon", args=(0, 1 / 4.0)).pvalue > 0.01


def test_constant_is_even_from_the_beginning() -> None:
    assert list(islice(Constant(2.0).times_s(Random(0)), 4)) == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(("first", "last"), [(1.0, 9.0), (9.0, 1.0), (5.0, 5.0), (0.0, 10.0)])
def test_a_ramp_has_the_rates_it_names(first: float, last: float) -> None:
    times = list(takewhile(lambda at: at < 200, Ramp(first, last, 100.0).times_s(Random(3))))
    quarters = [sum(low <= at < low + 25 for at in times) for low in (0, 25, 50, 75)]
    expected = [25 * (first + (last - first) * middle) for middle in (0.125, 0.375, 0.625, 0.875)]
    for seen, wanted in zip(quarters, expected, strict=True):
        assert abs(seen - wanted) < 4 * wanted**0.5
    assert abs(sum(at >= 100 for at in times) - 100 * last) < 4 * (100 * last) ** 0.5


def test_users_come_evenly() -> None:
    assert Closed(4).begins_s() == (0.0,) * 4
    assert Closed(4, over_s=8).begins_s() == (0.0, 2.0, 4.0, 6.0)


def test_arrivals_as_text(tmp_path: Path) -> None:
    file = tmp_path / "times"
    file.write_text("0.5\n1\n7.25\n")
    assert parse("closed:16") == Closed(16)
    assert parse("closed:3,think=2.5,over=10") == Closed(3, 2.5, 10.0)
    assert parse("poisson:2.5") == Poisson(2.5)
    assert parse("constant:1") == Constant(1.0)
    assert parse("ramp:0.5-4/60") == Ramp(0.5, 4.0, 60.0)
    assert parse(f"trace:{file}") == Trace((0.5, 1.0, 7.25))


@pytest.mark.parametrize(
    "text", ["", "closed:0", "closed:2,pause=1", "poisson:0", "poisson:inf", "ramp:1-2", "trace:/no/such", "burst:3"]
)
def test_other_text_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"poisson:RATE.*got"):
        parse(text)


@pytest.mark.parametrize("times", [(), (2.0, 1.0), (-1.0,), (float("nan"),)])
def test_a_trace_goes_forward(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="trace"):
        Trace(times)
