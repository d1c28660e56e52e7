"""Means with intervals, and what changed between two sets of repeats.

Repeats are few (three to ten) and about normal, so the usual interval is Student's t; the bootstrap (bias-corrected and
accelerated) asks for no shape and is there for those who want it. Changes are ratios: the t interval of the
differences of logarithms, which says "12 % less" of joules, seconds and tokens alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

Method = Literal["t", "bootstrap"]
CONFIDENCE = 0.95
RESAMPLES = 5000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of `n` repeats and where it lies with 95 % confidence; one repeat says nothing of that (null)."""

    mean: float
    low: float | None
    high: float | None
    n: int
    method: Method = "t"


@dataclass(frozen=True, slots=True)
class Change:
    """From one set of repeats to another, as a share of the first: -0.12 is 12 % less.

    `p` is that of no change at all (two-sided); null, as the interval is, where there are too few repeats. `paired`:
    repeat by repeat, which takes out what both have in common.
    """

    share: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    paired: bool


def mean_interval(values: Sequence[float], method: Method = "t") -> Interval:
    """The mean and its interval. Raises ValueError without values."""
    if not values:
        raise ValueError("there is no mean of no values")
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, None, None, n, method)
    if min(values) == max(values):
        return Interval(mean, mean, mean, n, method)
    if method == "bootstrap":
        return Interval(mean, *_bootstrap(values), n, method)
    half = _quantile(n - 1) * float(np.std(values, ddof=1)) / sqrt(n)
    return Interval(mean, mean - half, mean + half, n, method)


def paired_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """The change between repeats that belong together. Raises ValueError unless there are as many of both, above 0."""
    if len(before) != len(after):
        raise ValueError(f"repeats that belong together are as many, got {len(before)} and {len(after)}")
    _positive(before, after)
    logs = np.log(after) - np.log(before)
    n, mean = len(logs), float(np.mean(logs))
    if n < 2:
        return Change(exp(mean) - 1, None, None, None, n, True)
    error = float(np.std(logs, ddof=1)) / sqrt(n)
    return _change(mean, error, n - 1, n, paired=True)


def unpaired_change(before: Sequence[float], after: Sequence[float]) -> Change:
    """The change between repeats that do not (Welch's t of the logarithms). Raises ValueError as above."""
    _positive(before, after)
    first, second = np.log(before), np.log(after)
    n, mean = min(len(first), len(second)), float(np.mean(second) - np.mean(first))
    if n < 2:
        return Change(exp(mean) - 1, None, None, None, n, False)
    parts = [float(np.var(logs, ddof=1)) / len(logs) for logs in (first, second)]
    total = sum(parts)
    freedom = [part**2 / (len(logs) - 1) for part, logs in zip(parts, (first, second), strict=True)]
    return _change(mean, sqrt(total), total**2 / sum(freedom) if total else 1.0, n, paired=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p values for many questions asked at once (Holm 1979), so that one of twenty is not found by chance."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def line_r2(xs: Sequence[float], ys: Sequence[float]) -> float:
    """How much of `ys` a straight line over `xs` explains (R²), 0 to 1. Raises ValueError for fewer than three."""
    if len(xs) != len(ys) or len(xs) < 3:
        raise ValueError(f"a line is judged by three points or more, got {len(xs)}")
    if min(ys) == max(ys):
        return 1.0
    return float(np.corrcoef(xs, ys)[0, 1] ** 2)


def _change(mean: float, error: float, freedom: float, n: int, paired: bool) -> Change:
    if error <= 1e-12 * max(1.0, abs(mean)):  # all repeats agree to the last digits
        return Change(exp(mean) - 1, exp(mean) - 1, exp(mean) - 1, 1.0 if abs(mean) < 1e-12 else 0.0, n, paired)
    half = _quantile(freedom) * error
    p = 2 * float(stdtr(freedom, -abs(mean) / error))
    return Change(exp(mean) - 1, exp(mean - half) - 1, exp(mean + half) - 1, p, n, paired)


def _quantile(freedom: float) -> float:
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def _bootstrap(values: Sequence[float]) -> tuple[float, float]:
    from scipy import stats  # a second to import, and rarely wanted

    found = stats.bootstrap(
        (np.asarray(values),), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, rng=np.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _positive(*sets: Sequence[float]) -> None:
    for values in sets:
        if not values or not all(value > 0 and log(value) < float("inf") for value in values):
            raise ValueError(f"a change is a ratio of values above 0, got {list(values)}")
