"""The stage of the overhead benchmark: all that is timed, and books that balance (which it asserts itself)."""

import pytest

from benchmarks.overhead import measure
from proxy import clock


def test_the_parts_make_the_whole_and_the_clock_is_given_back() -> None:
    real = clock.now
    found = measure(20, 10)
    assert clock.now is real
    assert {"settling", "ledger", "booking shares", "the engine's metrics"} < found.keys()
    assert found["all"] == pytest.approx(sum(part for name, part in found.items() if name != "all"))
    assert min(found[name] for name in found if name != "all else") >= 0 < found["ledger"]
