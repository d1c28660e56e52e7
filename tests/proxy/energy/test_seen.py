from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.seen import MANY, Seen, parts
from proxy.energy.work import Progress, part


def stream(serial: int, first: float = 1.0, frames: int = 0, ended: float | None = None) -> Progress:
    return Progress("r", 1, "e", 0.0, first=first, frames=frames, ended=ended, serial=serial)


def frames_at(seen: Seen, t: float, *streams: Progress) -> list[float]:
    """Asked together, so that each must find his own."""
    return seen.frames_at(
        t,
        np.array([one.serial for one in streams]),
        np.array([one.first for one in streams], float),
        np.array([np.inf if one.ended is None else one.ended for one in streams]),
        np.array([one.frames for one in streams], float),
    ).tolist()


def test_frames_follow_the_marks() -> None:
    seen, ours, other = Seen(), stream(3), stream(7, first=2.2)
    for t, frames in ((1.5, 0), (2.0, 10), (3.0, 10)):
        ours.frames, other.frames = frames, 4 if t > 2.2 else 0
        seen.mark(t, [ours, other])
    ours.frames, ours.ended = 12, 4.0
    asked = (0.5, 1.0, 1.5, 2.0, 2.5, 3.5, 4.0, 9.0)
    assert [frames_at(seen, t, other, ours)[1] for t in asked] == [0, 0, 5, 10, 10, 11, 12, 12]
    assert [frames_at(seen, t, other, ours)[0] for t in (2.0, 2.6, 3.0, 9.0)] == [0, pytest.approx(2.0), 4, 4]


def test_a_mark_in_the_moment_of_the_end_hides_nothing() -> None:
    seen, one = Seen(), stream(1, frames=10)
    seen.mark(2.0, [one])
    one.frames, one.ended = 12, 2.0
    assert frames_at(seen, 2.0, one) == [12]


def test_a_running_stream_is_taken_as_far_as_it_was_seen() -> None:
    seen, one = Seen(), stream(1, frames=10)
    seen.mark(2.0, [one])
    one.frames = 99
    assert frames_at(seen, 5.0, one) == [10] and frames_at(Seen(), 5.0, one) == [0]


def test_the_marks_of_many_are_further_apart() -> None:
    few, many = Seen(), Seen()
    for tick in range(50):
        few.mark(tick / 10, [stream(1, frames=5)])
        many.mark(tick / 10, [stream(n, frames=5) for n in range(MANY + 1)])
    assert len(few._times) == 50 and 8 <= len(many._times) <= 10


def test_what_is_forgotten_was_not_needed() -> None:
    seen, one = Seen(), stream(1)
    for tick in range(1, 40):
        one.frames = 3 * tick
        seen.mark(1.0 + tick, [one])
    before = [frames_at(seen, t, one) for t in (30.0, 30.5, 35.0)]
    seen.forget(30.0)
    assert [frames_at(seen, t, one) for t in (30.0, 30.5, 35.0)] == before and len(seen._times) <= 12
    assert seen.latest(np.array([1, 2]))[1].tolist() == [117, 0]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), min_size=2, max_size=40),
    st.lists(st.floats(-1, 60), min_size=2, max_size=20),
)
def test_what_was_seen_only_grows_and_is_never_more_than_there_is(
    steps: list[tuple[int, int]], asked: list[float]
) -> None:
    """Streams begin and end as they like; each step is a reading, a second after the last."""
    seen, streams = Seen(), [stream(n, first=float(n), frames=0) for n in range(6)]
    for tick, (index, frames) in enumerate(steps, start=1):
        if frames == 0:
            streams[index].ended = streams[index].ended or tick - 0.5
        elif streams[index].ended is None:
            streams[index].first = streams[index].first if streams[index].frames else tick - 0.5
            streams[index].frames += frames
        seen.mark(float(tick), streams)
    rows = [frames_at(seen, t, *streams) for t in sorted(asked)]
    for before, after in pairwise(rows):
        assert all(0 <= a <= b <= one.frames for a, b, one in zip(before, after, streams, strict=True))


@settings(deadline=None)
@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(-9, 9))
def test_parts_are_columns_of_part(t: float, t0: float, t1: float) -> None:
    assert parts(t, np.array([t0]), np.array([t1])).tolist() == [pytest.approx(part(t, t0, t1))]
