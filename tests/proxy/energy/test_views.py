from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.floor import Floor
from proxy.energy.views import Moved, Views, moved

PARTS = st.tuples(*[st.integers(0, 10**12)] * 4)


def floor(workflow_uj: float, active_uj: float) -> Floor:
    return Floor.of({"watts": 100.0, "workflow_uj": workflow_uj, "active_uj": active_uj})


def test_by_hand() -> None:
    """A GPU that was busy for 600 of 1000 J beside a CPU that nobody works on: a PUE of 1.5."""
    devices = {
        "h1/gpu:0": Moved("attributed", 500_000_000, 400_000_000, 100_000_000, 0),
        "h1/cpu:0": Moved("attributed", 0, 200_000_000, 0, 0),
    }
    views = Views(devices, {"h1/gpu:0": floor(400e6, 300e6)}, {"h1": 1.5}, {"e1": "h1"})
    assert views.of_places({("h1", "attributed"): 50_000_000}) == {
        "active_joules": 50 * 300 / 400,
        "full_joules": 50 * 1.5 * 1200 / 600,
    }
    assert views.of_engines({("e1", "attributed"): 50_000_000}) == views.of_places({("h1", "attributed"): 50_000_000})
    assert views.of_engines({("gone", "attributed"): 50_000_000})["full_joules"] == 150.0, "there is but one host"


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["h1/gpu:0", "h1/cpu:0", "h2/gpu:0"]), PARTS, min_size=1), st.floats(1, 3))
def test_full_joules_of_everything_are_the_counters_times_the_pue(
    parts: dict[str, tuple[int, int, int, int]], pue: float
) -> None:
    devices = {name: Moved("attributed", *of_device) for name, of_device in parts.items()}
    views = Views(devices, {}, {"h1": pue}, {})
    for host in ("h1", "h2"):
        of_host = [one for name, one in devices.items() if name.startswith(host)]
        counter_uj = sum(sum(one[1:]) for one in of_host)
        busy = [one.workflow_uj for one in of_host] + [one.foreign_uj for one in of_host]
        if not any(busy):
            continue
        full = [views.of_places({(host, "attributed"): uj})["full_joules"] for uj in busy]
        whole = counter_uj / 1e6 * (pue if host == "h1" else 1.0)
        assert sum(joules or 0.0 for joules in full) == pytest.approx(whole, rel=1e-9, abs=1e-5)
        assert all((joules or 0.0) >= uj / 1e6 - 1e-6 for joules, uj in zip(full, busy, strict=True))


def test_an_estimate_carries_its_own_idle_and_no_counters() -> None:
    devices = {
        "h1/gpu:0": Moved("attributed", 100, 100, 0, 0),
        "h1/cpu:0": Moved("estimated", 100, 700, 0, 0),
    }
    views = Views(devices, {}, {}, {})
    assert views.factors["h1", "attributed"].full == 2.0 and views.factors["h1", "estimated"].full == 8.0
    both = {("h1", "attributed"): 10_000_000, ("h1", "estimated"): 10_000_000}
    assert views.of_places(both) == {"active_joules": None, "full_joules": 100.0}


@pytest.mark.parametrize(
    ("floors", "active"),
    [({}, None), ({"h1/gpu:0": floor(0.0, 0.0)}, None), ({"h1/gpu:0": floor(10.0, 4.0)}, 4.0)],
)
def test_above_the_floor_is_null_until_the_floor_is_known(floors: dict[str, Floor], active: float | None) -> None:
    devices = {"h1/gpu:0": Moved("attributed", 100, 100, 0, 0), "h1/gpu:1": Moved("attributed", 0, 100, 0, 0)}
    views = Views(devices, floors, {}, {})
    assert views.of_places({("h1", "attributed"): 10_000_000})["active_joules"] == active


def test_of_what_nobody_counted_there_is_no_view() -> None:
    views = Views({"h1/gpu:0": Moved("attributed", 100, 100, 0, 0)}, {}, {}, {})
    for nothing in (views.of_places({}), views.of_engines({}), views.of_places({("h9", "attributed"): 5})):
        assert nothing == {"active_joules": None, "full_joules": None}


def test_the_ledgers_balance_is_what_it_takes() -> None:
    row: dict[str, Any] = {"counter_j": 7.5, "workflow_j": 1.5, "idle_j": 3.0, "foreign_j": None, "gap_j": 1.0}
    assert moved({"h1/gpu:0": row | {"quality": "measured"}, "h1/cpu:0": row | {"quality": "emulated"}}) == {
        "h1/gpu:0": Moved("attributed", 1_500_000, 3_000_000, 0, 1_000_000),
        "h1/cpu:0": Moved("emulated", 1_500_000, 3_000_000, 0, 1_000_000),
    }
