import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.energy.prior import Coefficients
from proxy.energy.share import Load, Plan, Window, busy_s, plan, split
from proxy.energy.work import Progress

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")

# Sharing an integer ---------------------------------------------------------------------------------------------------


@given(
    delta=st.integers(0, 10**12),
    weights=st.lists(st.floats(0, 1e300) | st.floats(0, 1e-300) | st.just(0.0), min_size=1, max_size=50),
)
def test_split_loses_nothing(delta: int, weights: list[float]) -> None:
    shares = split(delta, weights)
    assert sum(shares) == delta and min(shares) >= 0 and len(shares) == len(weights)
    if any(weights):
        assert all(share == 0 for share, weight in zip(shares, weights, strict=True) if weight == 0)


@example(delta=11, weights=[0, 0, 0])
@given(delta=st.integers(0, 10**10), weights=st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_split_is_proportional_to_a_microjoule(delta: int, weights: list[int]) -> None:
    shares, total = split(delta, list(map(float, weights))), sum(weights)
    for share, weight in zip(shares, weights, strict=True):
        exact = delta * weight / total if total else delta / len(weights)
        assert abs(share - exact) <= 1.001


@pytest.mark.parametrize(
    ("delta", "weights"),
    [(1, []), (-1, [1.0]), (1, [1.0, -1.0]), (1, [float("nan")]), (1, [float("inf"), 1.0])],
)
def test_split_refuses_what_cannot_be_shared(delta: int, weights: list[float]) -> None:
    with pytest.raises(ValueError):
        split(delta, weights)


# Being busy -----------------------------------------------------------------------------------------------------------


@given(
    spans=st.lists(st.tuples(st.integers(0, 20), st.none() | st.integers(0, 9)), max_size=6),
    t0=st.integers(0, 20),
    length=st.integers(1, 9),
)
def test_busy_is_as_long_as_anybody_was_there(spans: list[tuple[int, int | None]], t0: int, length: int) -> None:
    now, t1 = 40, t0 + length
    ends = [now if lasted is None else begin + lasted for begin, lasted in spans]
    attempts = [
        Progress("r", 1, "e", float(begin), ended=None if lasted is None else float(begin + lasted))
        for begin, lasted in spans
    ]
    there = [any(begin <= t < end for (begin, _), end in zip(spans, ends, strict=True)) for t in range(t0, t1)]
    assert busy_s(attempts, float(t0), float(t1), float(now)) == sum(there)


# A plan ---------------------------------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """One or two engines, each with any attempts and strangers, over the window from 0 to 1."""
    loads: list[Load] = []
    for spread in draw(st.lists(st.sampled_from([1.0, 1.25, 2.0]), min_size=1, max_size=2)):
        attempts: list[Progress] = []
        for streamed, begin, length, output in draw(
            st.lists(
                st.tuples(st.booleans(), st.floats(-2, 0.99), st.none() | st.floats(0, 3), st.integers(0, 300)),
                max_size=6,
            )
        ):
            one = Progress("r", 1, "e", begin, 100, streamed, ended=None if length is None else begin + length)
            if one.ended is not None:
                one.prompt_tokens, one.output_tokens = 50, output
            if one.dispatched < 1.0 and (one.ended is None or one.ended > 0.0):
                attempts.append(one)
        prices = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, spread, "test")
        foreign, counted = draw(st.sampled_from([0.0, 0.0, 40.0])), draw(st.sampled_from([None, 0.0, 20.0]))
        if attempts or foreign:
            loads.append(Load(prices, attempts, foreign, counted, lambda a, b: 200 * (b - a)))
    return plan(loads, 0.0, 1.0, 6.0)


@given(plans(), st.lists(st.integers(0, 10**9), min_size=1, max_size=3))
def test_one_plan_shares_any_number_of_windows_without_loss(shared: Plan, deltas: list[int]) -> None:
    for delta_uj in deltas:
        settled = shared.settle(Window("d", 0.0, 1.0, delta_uj))
        assert settled.delta_uj == delta_uj and min(settled.idle_uj, settled.foreign_uj, settled.gap_uj) >= 0
        for share in settled.shares:
            assert 0 <= share.low_uj <= share.uj <= share.high_uj <= delta_uj


@given(plans(), st.integers(0, 10**9))
def test_what_is_predicted_is_what_would_be_settled(shared: Plan, delta_uj: int) -> None:
    window = Window("d", 0.0, 1.0, delta_uj)
    settled, predicted = shared.settle(window), shared.predict(window)
    for progress in {share.progress for share in settled.shares} | set(predicted):
        uj = sum(share.uj for share in settled.shares if share.progress is progress)
        assert abs(predicted.get(progress, 0) - uj) <= 4


def test_the_band_holds_the_share_with_any_price_at_its_ends() -> None:
    small, large = (Progress("r", 1, "e", 0.0, 100, first=0.0, ended=1.0, output_tokens=n) for n in (10, 400))
    window = Window("d", 0.0, 1.0, 10**9)
    settled = plan([Load(PRICES, [small, large], 0.0, 20.0, tenfold)], 0.0, 1.0, 9.0).settle(window)
    for price in ("step_j", "output_j", "context_j"):
        for factor in (1 / 1.25, 1.25):
            values = {name: getattr(PRICES, name) for name in Coefficients.__slots__}
            other = Coefficients(**values | {price: values[price] * factor})
            moved = plan([Load(other, [small, large], 0.0, 20.0, tenfold)], 0.0, 1.0, 9.0).settle(window)
            for share, at in zip(settled.shares, moved.shares, strict=True):
                assert share.progress is at.progress and share.low_uj - 1 <= at.uj <= share.high_uj + 1


def test_a_lone_request_has_no_band_in_one_phase() -> None:
    alone = Progress("r", 1, "e", -5.0, 100, first=-4.0, ended=2.0, output_tokens=600)
    (share,) = plan([Load(PRICES, [alone], 0.0, 20.0, tenfold)], 0.0, 1.0, 9.0).settle(Window("d", 0, 1, 777)).shares
    assert (share.low_uj, share.uj, share.high_uj) == (777, 777, 777)


def tenfold(t0: float, t1: float) -> float:
    return 10 * (t1 - t0)
