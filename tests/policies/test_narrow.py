from dataclasses import replace

import pytest

from policies.interface import EngineSignals, Objective, QueueSignals, Signals, WorkflowSignals
from policies.narrow import BEAT_S, LEAST, narrow
from policies.room import SETTLE_S


def signals(itl_s: float, in_flight: int = 20, queued: int = 0, now: float = 0.0, **engine: float) -> Signals:
    seen = WorkflowSignals(Objective(itl_p95_s=0.02), itl_p95_s=itl_s)
    one = EngineSignals(True, {"a": QueueSignals(in_flight, queued)}, **engine)  # pyright: ignore[reportArgumentType]
    return Signals(now, {"a": seen}, {"e1": one})


def test_nothing_is_limited_while_tokens_come_in_time() -> None:
    assert narrow(signals(0.019), {}) == {}
    assert narrow(Signals(0.0), {}) == {}


def test_it_narrows_by_a_fifth_for_tokens_that_come_late_and_waits_for_what_that_does() -> None:
    limits = narrow(signals(0.021), {})
    assert limits == {"e1": (16.0, 0.0)}
    assert narrow(signals(0.021, now=SETTLE_S - 1), limits) == limits
    assert narrow(signals(0.021, now=SETTLE_S), limits) == {"e1": (pytest.approx(12.8), SETTLE_S)}


def test_it_never_keeps_the_last_few_apart() -> None:
    assert narrow(signals(0.5, in_flight=LEAST), {}) == {}
    assert narrow(signals(0.5, now=99.0), {"e1": (LEAST, 0.0)}) == {"e1": (LEAST, 99.0)}


def test_it_leaves_a_full_cache_to_the_engine() -> None:
    assert narrow(signals(0.001, kv_usage=0.99, waiting=3), {}) == {}


def test_it_widens_at_once_when_first_tokens_are_to_be_late() -> None:
    """Whichever come late: who waits at the gate gets no token at all."""
    late = signals(0.021, in_flight=10, queued=3, now=1.0)
    asked = replace(late.workflows["a"], objective=Objective(ttft_p95_s=1.0, itl_p95_s=0.02), served_s=1.0)
    few = replace(late, workflows={"a": asked})
    assert narrow(few, {"e1": (10.0, 0.0)}) == {"e1": (10.0, 0.0)}, "three wait for 0.3 s: half of 0.5"
    many = replace(few, engines={"e1": EngineSignals(True, {"a": QueueSignals(10, 5)})})
    assert narrow(many, {"e1": (10.0, 0.0)}) == {"e1": (pytest.approx(11.0), 1.0)}
    old = replace(few, engines={"e1": EngineSignals(True, {"a": QueueSignals(10, 1, oldest_s=0.6)})})
    assert narrow(old, {"e1": (10.0, 0.0)}) == {"e1": (pytest.approx(11.0), 1.0)}


def test_it_widens_while_there_is_room_and_goes_when_nobody_waits() -> None:
    limits = {"e1": (10.0, 0.0)}
    late = signals(0.01, queued=5, now=BEAT_S)
    assert narrow(late, limits) == {"e1": (pytest.approx(11.0), BEAT_S)}
    assert narrow(replace(late, now=BEAT_S - 1), limits) == limits
    assert narrow(signals(0.018, queued=5, now=BEAT_S), limits) == limits
    assert narrow(signals(0.01, queued=0, now=BEAT_S), limits) == {}
