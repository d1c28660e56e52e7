import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from emulator.core.settings import OutOfMemory
from loadgen.arrivals import Arrivals, Closed, Poisson
from loadgen.coding import Coding
from loadgen.composite import Composite
from loadgen.prompt import Piece
from loadgen.record import Result
from loadgen.request import Request
from loadgen.schedule import Load, Schedule, Stream
from loadgen.search import Search
from loadgen.summarize import Summarize
from loadgen.virtual import run
from loadgen.virtual_host import Host
from loadgen.workload import Call, Run, Workload

REPEATED = """
from loadgen.arrivals import Closed, Poisson
from loadgen.coding import Coding
from loadgen.schedule import Load, Stream
from loadgen.search import Search
from loadgen.virtual import run
from loadgen.virtual_host import Host
streams = (Stream((Coding.paper(),), Closed(3), 4), Stream((Search.paper(),), Poisson(0.5), 6))
print(run(Load(streams, seed=7), Host(in_flight=4)))
"""


def load(workload: Workload, arrivals: Arrivals, runs: int | None = None, seconds: float | None = None) -> Load:
    return Load((Stream((workload,), arrivals, runs),), seed=3, seconds=seconds)


def joules(result: Result) -> float:
    return sum(request.energy.joules for request in result.requests if request.energy)


def counters_j(result: Result) -> float:
    return sum({sample.device: sample.energy_j for sample in result.samples}.values())


def test_it_repeats_bit_for_bit_in_any_process() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", REPEATED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and b"joules" in said.pop()


@pytest.mark.parametrize("workload", [Search.paper(), Summarize.paper(), Coding.paper(), Composite.paper()])
def test_every_workload_is_cheaper_in_company_and_its_calls_keep_their_order(workload: Workload) -> None:
    alone, together = (run(load(workload, Closed(16), 8), Host(in_flight=places)) for places in (1, 8))
    assert joules(together) < 0.6 * joules(alone)
    assert len(together.runs) == 8 and together.load.valid and len(alone.requests) == len(together.requests)
    ended = {(request.run, request.node): request.ended_s for request in together.requests}
    for request in together.requests:
        waited = [ended[request.run, node] for node in (*request.parents, *request.after)]
        assert request.started_s == request.intended_s == max(waited, default=request.intended_s)
        assert request.output_tokens == request.max_tokens
        assert request.first_s is not None and request.intended_s < request.first_s < request.ended_s
    for one in together.runs:
        own = [request for request in together.requests if request.run == one.run]
        assert one.ended_s == max(request.ended_s for request in own) and one.requests == len(own)
        assert one.energy and one.energy.joules == pytest.approx(sum(r.energy.joules for r in own if r.energy))


def test_no_joule_is_lost_and_none_is_given_twice() -> None:
    result = run(load(Coding.paper(), Closed(8), 8), Host())
    assert joules(result) == pytest.approx(counters_j(result), rel=1e-3)  # half a millisecond after each answer is idle
    assert joules(result) <= counters_j(result)
    for request in result.requests:
        energy = request.energy
        assert energy and 0 < energy.joules_low <= energy.joules * 1.000001 <= energy.joules_high * 1.000002
        assert energy.active_joules is not None and 0 < energy.active_joules < energy.by_component["gpu"]
        assert sum(energy.by_component.values()) == pytest.approx(energy.joules) and energy.quality == "emulated"


def test_equal_requests_cost_the_same_and_longer_ones_more() -> None:
    equal = run(load(Request(600, 100), Closed(6), 6), Host())
    costs = [request.energy.joules for request in equal.requests if request.energy]
    assert len(costs) == 6 and max(costs) < 1.03 * min(costs)
    both = Load((Stream((Request(600, 100),), Closed(1), 1), Stream((Request(600, 400),), Closed(1), 1)))
    short, long = run(both, Host()).runs
    assert short.energy and long.energy and long.energy.joules > 3 * short.energy.joules


def test_what_stands_idle_is_nobodys() -> None:
    result = run(load(Request(100, 10), Poisson(0.05), 5), Host())
    assert joules(result) < 0.2 * counters_j(result)


