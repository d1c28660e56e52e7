import json
import logging
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.control.actuator import Actuator, Effect

GPU, OTHER = "h1/gpu:0", "h1/gpu:1"
MakeKnob = Callable[..., Any]


def test_sets_reads_back_and_restores(make_knob: MakeKnob, path: Path) -> None:
    knob = make_knob(650.0)
    knob.ceiling_w = 380.0
    actuator = Actuator({GPU: knob}, path)
    (applied,) = actuator.apply({GPU: 400.0}, now=0.0)
    assert (applied.effect, applied.wanted, applied.enforced) == (Effect.SET, 400.0, 380.0)
    assert knob.limit_w == 400.0
    (restored,) = actuator.restore()
    assert (restored.effect, restored.wanted, knob.limit_w) == (Effect.BACK, None, 650.0)
    assert not path.exists()


def test_nothing_is_applied_after_restore(make_knob: MakeKnob, path: Path) -> None:
    knob = make_knob()
    actuator = Actuator({GPU: knob}, path)
    actuator.restore()
    assert actuator.apply({GPU: 400.0}, now=0.0) == []
    assert knob.written_w == [] and not path.exists()


def test_what_was_found_is_on_disk_before_the_first_write(make_knob: MakeKnob, path: Path) -> None:
    knob = make_knob(650.0, uuid="GPU-7")
    on_disk: list[Any] = []
    real_set = knob.write
    knob.write = lambda limit_w: (on_disk.append(json.loads(path.read_text())), real_set(limit_w))
    Actuator({GPU: knob}, path).apply({GPU: 400.0}, now=5.0)
    (found,) = on_disk[0]["found"]
    assert found == {"device": GPU, "uuid": "GPU-7", "value": 650.0, "t": 5.0, "ours": [400.0]}


def test_the_same_decision_writes_once(make_knob: MakeKnob, path: Path) -> None:
    knob = make_knob()
    actuator = Actuator({GPU: knob}, path)
    effects = [actuator.apply({GPU: 400.0}, now=float(t))[0].effect for t in range(30)]
    assert effects == [Effect.SET] + [Effect.KEPT] * 29
    assert knob.written_w == [400.0]


def test_writes_are_a_dwell_time_apart(make_knob: MakeKnob, path: Path) -> None:
    knob = make_knob()
    actuator = Actuator({GPU: knob}, path, dwell_s=10.0)
    assert [
        actuator.apply({GPU: watts}, now)[0].effect for now, watts in ((0.0, 400.0), (9.9, 300.0), (10.0, 300.0))
    ] == [
        Effect.SET,
        Effect.WAITING,
        Effect.SET,
    ]
    assert [actuator.apply({}, now)[0].effect for now in (19.0, 20.0)] == [Effect.WAITING, Effect.BACK]
    assert knob.written_w == [400.0, 300.0, 700.0]


def test_setting_back_does_not_wait(make_knob: MakeKnob, path: Path) -> None:
    knob = make_knob()
    actuator = Actuator({GPU: knob}, path)
    actuator.apply({GPU: 400.0}, 0.0)
    assert [applied.effect for applied in actuator.set_back()] == [Effect.BACK] and knob.limit_w == 700.0
    assert actuator.set_back() == [] and not path.exists()
    assert actuator.apply({GPU: 400.0}, 10.0)[0].effect is Effect.SET


def test_a_device_no_longer_named_is_set_back_alone(make_knob: MakeKnob, path: Path) -> None:
    knobs = {GPU: make_knob(600.0), OTHER: make_knob(500.0)}
    actuator = Actuator(knobs, path)
    actuator.apply({GPU: 400.0, OTHER: 300.0}, now=0.0)
    effects = {applied.device: applied.effect for applied in actuator.apply({OTHER: 300.0}, now=20.0)}
    assert effects == {GPU: Effect.BACK, OTHER: Effect.KEPT}
    assert (knobs[GPU].limit_w, knobs[OTHER].limit_w) == (600.0, 300.0)
    assert [found["device"] for found in json.loads(path.read_text())["found"]] == [OTHER]
    assert actuator.apply({OTHER: 300.0}, now=40.0)[0].effect is Effect.KEPT


@pytest.mark.parametrize("limit_w", [199.0, 701.0, 0.0, -1.0, math.nan, math.inf])
def test_out_of_range_is_refused_and_never_clamped(
    make_knob: MakeKnob, path: Path, limit_w: float, caplog: pytest.LogCaptureFixture
) -> None:
    knob = make_knob()
    actuator = Actuator({GPU: knob}, path)
    for now in range(3):
        (applied,) = actuator.apply({GPU: limit_w}, float(now))
        assert applied.effect is Effect.REFUSED and applied.reason
    assert knob.written_w == [] and not path.exists()
    assert len(caplog.records) == 1


