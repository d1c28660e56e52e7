import pytest

from proxy.energy.pace import Pace
from proxy.energy.prior import Coefficients
from proxy.energy.seen import Seen
from proxy.energy.work import Progress

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")


def counted(*marks: tuple[float, float]) -> Pace:
    pace = Pace()
    for t, steps in marks:
        pace.count(t, steps)
    return pace


def test_steps_lie_evenly_between_two_looks() -> None:
    pace = counted((10.0, 100), (12.0, 120), (13.0, 180))
    assert pace.counted(11.0, 12.5) == pytest.approx(10 + 30)


def test_of_a_time_that_no_counter_tells_of_nothing_is_counted_and_a_pace_expected() -> None:
    pace = counted((10.0, 100), (12.0, 120))
    assert pace.counted(8.0, 10.0) is pace.counted(12.0, 13.0) is None
    assert pace.expected(9.0, 13.0, step_s=0.5) == pytest.approx(2 + 20 + 2)
    assert Pace().expected(0.0, 1.0, step_s=0.5) == 2.0


def test_a_counter_that_fell_begins_anew() -> None:
    pace = counted((10.0, 100), (12.0, 5), (13.0, 9))
    assert pace.counted(11.0, 12.0) is None and pace.counted(12.0, 13.0) == 4


def test_what_is_forgotten_was_not_needed() -> None:
    pace = counted(*((float(t), 7.0 * t) for t in range(20)))
    pace.forget(12.5)
    assert pace.counted(12.5, 14.5) == pytest.approx(14.0)
    assert pace.counted(10.0, 12.0) is None


def test_the_pace_is_learned_from_what_ended_and_from_what_streams() -> None:
    pace = Pace()
    assert pace.token_s([], Seen(), PRICES) == PRICES.step_s
    stream, seen = Progress("r", 1, "e", 0.0, first=1.0, frames=101), Seen()
    assert pace.token_s([stream], seen, PRICES) == PRICES.step_s
    seen.mark(3.0, [stream])
    assert pace.token_s([stream], seen, PRICES) == pytest.approx(0.02)
    pace.learn(Progress("r", 1, "e", 0.0, streamed=False, ended=4.0, output_tokens=101), PRICES)
    assert pace.token_s([], Seen(), PRICES) == pytest.approx(0.04)


def test_answers_of_a_token_or_two_teach_no_pace() -> None:
    pace = Pace()
    for _ in range(100):
        pace.learn(Progress("r", 1, "e", 0.0, streamed=False, ended=4.0, output_tokens=1), PRICES)
    assert pace.token_s([], Seen(), PRICES) == PRICES.step_s


def test_a_pace_that_changes_is_followed() -> None:
    pace = Pace()
    for token_s in (0.01, 0.1):
        for _ in range(200):
            ended = 1.0 + 500 * token_s
            pace.learn(Progress("r", 1, "e", 0.0, first=1.0, ended=ended, output_tokens=501), PRICES)
    assert pace.token_s([], Seen(), PRICES) == pytest.approx(0.1, rel=0.05)