def test_open_arrivals_are_those_of_the_schedule_however_long_answers_take() -> None:
    busy = load(Search.paper(), Poisson(5.0), seconds=10)
    result = run(busy, Host(in_flight=2))
    intended = sorted((one.number, one.intended_s) for one in result.runs)
    assert intended == [(start.number, start.at_s) for start in Schedule(busy).arrivals()]
    assert result.load.seconds > 30 and result.load.window_s[1] <= 10


def test_the_gate_lets_in_so_many() -> None:
    result = run(load(Request(200, 50), Closed(5), 12), Host(in_flight=1))
    spans = sorted((request.first_s or 0, request.ended_s) for request in result.requests)
    assert len(spans) == 12 and all(end < first for (_, end), (first, _) in pairwise(spans))
    assert max(request.latency_s for request in result.requests) > 4 * min(r.latency_s for r in result.requests)


def test_knobs_of_the_host_turn_something() -> None:
    work = load(Search.paper(), Closed(8), 8)
    free = run(work, Host())
    capped, slow, narrow, cold = (
        run(work, host)
        for host in [Host(power_limit_w=250), Host(sm_mhz=800), Host(max_num_seqs=2), Host(enable_prefix_caching=False)]
    )
    assert capped.load.seconds > free.load.seconds and slow.load.seconds > free.load.seconds
    assert joules(narrow) > 1.5 * joules(free)
    assert sum(request.cached_tokens or 0 for request in cold.requests) == 0
    hits = defaultdict(int)
    for request in free.requests:
        hits[request.node == "query-1"] += request.cached_tokens or 0
    assert hits[False] > 2000 and {sample.power_limit_w for sample in capped.samples} == {250, None}


def test_users_think_and_stay_as_long_as_the_load() -> None:
    result = run(load(Request(50, 5), Closed(2, think_s=4.0), seconds=9), Host())
    by_number = sorted(one.intended_s for one in result.runs)
    assert len(by_number) == 6 and by_number[2] > 4.0 and by_number[4] > 8.0


def test_counters_are_sampled_every_second() -> None:
    result = run(load(Request(500, 400), Closed(4), 8), Host())
    gpu = [sample for sample in result.samples if sample.device == "gpu:0"]
    assert [sample.at_s for sample in gpu[:-1]] == pytest.approx(range(len(gpu) - 1))
    assert all(before.energy_j < after.energy_j for before, after in pairwise(gpu))
    assert all(sample.busy_share is None or 0.9 < sample.busy_share <= 1 for sample in gpu[1:])


class Long(Request):
    """Now and then a run with a call that no context can hold, beside one that it can."""

    def plan(self, rng: Random, number: int = 0) -> Run:
        if number % 3:
            return super().plan(rng, number)
        pieces = (Piece("x", 5000),)
        return Run(self.name, (Call("fine", "a", 300, (Piece("y", 100),)), Call("long", "b", 5, pieces)))


@pytest.mark.parametrize("places", [1, 2, None])
def test_a_refused_call_ends_its_run_alone(places: int | None) -> None:
    result = run(load(Long(100, 20), Closed(2), 9), Host(in_flight=places, max_model_len=4096))
    outcomes = {one.number: one.outcome for one in result.runs}
    assert outcomes == {number: "ok" if number % 3 else "failed" for number in range(9)}
    assert not result.load.valid and "failed" in result.load.reasons[0]
    assert any("leaves no room" in (request.error or "") for request in result.requests)
    if places is None:
        cut = [request for request in result.requests if request.outcome == "cut"]
        assert len(cut) == 3 and all(request.energy and request.energy.joules > 0 for request in cut)


def test_what_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an end"):
        run(load(Search.paper(), Closed(1)), Host())
    with pytest.raises(OutOfMemory):
        run(load(Search.paper(), Closed(1), 1), Host(model="llama-2-70b"))
    with pytest.raises(ValueError, match="got 0"):
        Host(in_flight=0)
    with pytest.raises(ValueError, match="sample_s"):
        run(load(Search.paper(), Closed(1), 1), Host(), sample_s=0)


def test_a_salt_changes_nothing_but_what_others_find() -> None:
    work = load(Search.paper(), Closed(4), 4)
    plain, salted = (run(work, Host(), cache_salt=salt) for salt in (None, "repeat 2"))
    assert salted.load.cache_salt == "repeat 2"
    assert replace(salted, load=plain.load) == plain
