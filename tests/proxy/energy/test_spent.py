from hypothesis import given
from hypothesis import strategies as st

from proxy.energy.spent import HOUR_S, MONTH_H, Spent

MAY = 494_000  # an hour in 2026


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(0, 10**9), st.integers(0, 40)), max_size=40
    )
)
def test_sums_are_of_the_hours_since(booked: list[tuple[str, int, int, int]]) -> None:
    """Asked in between too, since a sum that was asked for is kept up to date."""
    spent, all_of = Spent({"a": {MAY: 7}}), [("a", MAY, 7)]
    for tenant, hour, uj, since in booked:
        spent.add(tenant, (MAY + hour) * HOUR_S + 5.5, uj)
        all_of.append((tenant, MAY + hour, uj))
        for one in "ab":
            expected = sum(uj for of, at, uj in all_of if of == one and at >= MAY + since)
            assert spent.since(one, (MAY + since) * HOUR_S) == expected


def test_a_month_is_remembered_and_no_more() -> None:
    spent = Spent()
    for hour in range(MAY, MAY + 3 * MONTH_H):
        spent.add("a", hour * HOUR_S, 1)
    last = MAY + 3 * MONTH_H - 1
    assert spent.since("a", (last - 743) * HOUR_S) == 744
    assert spent.since("a", 0.0) <= MONTH_H + 1
