from dataclasses import replace

from benchmarks.loadgen import Seen, bars_of, seen
from loadgen.arrivals import Closed
from loadgen.request import Request
from loadgen.schedule import Load, Stream
from loadgen.virtual import run
from loadgen.virtual_host import Host

GOOD = Seen(10_000, 500.0, 0, 200_000, 0.5, 5.0, 40.0, 3.0, 0.4, True)


def test_a_load_in_its_middle() -> None:
    result = run(Load((Stream((Request(100, 20),), Closed(4)),), seconds=30.0), Host())
    found = seen(result, margin_s=5.0)
    middle = sum(5.0 <= one.ended_s <= max(r.ended_s for r in result.requests) - 5.0 for one in result.requests)
    assert found.requests == len(result.requests) > middle and found.output_tokens == 20 * found.requests
    assert abs(found.requests_s - middle / (result.load.seconds - 10)) < 0.1 and found.valid


def test_each_bar_can_fail() -> None:
    good = {"driver": GOOD, "locust": GOOD, "one worker": GOOD, "two workers": replace(GOOD, requests_s=700.0)}
    assert [bar.met for bar in bars_of(good)] == [True, True, True]
    late = good | {"driver": replace(GOOD, start_delay_p99_ms=20.0), "locust": replace(GOOD, failed=1)}
    assert [bar.met for bar in bars_of(late)] == [False, False, True]
    assert not bars_of(good | {"two workers": GOOD})[2].met
