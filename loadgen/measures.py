"""The figures of one load: what a result says in numbers, over a window of it. The paper's own and better ones.

Two accountings of joules stand side by side. *Attributed*: each run has the shares of its requests, and nothing is
counted twice. *As the paper*: what the whole machine drew over each run's interval, so that runs which overlap are
counted in each other (arXiv 2604.09611, section 4.3). Machine-wide joules over the window, counted once and with what
stood idle, are the third figure that both can be held against.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadgen.critical_path import critical_path
from loadgen.record import RequestRecord, Result, RunRecord, Sample

Window = Literal["whole", "steady"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure: what it is called in a report, its unit, and whether less of it is better (None: neither)."""

    title: str
    unit: str
    less_is_better: bool | None = True


MEASURES = {
    "latency_s": Measure("mean latency of a run", "s"),
    "ttft_s": Measure("mean time to first token", "s"),
    "itl_s": Measure("mean time between two tokens", "s"),
    "throughput_tokens_s": Measure("throughput while generating", "tokens/s", False),
    "throughput_window_tokens_s": Measure("throughput over the window", "tokens/s", False),
    "joules_per_run": Measure("joules of a run (attributed)", "J"),
    "joules_per_run_paper": Measure("joules of a run (machine-wide over its interval)", "J"),
    "joules_per_token": Measure("joules an output token (attributed)", "J/token"),
    "joules_per_token_paper": Measure("joules an output token (machine-wide over the runs' intervals)", "J/token"),
    "joules_per_token_machine": Measure("joules an output token (the machine's, counted once)", "J/token"),
    "gpu_joules_per_run": Measure("GPU joules of a run (attributed)", "J"),
    "cpu_joules_per_run": Measure("CPU joules of a run (attributed)", "J"),
    "dram_joules_per_run": Measure("DRAM joules of a run (attributed)", "J"),
    "joules_on_path": Measure("joules of a run on its critical path", "J"),
    "joules_off_path": Measure("joules of a run beside its critical path", "J"),
    "passed_share": Measure("share of runs that pass the check", "", False),
    "joules_per_passed_run": Measure("joules of all runs for each that passes the check", "J"),
    "machine_joules": Measure("joules of the machine over the window", "J"),
    "power_w": Measure("mean power of the machine", "W"),
    "gpu_busy_share": Measure("share of time that the GPU was busy", "", None),
    "gpu_busy_share_peak": Measure("highest busy share of the GPU in a second", "", None),
    "hit_rate": Measure("prefix-cache hit rate", "", False),
    "runs_counted": Measure("runs counted", "", None),
    "tokens_counted": Measure("output tokens counted", "", None),
}


@dataclass(frozen=True, slots=True)
class Check:
    """What a run must keep to if it is to be of use to its user; None: whatever it is. A failed run never is."""

    latency_s: float | None = None
    ttft_s: float | None = None  # of each of its requests

    def passes(self, run: RunRecord, requests: Sequence[RequestRecord]) -> bool:
        if run.outcome != "ok" or (self.latency_s is not None and run.latency_s > self.latency_s):
            return False
        waits_s = [request.ttft_s for request in requests]
        return self.ttft_s is None or all(wait_s is not None and wait_s <= self.ttft_s for wait_s in waits_s)


# The same figure by the paper's accounting and by ours.
ACCOUNTS = {
    "joules_per_token_paper": "joules_per_token",
    "joules_per_run_paper": "joules_per_run",
    "throughput_tokens_s": "throughput_window_tokens_s",
}


