"""A mean and its 95 % interval."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import t as student


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """`mean`, and `half` the width of its 95 % interval by Student's t; None of a single value."""
    half = None
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return {"mean": fmean(values), "half": half}
