"""A preset against a measured sweep: its error by row, and the factors that fit best."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emulator.core.presets import Factors, GpuPreset, ModelPreset
from emulator.sweep import Outcome, Row, SweepError, emulate

FITTED = tuple(name for name in Factors.model_fields if name != "sources")
SHARES = ("hbm_share", "flops_share", "l2_share", "active_share", "cap_share")
OUTLIER = 0.04  # errors beyond it weigh less than their square


def with_factors(gpu: GpuPreset, values: dict[str, float], source: str) -> GpuPreset:
    """The preset with those factors replaced, which are then from `source`."""
    return gpu.model_copy(update={"factors": gpu.factors.changed(values, source), "factors_of": gpu.name})


def fit(
    rows: Sequence[Row],
    gpu: GpuPreset,
    model: ModelPreset,
    *,
    names: Sequence[str] = FITTED,
    progress: Callable[[float], None] = lambda error: None,
    most_rounds: int = 12,
) -> dict[str, float]:
    """The factors `names` that bring the emulated rows nearest to the measured ones, by least squares of the relative
    errors of joules, seconds and, with half the weight, inter-token latency (soft L1: a single odd row weighs less).

    Begins at the preset's values; a factor that is zero there is left out. `progress` is told the root mean square
    error after each emulation of the sweep.
    """
    from scipy.optimize import least_squares

    names = [name for name in names if getattr(gpu.factors, name)]
    start = np.array([getattr(gpu.factors, name) for name in names])

    def errors(scaled: Any) -> Any:
        values = dict(zip(names, (scaled * start).tolist(), strict=True))
        candidate = with_factors(gpu, values, "a trial")
        found = np.array([e for row in rows for e in _errors(row, emulate(row, candidate, model, whole_ticks=False))])
        progress(float(np.sqrt(np.mean(found**2))))
        return found

    highest = np.array([1 / value if name in SHARES else np.inf for name, value in zip(names, start, strict=True)])
    result = least_squares(
        errors,
        np.minimum(np.ones(len(names)), highest * 0.999),
        bounds=(1e-6, highest),
        diff_step=3e-3,
        loss="soft_l1",
        f_scale=OUTLIER,
        max_nfev=most_rounds,
        ftol=1e-5,
        xtol=1e-4,
    )
    return dict(zip(names, (result.x * start).tolist(), strict=True))


def _errors(row: Row, outcome: Outcome) -> list[float]:
    found = [outcome.joules / row.joules - 1, outcome.seconds / row.seconds - 1]
    if row.itl_s and outcome.itl_s:
        found.append((outcome.itl_s / row.itl_s - 1) / 2)
    return found


def report(rows: Sequence[Row], gpu: GpuPreset, model: ModelPreset) -> dict[str, Any]:
    """Measured and predicted, row by row, and the mean and the largest absolute error in per cent."""
    return summary(rows, [emulate(row, gpu, model) for row in rows])


def summary(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    lines = []
    for row, outcome in zip(rows, outcomes, strict=True):
        line = {
            **row.key,
            "joules_measured": row.joules,
            "joules_predicted": round(outcome.joules, 3),
            "seconds_measured": row.seconds,
            "seconds_predicted": round(outcome.seconds, 4),
        }
        if row.itl_s and outcome.itl_s:
            line |= {"itl_measured": round(row.itl_s * 1e3, 3), "itl_predicted": round(outcome.itl_s * 1e3, 3)}
        lines.append(line)
    return {**{quantity: errors(lines, quantity) for quantity in ("joules", "seconds", "itl")}, "rows": lines}


def errors(lines: Sequence[dict[str, Any]], quantity: str) -> dict[str, float | None]:
    """Mean and largest absolute error of some rows, in per cent; None where no row has the quantity."""
    found = [error for line in lines if (error := error_percent(line, quantity)) is not None]
    if not found:
        return {"mape": None, "max": None}
    return {"mape": round(float(np.mean(np.abs(found))), 3), "max": round(float(np.max(np.abs(found))), 3)}


def error_percent(line: dict[str, Any], quantity: str) -> float | None:
    if f"{quantity}_measured" not in line:
        return None
    return 100 * (line[f"{quantity}_predicted"] / line[f"{quantity}_measured"] - 1)


def leave_one_out(
    rows: Sequence[Row], gpu: GpuPreset, model: ModelPreset, *, progress: Callable[[float], None] = lambda error: None
) -> dict[str, dict[str, Any]]:
    """Each kind's error under factors that were fitted without it; "all" over all rows so predicted."""
    lines, found = [], {}
    for kind in dict.fromkeys(row.kind for row in rows):
        others, left = [row for row in rows if row.kind != kind], [row for row in rows if row.kind == kind]
        if not others:
            raise SweepError(f"all rows are of kind {kind}: there is none to leave out")
        values = fit(others, gpu, model, progress=progress)
        result = report(left, with_factors(gpu, values, "a trial"), model)
        lines += result.pop("rows")
        found[kind] = result
    found["all"] = {quantity: errors(lines, quantity) for quantity in ("joules", "seconds", "itl")}
    return found
