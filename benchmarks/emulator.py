"""What the emulator claims about itself, measured: `python -m benchmarks.emulator COMMAND`."""

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import emulator_fit, emulator_server
from benchmarks.emulator_speed import BAR_S, measure
from benchmarks.processes import StartError
from emulator.calibrate import errors, leave_one_out
from emulator.core.presets import load_gpu, load_model
from emulator.sweep import read_sweep

LOADS = ["poisson:2", "poisson:10", "closed:16", "closed:64"]
app = typer.Typer(no_args_is_help=True, help=__doc__)


@app.callback()
def main() -> None:
    """What the emulator claims about itself, measured."""


@app.command()
def speed(
    requests: Annotated[int, typer.Option(min=1, help="requests of each load")] = 100_000,
    load: Annotated[list[str], typer.Option(help="poisson:RATE or closed:USERS; may be given several times")] = LOADS,
) -> None:
    """Requests of the search workload a second of CPU, in virtual time on one emulated GPU; and peak memory."""
    console = Console()
    table = Table(title=f"search workload in virtual time, {requests} requests each", title_justify="left")
    for column in ("load", "CPU s", "req/s", "s/million", "virtual s", "steps", "J/req", "MiB"):
        table.add_column(column, justify="left" if column == "load" else "right")
    missed = False
    for one in load:
        try:
            found = measure(one, requests)
        except ValueError as error:
            console.print(str(error), style="red")
            raise typer.Exit(2) from None
        missed |= found.million_s > BAR_S
        figures = (found.cpu_s, found.requests_s, found.million_s, found.virtual_s, found.steps)
        table.add_row(
            one, *(f"{figure:,.0f}" for figure in figures), f"{found.joules_request:.2f}", f"{found.peak_mib:.0f}"
        )
    console.print(table)
    console.print(f"bar: {BAR_S:g} s of CPU a million: {'missed' if missed else 'held'}")
    raise typer.Exit(missed)


@app.command()
def server(
    streams: Annotated[int, typer.Option(min=1, help="clients that stream at once")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="of each row")] = 15,
) -> None:
    """CPU of the emulated engine's HTTP server: at 2,000 tokens a second, and as fast as the emulated card is."""
    console = Console()
    table = Table(title=f"streamed to {streams} clients, metrics asked for ten times a second", title_justify="left")
    for column in ("tokens/s", "% of a core", "µs/token", "scrapes", "MiB"):
        table.add_column(column, justify="right")
    missed = False
    for tokens_s in (2000, 0):
        try:
            found = emulator_server.measure(streams, tokens_s, seconds)
        except StartError as error:
            console.print(str(error), style="red")
            raise typer.Exit(1) from None
        row = (f"{found.tokens_s:,.0f}", f"{100 * found.core:.0f}", f"{found.us_token:.0f}")
        table.add_row(*row, str(found.scraped), f"{found.rss_mib:.0f}")
        missed |= tokens_s > 0 and found.core > emulator_server.BAR_CORE
    console.print(table)
    bar = f"{100 * emulator_server.BAR_CORE:.0f} % of a core at 2,000 tokens/s"
    console.print(f"bar: {bar}: {'missed' if missed else 'held'}")
    raise typer.Exit(missed)


@app.command()
def calibration(
    folder: Annotated[Path, typer.Option("--out", help="where fit.json and fit.svg go")] = emulator_fit.DATA,
    leave_out: Annotated[bool, typer.Option("--leave-out", help="also fit without each kind of row (minutes)")] = False,
) -> None:
    """The h200 preset against everything that was measured; exit status 1 if a bar is missed."""
    console = Console()
    gpu = load_gpu("h200")
    found = emulator_fit.compare(gpu)
    if leave_out:
        rows = read_sweep(emulator_fit.DATA / "calibration.csv")
        found["leave_one_kind_out"] = leave_one_out(rows, gpu, load_model(emulator_fit.FITTED_ON))
    table = Table("", "joules: mean (largest) error, %", "seconds", title="measured and emulated", title_justify="left")
    for name in ("calibration", "kept_apart", "gates", "kept_apart_gates", "coalesce"):
        lines = found[name]["rows"] if "rows" in found[name] else found[name]
        table.add_row(name, *(_both(errors(lines, quantity)) for quantity in ("joules", "seconds")))
    for kind, error in found.get("leave_one_kind_out", {}).items():
        table.add_row(f"fitted without {kind}", *(_both(error[quantity]) for quantity in ("joules", "seconds")))
    console.print(table)
    bars = emulator_fit.check(found)
    table = Table("bar", "limit", "value", "", title="bars", title_justify="left")
    for bar in bars:
        value = "-" if bar.value is None else f"{bar.value:.2f}"
        table.add_row(bar.what, bar.limit, value, "met" if bar.met else "MISSED")
    console.print(table)
    columns = ("users", "tokens out", "cap W", "latency s", "tokens/s", "J/token")
    table = Table(*columns, title="search on a100-40g (no data)", title_justify="left")
    for one in found["a100_search"]:
        figures = (one["latency_s"], one["tokens_s"], one["joules_token"])
        knobs = (one["users"], one["output_tokens"], one["power_limit_w"])
        table.add_row(*map(str, knobs), *(f"{figure:.2f}" for figure in figures))
    console.print(table)
    folder.mkdir(parents=True, exist_ok=True)
    found["bars"] = [{"what": bar.what, "limit": bar.limit, "value": bar.value, "met": bar.met} for bar in bars]
    (folder / "fit.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    emulator_fit.picture(found, folder / "fit.svg")
    console.print(f"written: {folder / 'fit.json'}, {folder / 'fit.svg'}")
    if not all(bar.met for bar in bars):
        raise typer.Exit(1)


def _both(error: dict[str, float | None]) -> str:
    return "-" if error["mape"] is None else f"{error['mape']:.2f} ({error['max']:.1f})"


if __name__ == "__main__":
    app()
