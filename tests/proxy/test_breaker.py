from hypothesis import given
from hypothesis import strategies as st

from proxy.breaker import Breaker, State


def fail(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        permit = breaker.enter(now)
        assert permit is not None
        breaker.leave(permit, False, now)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(failures=3, open_s=5)
    fail(breaker, now, 3)
    return breaker


def test_it_opens_after_failures_in_a_row_and_no_sooner() -> None:
    breaker = Breaker(failures=3)
    fail(breaker, 0, 2)
    permit = breaker.enter(0)
    assert permit is not None
    breaker.leave(permit, True, 0)
    fail(breaker, 0, 2)
    assert breaker.state(0) is State.CLOSED
    fail(breaker, 0)
    assert breaker.state(0) is State.OPEN and breaker.enter(0) is None


def test_half_open_lets_one_probe_through_at_a_time() -> None:
    breaker = opened()
    assert not breaker.allows(4.9) and breaker.retry_after_s(1.5) == 4
    assert breaker.state(5) is State.HALF_OPEN
    probe = breaker.enter(5)
    assert probe is not None and breaker.enter(5) is None
    breaker.leave(probe, None, 6)  # its client left: it has shown nothing, and the next one may try
    assert breaker.state(6) is State.HALF_OPEN and breaker.enter(6) is not None


def test_a_probe_that_ends_well_closes_it() -> None:
    breaker = opened()
    probe = breaker.enter(5)
    assert probe is not None
    breaker.leave(probe, True, 6)
    fail(breaker, 6, 2)
    assert breaker.state(6) is State.CLOSED


def test_a_probe_that_fails_opens_it_for_twice_as_long() -> None:
    breaker = opened()
    fail(breaker, 5)
    assert breaker.state(14.9) is State.OPEN and breaker.state(15) is State.HALF_OPEN
    for _ in range(10):
        assert breaker.opened_at is not None
        fail(breaker, breaker.opened_at + breaker.wait_s)
    assert breaker.wait_s == breaker.longest_s


def test_a_first_byte_closes_it_on_trial() -> None:
    breaker = opened()
    probe = breaker.enter(5)
    assert probe is not None
    breaker.answered(probe)
    assert breaker.state(5) is State.CLOSED
    breaker.leave(probe, False, 7)  # but the stream broke
    assert breaker.state(7) is State.OPEN and breaker.wait_s == 10
    probe = breaker.enter(17)
    assert probe is not None
    breaker.answered(probe)
    breaker.leave(probe, True, 18)
    fail(breaker, 18, 2)
    assert breaker.state(18) is State.CLOSED


def test_what_began_before_it_opened_has_no_say() -> None:
    breaker = Breaker(failures=3, open_s=5)
    slow = [breaker.enter(0) for _ in range(2)]
    fail(breaker, 0, 3)
    for permit, well in zip(slow, (True, False), strict=True):
        assert permit is not None
        breaker.leave(permit, well, 1)
    assert breaker.state(1) is State.OPEN and breaker.wait_s == 5


def test_a_sign_of_life_ends_the_wait() -> None:
    breaker = opened()
    breaker.try_now(1)
    assert breaker.state(1) is State.HALF_OPEN
    closed = Breaker()
    closed.try_now(1)
    assert closed.state(1) is State.CLOSED


@given(
    st.lists(st.tuples(st.sampled_from(["enter", "answer", "well", "bad", "none"]), st.floats(0, 10)), max_size=200),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_whatever_happens_it_neither_leaks_probes_nor_stays_open(
    events: list[tuple[str, float]], failures: int, probes: int
) -> None:
    breaker = Breaker(failures=failures, probes=probes, open_s=2, longest_s=20)
    inside: list[int] = []
    now = 0.0
    for what, dt in events:
        now += dt
        if what == "enter":
            before, allowed = breaker.state(now), breaker.allows(now)
            permit = breaker.enter(now)
            assert (permit is not None) == allowed and (before is not State.OPEN or permit is None)
            if permit is not None:
                inside.append(permit)
        elif inside and what == "answer":
            breaker.answered(inside[-1])
        elif inside:
            breaker.leave(inside.pop(0), {"well": True, "bad": False, "none": None}[what], now)
        assert 0 <= breaker.probing <= probes and breaker.wait_s <= 20
    for permit in inside:
        breaker.leave(permit, None, now)
    assert breaker.probing == 0
    assert breaker.allows(now + 20), "nobody inside, and the longest wait is over"
