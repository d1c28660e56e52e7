"""`joulegate calibrate`: a preset of the emulator against a measured sweep."""

from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from emulator.calibrate import FITTED, error_percent, errors, fit, leave_one_out, report, with_factors
from emulator.core.presets import GpuPreset, PresetError, load_gpu, load_model, written
from emulator.core.settings import OutOfMemory
from emulator.sweep import Row, SweepError, read_sweep
from proxy.config import ConfigError

QUANTITIES = ("joules", "seconds", "itl")


def run(
    data: Path,
    gpu_name: str,
    model_name: str,
    *,
    check: bool,
    json: bool,
    leave_out: bool,
    file: Path | None,
    out: Console,
    err: Console,
) -> None:
    """Fit, unless `check`, and report. Raises ConfigError for what the user can mend."""
    try:
        rows, gpu, model = read_sweep(data), load_gpu(gpu_name), load_model(model_name)
        if not check:
            gpu = _fitted(rows, gpu, model_name, data, err)
        result = report(rows, gpu, model)
    except (SweepError, PresetError, OutOfMemory) as error:
        raise ConfigError(str(error)) from None
    if file:
        try:
            file.write_text(written(gpu), "utf-8")
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    if json:
        out.file.write(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    show(result, out)
    if not check:
        _show_factors(gpu, out)
    if leave_out:
        with _progress(err) as bar:
            task = bar.add_task("leaving a kind out", total=None)
            left = leave_one_out(rows, gpu, model, progress=lambda error: bar.advance(task))
        _show_left_out(left, out)


def _fitted(rows: list[Row], gpu: GpuPreset, model_name: str, data: Path, err: Console) -> GpuPreset:
    with _progress(err) as bar:
        task = bar.add_task("fitting", total=None, error="")

        def told(error: float) -> None:
            bar.update(task, advance=1, description=f"fitting, root mean square error {100 * error:.2f} %")

        values = fit(rows, gpu, load_model(model_name), progress=told)
    return with_factors(gpu, values, f"fitted on {data.name} ({len(rows)} rows, {model_name})")


def _progress(err: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} sweeps"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err, transient=True)


def show(result: dict[str, Any], out: Console) -> None:
    """Error by row and by kind, in per cent."""
    table = Table("kind", "batch", "n_in", "n_out", "J", "J emulated", "error", "s", "error", "ITL ms", "error")
    for column in table.columns[1:]:
        column.justify = "right"
    for line in result["rows"]:
        itl = f"{line['itl_measured']:.2f}" if "itl_measured" in line else "-"
        table.add_row(
            line["kind"],
            *(str(line[key]) for key in ("batch", "n_in", "n_out")),
            *(f"{line['joules_measured']:.0f}", f"{line['joules_predicted']:.0f}", _signed(line, "joules")),
            *(f"{line['seconds_measured']:.2f}", _signed(line, "seconds"), itl, _signed(line, "itl")),
        )
    out.print(table)
    kinds = Table("mean (largest) error, %", *QUANTITIES)
    for kind in dict.fromkeys(line["kind"] for line in result["rows"]):
        lines = [line for line in result["rows"] if line["kind"] == kind]
        kinds.add_row(kind, *(_both(errors(lines, quantity)) for quantity in QUANTITIES))
    kinds.add_section()
    kinds.add_row("all", *(_both(result[quantity]) for quantity in QUANTITIES))
    out.print(kinds)


def _show_factors(gpu: GpuPreset, out: Console) -> None:
    table = Table("factor", "value")
    for name in FITTED:
        table.add_row(name, f"{getattr(gpu.factors, name):.4g}")
    out.print(table)


def _show_left_out(left: dict[str, dict[str, Any]], out: Console) -> None:
    table = Table("kind, fitted without it", *QUANTITIES)
    for kind, error in left.items():
        table.add_row(kind, *(_both(error[quantity]) for quantity in QUANTITIES))
    out.print(table)


def _signed(line: dict[str, Any], quantity: str) -> str:
    error = error_percent(line, quantity)
    return "-" if error is None else f"{error:+.1f}"


def _both(error: dict[str, float | None]) -> str:
    return "-" if error["mape"] is None else f"{error['mape']:.2f} ({error['max']:.1f})"
