import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.quota import Bucket, Quota
from proxy.refusal import Refusal

START = 1_790_000_000.25


def retry_after_s(quota: Quota, now: float) -> int | None:
    """What a request is told at `now`; None when it is let in."""
    try:
        quota.enter(now)
    except Refusal as refusal:
        assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
        assert refusal.retry_after_s
        return refusal.retry_after_s
    return None


def test_a_minutes_worth_at_once_and_then_at_the_rate() -> None:
    quota = Quota(requests=Bucket(6))
    assert [retry_after_s(quota, START) for _ in range(7)] == [None] * 6 + [10]
    assert retry_after_s(quota, START + 4) == 6
    assert retry_after_s(quota, START + 10) is None
    assert retry_after_s(quota, START + 10) == 10


def test_quiet_time_fills_a_bucket_to_a_minutes_worth_and_no_more() -> None:
    quota = Quota(requests=Bucket(2))
    assert [retry_after_s(quota, START) for _ in range(3)] == [None, None, 30]
    assert [retry_after_s(quota, START + 86_400) for _ in range(3)] == [None, None, 30]


@given(
    per_minute=st.integers(1, 100_000),
    taken=st.integers(0, 1_000_000),
    later=st.floats(0, 1000, allow_nan=False),
)
def test_retry_after_is_exact(per_minute: int, taken: int, later: float) -> None:
    """After so many seconds a request passes; a second earlier it does not."""

    def bucket() -> Bucket:
        bucket = Bucket(per_minute)
        bucket.take(taken, START)
        return bucket

    told = retry_after_s(Quota(requests=bucket()), START + later)
    if told is None:
        return
    assert retry_after_s(Quota(requests=bucket()), START + later + told) is None
    assert retry_after_s(Quota(requests=bucket()), START + later + told - 1.001) is not None


@given(
    per_minute=st.integers(1, 1000),
    arrivals=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
)
def test_never_more_than_a_full_bucket_and_its_rate(per_minute: int, arrivals: list[float]) -> None:
    quota, now, passed = Quota(requests=Bucket(per_minute)), START, 0
    for gap in arrivals:
        now += gap
        passed += retry_after_s(quota, now) is None
    assert passed <= per_minute + (now - START) * per_minute / 60 + 1e-3


def test_tokens_are_paid_when_they_are_known_and_debts_are_waited_for() -> None:
    quota = Quota(tokens=Bucket(60))
    assert retry_after_s(quota, START) is None
    assert retry_after_s(quota, START) is None, "nobody knows yet what the first one takes"
    quota.leave(60 + 89, START)
    assert retry_after_s(quota, START) == 90
    quota.leave(0, START + 30)
    assert retry_after_s(quota, START + 89) == 1
    assert retry_after_s(quota, START + 90) is None


def test_in_flight_is_given_back_by_leaving() -> None:
    quota = Quota(most_in_flight=2)
    assert [retry_after_s(quota, START) for _ in range(3)] == [None, None, 1]
    quota.leave(0, START)
    assert [retry_after_s(quota, START) for _ in range(2)] == [None, 1]
    assert quota.in_flight == 2


def test_what_is_refused_costs_nothing() -> None:
    quota = Quota(requests=Bucket(2), most_in_flight=1)
    assert [retry_after_s(quota, START) for _ in range(5)] == [None, 1, 1, 1, 1]
    quota.leave(0, START)
    assert retry_after_s(quota, START) is None
    quota.leave(0, START)
    assert retry_after_s(quota, START) == 30


def test_without_limits_everything_passes() -> None:
    quota = Quota()
    assert [retry_after_s(quota, START) for _ in range(1000)] == [None] * 1000


def test_the_refusal_says_what_is_allowed() -> None:
    with pytest.raises(Refusal, match="this key may have 1 requests a minute; try again in 60 s"):
        quota = Quota(requests=Bucket(1))
        quota.enter(START)
        quota.enter(START)
