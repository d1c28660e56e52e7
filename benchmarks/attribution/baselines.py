"""How others share a counter among requests, given the same windows and the same knowledge as our method."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from proxy.energy.beat import moved_at
from proxy.energy.trace import Scenario, Served
from proxy.energy.windows import WINDOW_S

Floats = NDArray[np.float64]

METHODS = {
    "tokens": "by prompt and output tokens",
    "output": "by output tokens",
    "time": "by seconds in flight",
    "whole GPU": "all that the GPU used meanwhile, to each",
}


def shared(scenario: Scenario) -> Mapping[str, dict[str, float]]:
    """Joules of each request by each method."""
    times, joules = _counter(scenario)
    edges = times[np.concatenate(([0], 1 + np.flatnonzero(np.diff(np.floor((times - times[0]) / WINDOW_S)))))]
    moved_j = np.diff(np.interp(edges, times, joules))
    served = scenario.served
    spent_s = np.array([_between(edges, one.t0, one.end or edges[-1]) for one in served]).reshape(len(served), -1)
    output = np.array([_output(edges, one) for one in served]).reshape(spent_s.shape)
    prompt = np.array([_prompt(edges, one) for one in served]).reshape(spent_s.shape)
    busy_j = moved_j * _busy(served, edges)
    weights = {"tokens": prompt + output, "output": output, "time": spent_s}
    found = {
        name: dict(zip((one.id for one in served), _split(busy_j, weight, spent_s), strict=True))
        for name, weight in weights.items()
    }
    whole = {one.id: float(np.diff(np.interp([one.t0, one.end or edges[-1]], times, joules))[0]) for one in served}
    return {**found, "whole GPU": whole}


def _counter(scenario: Scenario) -> tuple[Floats, Floats]:
    """The counter where it moved: (times, joules)."""
    read = [line.t for line in scenario.counters]
    energies_uj = [line.energy_uj for line in scenario.counters]
    times, first = np.unique(np.array(moved_at(read, energies_uj)), return_index=True)
    return times, np.array(energies_uj)[first] / 1e6


def _split(busy_j: Floats, weights: Floats, otherwise: Floats) -> list[float]:
    """Each request's joules: every window by its weights, and where nobody has any, by seconds."""
    sums = weights.sum(axis=0)
    used = np.where(sums > 0, weights, otherwise)
    sums = used.sum(axis=0)
    return (used * np.divide(busy_j, sums, out=np.zeros_like(sums), where=sums > 0)).sum(axis=1).tolist()


def _between(edges: Floats, begin: float, end: float) -> Floats:
    return np.maximum(0.0, np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin))


def _output(edges: Floats, one: Served) -> Floats:
    tokens = len(one.ticks) if one.output_tokens is None else one.output_tokens
    return np.diff(np.searchsorted(one.ticks, edges, "right")) * (tokens / max(1, len(one.ticks)))


def _prompt(edges: Floats, one: Served) -> Floats:
    first = one.first or one.end or edges[-1]
    return _between(edges, one.t0, first) * ((one.prompt_tokens or 0) / max(1e-9, first - one.t0))


def _busy(served: list[Served], edges: Floats) -> Floats:
    """The part of each window with anything in flight."""
    seconds, until = np.zeros(len(edges) - 1), edges[0]
    for begin, end in sorted((one.t0, one.end or edges[-1]) for one in served):
        seconds += _between(edges, max(begin, until), end)
        until = max(until, end)
    return seconds / np.diff(edges)
