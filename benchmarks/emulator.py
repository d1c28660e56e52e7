"""What the emulator claims about itself, measured: `python -m benchmarks.emulator COMMAND`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import emulator_server
from benchmarks.emulator_speed import measure
from benchmarks.processes import StartError

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
    for one in load:
        try:
            found = measure(one, requests)
        except ValueError as error:
            console.print(str(error), style="red")
            raise typer.Exit(2) from None
        figures = (found.cpu_s, found.requests_s, found.million_s, found.virtual_s, found.steps)
        table.add_row(
            one, *(f"{figure:,.0f}" for figure in figures), f"{found.joules_request:.2f}", f"{found.peak_mib:.0f}"
        )
    console.print(table)


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
    console.print(
        f"bar: {100 * emulator_server.BAR_CORE:.0f} % of a core at 2,000 tokens/s: {'missed' if missed else 'held'}"
    )
    raise typer.Exit(missed)


if __name__ == "__main__":
    app()
