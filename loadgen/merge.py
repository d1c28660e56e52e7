"""Several workers' results as one: what a master writes of a load that its workers shared."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from loadgen.record import LoadRecord, RequestRecord, Result, RunRecord
from loadgen.validity import Bounds, punctuality, reasons

R = TypeVar("R", RequestRecord, RunRecord)


def merge(results: Sequence[Result], bounds: Bounds | None = None) -> Result:
    """One result, in the time of the worker that began first. Samples are the first worker's that has some."""
    if not results:
        raise ValueError("there is no result to merge")
    loads = [result.load for result in results]
    began = [load.began_unix_s or 0.0 for load in loads]
    shifts = [at - min(began) for at in began]
    pairs = list(zip(results, shifts, strict=True))
    requests = [_later(one, shift) for result, shift in pairs for one in result.requests]
    runs = [_later(one, shift) for result, shift in pairs for one in result.runs]
    requests.sort(key=lambda request: request.ended_s)
    runs.sort(key=lambda run: run.ended_s)
    samples = next(
        ([replace(one, at_s=one.at_s + shift) for one in result.samples] for result, shift in pairs if result.samples),
        [],
    )
    late = punctuality(requests)
    lag_s = max((load.lag_p99_s for load in loads if load.lag_p99_s is not None), default=None)
    cpu_share = max((load.cpu_share for load in loads if load.cpu_share is not None), default=None)
    why = reasons(requests, lag_s, cpu_share, bounds)
    whole: LoadRecord = replace(
        loads[0],
        began_unix_s=min(began),
        seconds=max(load.seconds + shift for load, shift in zip(loads, shifts, strict=True)),
        window_s=(max(load.window_s[0] for load in loads), min(load.window_s[1] for load in loads)),
        exact_lengths=all(load.exact_lengths for load in loads),
        start_delay_p50_s=late.p50_s,
        start_delay_p99_s=late.p99_s,
        start_delay_max_s=late.max_s,
        lag_p99_s=lag_s,
        cpu_share=cpu_share,
        valid=not why,
        reasons=why,
        facts={**loads[0].facts, "workers": [load.facts for load in loads]},
    )
    return Result(whole, tuple(requests), tuple(runs), tuple(samples))


def _later(one: R, shift_s: float) -> R:
    if not shift_s:
        return one
    moved = {"intended_s": one.intended_s + shift_s, "started_s": one.started_s + shift_s}
    if isinstance(one, RequestRecord) and one.first_s is not None:
        moved["first_s"] = one.first_s + shift_s
    return replace(one, ended_s=one.ended_s + shift_s, **moved)