def measures(
    result: Result, window: Window = "whole", stream: int | None = None, check: Check | None = None
) -> dict[str, float | None]:
    """Every measure of a result; null where nobody can know it.

    Over its `whole` length, or over its `steady` window: the runs and requests that ended in it. With `stream`, of
    its runs alone; the machine-wide figures stay what they are.
    """
    begin_s, end_s = (0.0, result.load.seconds) if window == "whole" else result.load.window_s

    def counted(one: RunRecord | RequestRecord) -> bool:
        return begin_s <= one.ended_s <= end_s and one.outcome == "ok" and stream in (None, one.stream)

    runs = [run for run in result.runs if counted(run)]
    requests = [request for request in result.requests if counted(request)]
    tokens = _sum(request.output_tokens for request in requests)
    counters = Counters(result.samples)
    machine_j = counters.between(begin_s, end_s)
    own_j = _sum(request.energy.joules if request.energy else None for request in requests)
    intervals_j = [counters.between(run.intended_s, run.ended_s) for run in runs]
    paper_j, run_tokens = _sum(intervals_j), _sum(run.output_tokens for run in runs)
    by_run: dict[str, list[RequestRecord]] = {}
    for request in result.requests:
        by_run.setdefault(request.run, []).append(request)
    paths = _paths(runs, by_run)
    ended = [run for run in result.runs if begin_s <= run.ended_s <= end_s and stream in (None, run.stream)]
    passed = [run for run in ended if (check or Check()).passes(run, by_run.get(run.run, ()))]
    all_j = _sum(run.energy.joules if run.energy else None for run in ended)
    busy = [one.busy_share for one in result.samples if one.busy_share is not None and begin_s <= one.at_s <= end_s]
    found: dict[str, float | None] = {
        "latency_s": _mean(run.latency_s for run in runs),
        "ttft_s": _mean(request.ttft_s for request in requests),
        "itl_s": _mean(request.mean_gap_s for request in requests),
        "throughput_tokens_s": _ratio(tokens, generating_s(requests)),
        "throughput_window_tokens_s": _ratio(tokens, end_s - begin_s),
        "joules_per_run": _mean(run.energy.joules if run.energy else None for run in runs),
        "joules_per_run_paper": _mean(intervals_j),
        "joules_per_token": _ratio(own_j, tokens),
        "joules_per_token_paper": _ratio(paper_j, run_tokens),
        "joules_per_token_machine": _ratio(machine_j, tokens),
        "joules_on_path": _mean(on for on, _ in paths),
        "joules_off_path": _mean(off for _, off in paths),
        "passed_share": len(passed) / len(ended) if ended else None,
        "joules_per_passed_run": _ratio(all_j, len(passed)),
        "machine_joules": machine_j,
        "power_w": _ratio(machine_j, end_s - begin_s),
        "gpu_busy_share": _mean(busy),
        "gpu_busy_share_peak": max(busy, default=None),
        "hit_rate": _ratio(
            _sum(request.cached_tokens for request in requests), _sum(request.prompt_tokens for request in requests)
        ),
        "runs_counted": float(len(runs)),
        "tokens_counted": tokens,
    }
    for component in ("gpu", "cpu", "dram"):
        found[f"{component}_joules_per_run"] = _mean(
            run.energy.by_component.get(component) if run.energy else None for run in runs
        )
    return found


def generating_s(requests: Iterable[RequestRecord]) -> float | None:
    """Seconds in which at least one of these requests was between its first token and its end; null without any."""
    spans = sorted((request.first_s, request.ended_s) for request in requests if request.first_s is not None)
    total, until = 0.0, float("-inf")
    for begin_s, end_s in spans:
        total += max(0.0, end_s - max(begin_s, until))
        until = max(until, end_s)
    return total if spans else None


class Counters:
    """The devices' counters as one machine's, in between two samples as if power were constant there."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        devices: dict[str, list[tuple[float, float]]] = {}
        for sample in samples:
            devices.setdefault(sample.device, []).append((sample.at_s, sample.energy_j))
        self._series = [np.array(series).T for series in devices.values() if len(series) > 1]

    def between(self, begin_s: float, end_s: float) -> float | None:
        """Joules of all devices; null where there are no counters."""
        if not self._series:
            return None
        ends = (begin_s, end_s)
        return sum(float(np.subtract(*np.interp(ends, at_s, energy_j)[::-1])) for at_s, energy_j in self._series)


def _paths(
    runs: Iterable[RunRecord], by_run: Mapping[str, Sequence[RequestRecord]]
) -> list[tuple[float | None, float | None]]:
    """Joules on and off the critical path of each run."""
    found: list[tuple[float | None, float | None]] = []
    for run in runs:
        on = _sum(one.energy.joules if one.energy else None for one in critical_path(by_run.get(run.run, ())))
        whole = run.energy.joules if run.energy else None
        found.append((on, None if on is None or whole is None else max(0.0, whole - on)))
    return found


def _sum(values: Iterable[float | None]) -> float | None:
    """Null where one of them is not known, or there are none."""
    known = list(values)
    some = [float(value) for value in known if value is not None]
    return sum(some) if known and len(some) == len(known) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    total = _sum(known)
    return None if total is None else total / len(known)


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or not under else over / under
