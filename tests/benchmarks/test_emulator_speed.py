import pytest

from benchmarks.emulator_speed import measure


@pytest.mark.parametrize("load", ["poisson:5", "closed:8"])
def test_every_request_is_served_and_paid_for(load: str) -> None:
    found = measure(load, 40)
    assert found.requests == 40 and found.cpu_s > 0
    assert found.steps >= 200 * 40 / 8
    # Not below what 8 in flight cost a request, nor above what one alone does.
    assert 500 * 0.0044 * 200 / 8 < found.joules_request < 500 * 0.006 * 210
    assert measure(load, 40).virtual_s == found.virtual_s


def test_a_load_that_is_none_says_what_would_be() -> None:
    with pytest.raises(ValueError, match="poisson:RATE or closed:USERS, not 'bursts:3'"):
        measure("bursts:3", 10)
