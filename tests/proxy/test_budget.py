import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.budget import Period, Standing, Terms, ceiling, closed, standings, tightest, token_uj
from proxy.energy.prior import Coefficients

CALENDAR = (Period.HOUR, Period.DAY, Period.MONTH)
times = st.floats(0, 4e9, allow_nan=False)
amounts = st.integers(1, 10**12)
limits = st.dictionaries(st.sampled_from(list(Period)), amounts, min_size=1)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def stand(terms: Terms, spent_uj: Mapping[Period, int], now: float = 0.0) -> list[Standing]:
    return standings(terms, lambda period: spent_uj.get(period, 0), now)


# Periods --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "period", "began", "ends"),
    [
        ("2026-02-28T23:59:59", Period.HOUR, "2026-02-28T23:00:00", "2026-03-01T00:00:00"),
        ("2026-02-28T23:59:59", Period.DAY, "2026-02-28T00:00:00", "2026-03-01T00:00:00"),
        ("2026-02-28T23:59:59", Period.MONTH, "2026-02-01T00:00:00", "2026-03-01T00:00:00"),
        ("2026-12-31T12:00:00", Period.MONTH, "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        ("2028-02-29T00:00:00", Period.DAY, "2028-02-29T00:00:00", "2028-03-01T00:00:00"),
        ("2026-05-01T00:00:00", Period.MONTH, "2026-05-01T00:00:00", "2026-06-01T00:00:00"),
    ],
)
def test_periods_are_those_of_the_calendar_in_utc(now: str, period: Period, began: str, ends: str) -> None:
    assert (period.began(at(now)), period.ends(at(now))) == (at(began), at(ends))


@given(now=times, period=st.sampled_from(CALENDAR))
def test_a_period_rolls_into_the_next_without_a_seam(now: float, period: Period) -> None:
    began, ends = period.began(now), period.ends(now)
    assert ends is not None and began <= now < ends
    assert period.began(began) == began and period.began(ends) == ends
    assert period.ends(began) == ends and began % 3600 == ends % 3600 == 0


def test_a_run_has_all_the_time_there_is() -> None:
    assert Period.RUN.began(1e9) == -math.inf and Period.RUN.ends(1e9) is None


# Refusing -------------------------------------------------------------------------------------------------------------


@given(limits=limits, spent=st.dictionaries(st.sampled_from(list(Period)), st.integers(0, 2 * 10**12)), now=times)
def test_it_refuses_exactly_when_a_limit_is_reached(
    limits: dict[Period, int], spent: dict[Period, int], now: float
) -> None:
    over = [period for period, limit_uj in limits.items() if spent.get(period, 0) >= limit_uj]
    found = closed(stand(Terms(limits), spent, now))
    assert (found is not None) == bool(over)
    if found is not None:
        assert found.period in over and found.is_spent and found.left_uj == 0


@given(limits=limits, now=times)
def test_when_it_says_to_come_back_everything_is_open_and_a_second_before_it_is_not(
    limits: dict[Period, int], now: float
) -> None:
    """All is spent, once, at `now`; nothing since."""

    def refused(later: float) -> bool:
        spent = {period: limit for period, limit in limits.items() if period.began(later) <= now}
        return closed(stand(Terms(limits), spent, later)) is not None

    found = closed(stand(Terms(limits), limits, now))
    assert found is not None
    wait_s = found.retry_after_s(now)
    if Period.RUN in limits:
        assert found.period is Period.RUN and wait_s is None
    else:
        assert wait_s is not None and wait_s >= 1
        assert not refused(now + wait_s) and (wait_s == 1 or refused(now + wait_s - 1.001))


@given(limits=limits, spent=st.dictionaries(st.sampled_from(list(Period)), amounts))
def test_what_is_left_is_the_least_of_all(limits: dict[Period, int], spent: dict[Period, int]) -> None:
    left = {period: max(0, limit - spent.get(period, 0)) for period, limit in limits.items()}
    assert tightest(stand(Terms(limits), spent)).left_uj == min(left.values())


def test_low_begins_at_the_part_that_is_configured() -> None:
    terms = Terms({Period.DAY: 1000}, warn=0.8)
    assert [stand(terms, {Period.DAY: uj})[0].is_low for uj in (799, 800, 1000)] == [False, True, True]


# Capping --------------------------------------------------------------------------------------------------------------


def test_an_answer_costs_no_more_than_the_rest() -> None:
    """By hand: 10 J left, 2 J for the prompt, 10 mJ a token."""
    found = stand(Terms({Period.DAY: 100_000_000}), {Period.DAY: 90_000_000})
    assert found[0].is_low
    assert ceiling(found, 10_000, 2_000_000, sharers=1) == 800
    assert ceiling(found, 10_000, 2_000_000, sharers=4) == 50, "those who run beside it draw on the same rest"


def test_while_there_is_plenty_nobody_shares() -> None:
    found = stand(Terms({Period.DAY: 100_000_000}), {Period.DAY: 10_000_000})
    assert ceiling(found, 10_000, 0, sharers=50) == 9000


def test_a_fixed_cap_holds_once_the_budget_is_low() -> None:
    terms = Terms({Period.DAY: 100_000_000}, warn=0.5, cap_tokens=20)
    assert ceiling(stand(terms, {Period.DAY: 49_999_999}), 10_000, 0, 1) == 5000
    assert ceiling(stand(terms, {Period.DAY: 50_000_000}), 10_000, 0, 1) == 20
    assert ceiling(stand(terms, {Period.DAY: 50_000_000}), 0, 0, 1) == 20, "also where no price is known"
    assert ceiling(stand(Terms({Period.DAY: 100}), {Period.DAY: 99}), 0, 0, 1) is None


@given(
    limits=limits,
    spent=st.dictionaries(st.sampled_from(list(Period)), amounts),
    price=st.floats(0.001, 1e9),
    prompt=st.floats(0, 1e12),
    sharers=st.integers(0, 1000),
)
def test_a_cap_is_at_least_a_token_and_within_what_is_left(
    limits: dict[Period, int], spent: dict[Period, int], price: float, prompt: float, sharers: int
) -> None:
    found = stand(Terms(limits), spent)
    most = ceiling(found, price, prompt, sharers)
    assert most is not None and most >= 1
    if most > 1:
        assert all(prompt + most * price <= one.left_uj * (1 + 1e-9) for one in found)


PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")


def test_a_token_is_a_part_of_its_step() -> None:
    """By hand: 2 J a step among 4, 25 mJ, 1000 tokens of context at 0.07 mJ; each of two GPUs does it."""
    assert token_uj(PRICES, 1, 4, 1000) == pytest.approx((595_000, 16_500_000))
    assert token_uj(PRICES, 2, 4, 1000) == pytest.approx((1_190_000, 33_000_000))
    assert token_uj(replace(PRICES, context_j=0.0), 1, 0, 0) == pytest.approx((2_025_000, 0))
