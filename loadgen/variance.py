"""Which factor a figure hangs on: shares of the variance of a full factorial, with intervals over its repeats.

The response is the logarithm, so that effects are ratios: a knob that halves every workload's joules has no interaction
with the workload. Sums of squares are those of the balanced analysis of variance (Montgomery, Design and Analysis of
Experiments, chapter 5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Share:
    """What one factor, or two together beyond what each does alone, explains of the variance (0-1)."""

    factors: tuple[str, ...]
    share: float
    low: float | None = None
    high: float | None = None


def shares(values: NDArray[np.float64], factors: Sequence[str], seed: int = 0) -> list[Share]:
    """Shares of every factor and pair, the largest first; then what is left (`()`): higher terms and chance.

    `values` has an axis a factor and a last one for repeats. Intervals (95 %, percentile bootstrap) resample whole
    repeats, as all cells of a repeat had the same work; null with one repeat. Raises ValueError for values that are not
    above 0, or that are all the same.
    """
    if values.ndim != len(factors) + 1 or not np.all(values > 0):
        raise ValueError("a factorial needs a value above 0 in every cell, and an axis a factor")
    logs = np.log(values)
    found = _shares(logs)
    repeats, rng = logs.shape[-1], np.random.default_rng(seed)
    names = [*(tuple(factors[axis] for axis in axes) for axes in _terms(len(factors))), ()]
    if repeats < 2:
        bands: list[tuple[float | None, float | None]] = [(None, None)] * len(names)
    else:
        drawn = [_shares(logs[..., rng.integers(0, repeats, repeats)]) for _ in range(RESAMPLES)]
        low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
        bands = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    made = [Share(name, float(one), *band) for name, one, band in zip(names, found, bands, strict=True)]
    return [*sorted(made[:-1], key=lambda one: -one.share), made[-1]]


def _terms(factors: int) -> list[tuple[int, ...]]:
    return [axes for size in (1, 2) for axes in combinations(range(factors), size)]


def _shares(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of each term and, last, of the rest."""
    factors = logs.ndim - 1
    total = float(np.sum((logs - logs.mean()) ** 2))
    if not total:
        raise ValueError("all values are the same: there is no variance to share")
    effects: dict[tuple[int, ...], NDArray[np.float64]] = {}
    squares: list[float] = []
    for axes in _terms(factors):
        others = tuple(axis for axis in range(logs.ndim) if axis not in axes)
        effect = logs.mean(axis=others, keepdims=True) - logs.mean()
        for axis in axes if len(axes) == 2 else ():
            effect = effect - effects[(axis,)]
        effects[axes] = effect
        squares.append(float(np.sum(np.broadcast_to(effect, logs.shape) ** 2)))
    return np.array([*squares, max(0.0, total - sum(squares))]) / total
