from dataclasses import replace

import pytest

from loadgen.arrivals import Closed
from loadgen.coding import Coding
from loadgen.measures import ACCOUNTS, MEASURES, Check, Counters, generating_s, measures
from loadgen.record import Energy, LoadRecord, RequestRecord, Result, Sample, of_run
from loadgen.request import Request
from loadgen.schedule import Load, Stream
from loadgen.search import Search
from loadgen.virtual import run
from loadgen.virtual_host import Host


def energy(joules: float) -> Energy:
    parts = {"gpu": 0.75 * joules, "cpu": 0.25 * joules}
    return Energy(joules=joules, joules_low=joules, joules_high=joules, quality="attributed", by_component=parts)


def request(number: int, node: str, begin_s: float, end_s: float, joules: float, parents=()) -> RequestRecord:
    return RequestRecord(
        stream=0,
        number=number,
        workflow="w",
        run=f"r{number}",
        step="s",
        node=node,
        parents=parents,
        intended_s=begin_s,
        started_s=begin_s,
        first_s=begin_s + 1,
        ended_s=end_s,
        max_tokens=10,
        prompt_tokens=100,
        cached_tokens=25,
        output_tokens=10,
        energy=energy(joules),
    )


@pytest.fixture
def result() -> Result:
    """Two runs that overlap from 5 to 10 s, on a machine of 100 W of which the GPU draws 80."""
    requests = (request(0, "a", 0, 5, 300), request(0, "b", 5, 10, 150, ("a",)), request(1, "c", 5, 15, 350))
    runs = tuple(
        of_run(
            stream=0,
            number=number,
            workflow="w",
            run=f"r{number}",
            intended_s=begin_s,
            ended_s=end_s,
            outcome="ok",
            requests=[one for one in requests if one.number == number],
        )
        for number, begin_s, end_s in ((0, 0.0, 10.0), (1, 5.0, 15.0))
    )
    samples = tuple(
        Sample(at_s=at, device=device, component=device, energy_j=watts * at, quality="measured", busy_share=busy)
        for at in (0.0, 8.0, 16.0)
        for device, watts, busy in (("gpu", 80.0, 0.9), ("cpu", 20.0, None))
    )
    load = LoadRecord(driver="http", load={}, seconds=16.0, window_s=(2.0, 10.0), exact_lengths=True, valid=True)
    return Result(load, requests, runs, samples)


def test_the_figures_of_a_load(result: Result) -> None:
    found = measures(result)
    assert found.keys() == MEASURES.keys() and ACCOUNTS.keys() | ACCOUNTS.values() <= MEASURES.keys()
    expected = {
        "latency_s": 10.0,
        "ttft_s": 1.0,
        "itl_s": (4 / 9 + 4 / 9 + 9 / 9) / 3,
        "throughput_tokens_s": 30 / (4 + 9),  # 1-5 s, 6-15 s
        "throughput_window_tokens_s": 30 / 16,
        "joules_per_run": 400.0,
        "joules_per_run_paper": 1000.0,  # 10 s of 100 W each, 500 J of them twice
        "joules_per_token": 800 / 30,
        "joules_per_token_paper": 2000 / 30,
        "joules_per_token_machine": 1600 / 30,
        "gpu_joules_per_run": 300.0,
        "cpu_joules_per_run": 100.0,
        "dram_joules_per_run": None,
        "joules_on_path": 400.0,
        "joules_off_path": 0.0,
        "passed_share": 1.0,
        "joules_per_passed_run": 400.0,
        "machine_joules": 1600.0,
        "power_w": 100.0,
        "gpu_busy_share": 0.9,
        "gpu_busy_share_peak": 0.9,
        "hit_rate": 0.25,
        "runs_counted": 2.0,
        "tokens_counted": 30.0,
    }
    assert found == {name: value if value is None else pytest.approx(value) for name, value in expected.items()}


def test_joules_for_each_run_that_passes_a_check_count_those_that_do_not(result: Result) -> None:
    def found(check: Check, result: Result = result) -> list[float | None]:
        figures = measures(result, check=check)
        return [figures["passed_share"], figures["joules_per_passed_run"]]

    assert found(Check(latency_s=10.0, ttft_s=1.0)) == [1.0, 400.0]
    assert found(Check(latency_s=9.9)) == found(Check(ttft_s=0.9)) == [0.0, None]
    assert found(Check(), replace(result, runs=(replace(result.runs[0], outcome="failed"), result.runs[1]))) == [
        0.5,
        800.0,
    ]


def test_the_steady_window_counts_what_ended_in_it(result: Result) -> None:
    found = measures(result, "steady")
    assert found["runs_counted"] == 1 and found["tokens_counted"] == 20 and found["joules_per_token"] == 450 / 20
    assert found["machine_joules"] == pytest.approx(800) and found["power_w"] == pytest.approx(100)


def test_what_nobody_knows_is_null(result: Result) -> None:
    unknown = replace(result.requests[0], energy=None, cached_tokens=None)
    found = measures(replace(result, requests=(unknown, *result.requests[1:]), samples=()))
    names = ("joules_per_token", "hit_rate", "machine_joules", "joules_per_run_paper", "gpu_busy_share")
    assert [found[name] for name in names] == [None] * 5
    assert measures(result, stream=7)["latency_s"] is None


def test_generating_seconds_are_counted_once(result: Result) -> None:
    assert generating_s(result.requests) == pytest.approx(13) and generating_s(()) is None
    assert Counters(result.samples).between(3, 4) == pytest.approx(100)


def test_side_by_side_workflows_are_told_apart_and_the_critical_path_of_a_real_run_costs_less_than_all_of_it() -> None:
    load = Load((Stream((Coding.paper(),), Closed(1), 1), Stream((Search.paper(),), Closed(1), 1)), seed=1)
    result = run(load, Host())
    both, coding, search = (measures(result, stream=stream) for stream in (None, 0, 1))
    assert (both["tokens_counted"] or 0) == (coding["tokens_counted"] or 0) + (search["tokens_counted"] or 0)
    on, off, whole = (coding[name] or 0 for name in ("joules_on_path", "joules_off_path", "joules_per_run"))
    assert 0 < on < 0.6 * whole and on + off == pytest.approx(whole)
    assert search["joules_off_path"] == 0


def test_overlapping_runs_cost_more_by_the_papers_accounting() -> None:
    result = run(Load((Stream((Request(500, 100),), Closed(8), 8),)), Host())
    found = measures(result)
    assert (found["joules_per_run_paper"] or 0) > 6 * (found["joules_per_run"] or 0)
    assert (found["joules_per_token_machine"] or 0) == pytest.approx(found["joules_per_token"] or 0, rel=0.1)
