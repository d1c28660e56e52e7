import pytest

from loadgen.record import Outcome, RequestRecord
from loadgen.validity import Bounds, punctuality, reasons


def sent(delay_s: float, latency_s: float = 0.1, outcome: Outcome = "ok") -> RequestRecord:
    return RequestRecord(
        stream=0,
        number=0,
        workflow="w",
        run="r",
        step="s",
        node="n",
        intended_s=1.0,
        started_s=1.0 + delay_s,
        ended_s=1.0 + delay_s + latency_s,
        max_tokens=1,
        outcome=outcome,
    )


def test_a_punctual_load_is_valid() -> None:
    requests = [sent(0.001)] * 99 + [sent(3.0)]
    assert reasons(requests[:99], lag_p99_s=0.01, cpu_share=0.5) == ()
    seen = punctuality(requests)
    assert (seen.p50_s, seen.max_s) == pytest.approx((0.001, 3.0)) and punctuality([]).p99_s is None


@pytest.mark.parametrize(
    ("requests", "lag_s", "cpu", "said"),
    [
        ([], None, None, "no request"),
        ([sent(0.001)] * 95 + [sent(0.2)] * 5, None, None, "sent 200 ms late (p99), 20 are allowed"),
        ([sent(0.0)] * 10, 0.3, None, "woke up 300 ms late"),
        ([sent(0.0)] * 10, None, 0.97, "97% of a core"),
        ([sent(0.0)] * 98 + [sent(0.0, outcome="failed")] * 2, None, None, "2 of 100 requests failed"),
    ],
)
def test_what_spoils_a_load_is_named(
    requests: list[RequestRecord], lag_s: float | None, cpu: float | None, said: str
) -> None:
    (reason,) = reasons(requests, lag_s, cpu)
    assert said in reason


def test_lateness_is_seen_beside_the_latency_that_it_disturbs() -> None:
    requests = [sent(0.2, latency_s=10.0)] * 20
    assert reasons(requests, lag_p99_s=0.2) == ()
    assert len(reasons(requests, lag_p99_s=0.2, bounds=Bounds(late_share=0.0))) == 2


def test_what_the_end_cut_off_is_no_failure() -> None:
    assert reasons([sent(0.0)] * 5 + [sent(0.0, outcome="cut")] * 5) == ()
