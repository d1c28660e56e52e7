from dataclasses import replace
from pathlib import Path

import pytest

from emulator.calibrate import FITTED, error_percent, errors, fit, leave_one_out, report, with_factors
from emulator.core.presets import GpuPreset, ModelPreset, load_model
from emulator.sweep import Row, SweepError, emulate, read_sweep

MEASURED = Path(__file__).parents[2] / "docs/results/h200/emulator/calibration.csv"
SWEEP = [
    ("decode", 1, 128, 16, 0),
    ("decode", 16, 128, 16, 0),
    ("context", 8, 2000, 16, 0),
    ("prefill", 1, 256, 1, 0),
    ("prefill", 2, 2000, 1, 0),
    ("search", 8, 3040, 16, 3000),
]


@pytest.fixture
def own(h200: GpuPreset, model: ModelPreset) -> list[Row]:
    """A sweep that the preset made itself."""
    rows = []
    for kind, batch, n_in, n_out, shared in SWEEP:
        row = Row(kind, batch, n_in, n_out, shared, 2, 2 * batch, 1.0, 1.0, None)
        outcome = emulate(row, h200, model, whole_ticks=False)
        rows.append(replace(row, seconds=outcome.seconds, joules=outcome.joules, itl_s=outcome.itl_s))
    return rows


def test_at_most_twelve_factors_are_fitted() -> None:
    assert len(FITTED) <= 12


def test_a_fit_finds_the_factors_that_made_the_sweep(own: list[Row], h200: GpuPreset, model: ModelPreset) -> None:
    wrong = {"hbm_share": 0.8, "flops_share": 0.55, "layer_s": 6.5e-5, "hbm_j_per_byte": 4.5e-11, "flop_j": 1.1e-12}
    found = fit(own, with_factors(h200, wrong, "wrong"), model, names=list(wrong))
    for name in wrong:
        assert found[name] == pytest.approx(getattr(h200.factors, name), rel=0.03), name


def test_each_kind_is_predicted_without_it(own: list[Row], h200: GpuPreset, model: ModelPreset) -> None:
    rows = [row for row in own if row.kind in ("decode", "search")]
    left = leave_one_out(rows, h200, model)
    assert set(left) == {"decode", "search", "all"}
    assert left["all"]["itl"]["max"] < 2
    with pytest.raises(SweepError, match="all rows are of kind decode"):
        leave_one_out(rows[:2], h200, model)


def test_errors_are_per_cent_of_what_was_measured() -> None:
    lines = [
        {"joules_measured": 100, "joules_predicted": 103},
        {"joules_measured": 200, "joules_predicted": 190, "itl_measured": 5.0, "itl_predicted": 5.5},
    ]
    assert errors(lines, "joules") == {"mape": 4.0, "max": 5.0}
    assert errors(lines, "itl") == {"mape": 10.0, "max": 10.0}
    assert errors(lines, "seconds") == {"mape": None, "max": None}
    assert error_percent(lines[1], "joules") == pytest.approx(-5)


def test_the_shipped_preset_meets_the_bars_on_what_was_measured(h200: GpuPreset, model: ModelPreset) -> None:
    result = report(read_sweep(MEASURED), h200, model)
    assert result["joules"]["mape"] <= 2.5 and result["joules"]["max"] <= 12
    assert result["seconds"]["mape"] <= 3
    decode = [line for line in result["rows"] if line["kind"] == "decode"]
    assert len(decode) == 8
    assert (errors(decode, "itl")["max"] or 100) <= 8


def test_another_model_differs_by_its_dimensions_alone(h200: GpuPreset, model: ModelPreset) -> None:
    row = read_sweep(MEASURED)[0]
    small, large = (emulate(row, h200, which).itl_s or 0 for which in (model, load_model("llama-3.1-8b")))
    assert 1.05 < large / small < 1.15  # 15.0 GB of weights are read a step instead of 13.2