def test_an_unknown_device_is_refused(make_knob: MakeKnob, path: Path) -> None:
    (applied,) = Actuator({GPU: make_knob()}, path).apply({"h9/gpu:0": 400.0}, 0.0)
    assert (applied.effect, applied.reason) == (Effect.REFUSED, "no power limit is known of it; known: h1/gpu:0")


def test_no_privilege_is_said_once_and_nothing_is_left(
    make_knob: MakeKnob, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    knobs = {GPU: make_knob(), OTHER: make_knob()}
    for knob in knobs.values():
        knob.allowed = False
    actuator = Actuator(knobs, path)
    for now in range(0, 100, 10):
        assert {a.effect for a in actuator.apply({GPU: 400.0, OTHER: 400.0}, float(now))} == {Effect.REFUSED}
    assert [record.getMessage() for record in caplog.records] == [
        f"power limit of {GPU}: not allowed to set power limits, going on without (Insufficient Permissions)"
    ]
    assert not path.exists() and actuator.restore() == []


def test_a_lost_gpu_is_said_once_and_set_back_when_it_returns(
    make_knob: MakeKnob, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    knob = make_knob()
    actuator = Actuator({GPU: knob}, path)
    actuator.apply({GPU: 400.0}, 0.0)
    knob.lost = True
    assert [actuator.apply({GPU: 300.0}, t)[0].effect for t in (20.0, 40.0)] == [Effect.REFUSED] * 2
    assert len(caplog.records) == 1
    assert actuator.restore()[0].effect is Effect.REFUSED and path.exists()
    knob.lost = False
    assert actuator.restore()[0].effect is Effect.BACK
    assert knob.limit_w == 700.0 and not path.exists()


def test_what_somebody_else_set_since_is_left_alone(make_knob: MakeKnob, path: Path) -> None:
    knob = make_knob()
    actuator = Actuator({GPU: knob}, path)
    actuator.apply({GPU: 400.0}, 0.0)
    knob.limit_w = 550.0
    (restored,) = actuator.restore()
    assert "550 W by somebody else" in restored.reason
    assert knob.limit_w == 550.0 and not path.exists()


def test_a_driver_that_rounds_is_still_set_back(make_knob: MakeKnob, path: Path) -> None:
    knob = make_knob()
    knob.step_w = 25.0
    actuator = Actuator({GPU: knob}, path)
    actuator.apply({GPU: 410.0}, 0.0)
    assert knob.limit_w == 400.0
    actuator.restore()
    assert knob.limit_w == 700.0


def test_without_a_place_to_write_nothing_is_set(make_knob: MakeKnob, tmp_path: Path) -> None:
    knob = make_knob()
    (tmp_path / "state").write_text("a file where the folder should be")
    (applied,) = Actuator({GPU: knob}, tmp_path / "state/restore.json").apply({GPU: 400.0}, 0.0)
    assert applied.effect is Effect.REFUSED and "cannot be written down" in applied.reason
    assert knob.written_w == []


def test_two_gateways_never_hold_the_limits_together(make_knob: MakeKnob, path: Path) -> None:
    knob = make_knob()
    first, second = Actuator({GPU: knob}, path), Actuator({GPU: knob}, path)
    first.apply({GPU: 400.0}, 0.0)
    (applied,) = second.apply({GPU: 300.0}, 1.0)
    assert applied.effect is Effect.REFUSED and "another process" in applied.reason
    first.restore()
    assert second.apply({GPU: 300.0}, 20.0)[0].effect is Effect.SET
    second.restore()
    assert knob.limit_w == 700.0


steps = st.lists(
    st.tuples(st.sampled_from([None, 199.0, 200.0, 350.0, 400.0, 700.0]), st.booleans(), st.floats(0, 30)), max_size=20
)


@settings(max_examples=50, deadline=None)
@given(found_w=st.sampled_from([200.0, 450.0, 700.0]), steps=steps)
def test_whatever_happens_it_ends_as_it_was_found(
    tmp_path_factory: pytest.TempPathFactory, make_knob: MakeKnob, found_w: float, steps: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("any") / "restore.json"
    knob, now = make_knob(found_w), 0.0
    actuator = Actuator({GPU: knob}, path)
    written_t: list[float] = []
    for limit_w, lost, pause_s in steps:
        before = len(knob.written_w)
        knob.lost = lost
        actuator.apply({} if limit_w is None else {GPU: limit_w}, now)
        written_t += [now] * (len(knob.written_w) - before)
        now += pause_s
    knob.lost = False
    actuator.restore()
    assert knob.limit_w == found_w and not path.exists()
    assert all(later - earlier >= 10.0 for earlier, later in pairwise(written_t))
