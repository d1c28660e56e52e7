"""The command line. Every fault of the user's is one line on stderr and exit status 1, never a traceback."""

import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

app = typer.Typer(
    name="joulegate",
    help="Energy-aware, OpenAI-compatible gateway for LLM workflows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)

LedgerOption = Annotated[Path | None, typer.Option(help="the ledger's file, instead of the configuration's")]
ConfigOption = Annotated[Path | None, typer.Option("-c", "--config", help="configuration file (YAML)")]


def version() -> str:
    return importlib.metadata.version("joulegate")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into a line and exit status 1."""
    from joulegate.export import ExportError
    from loadgen.campaign.faults import CampaignError, ReportError
    from proxy.config import ConfigError
    from proxy.energy.ledger_file import LedgerError

    try:
        yield
    except (ConfigError, LedgerError, ExportError, CampaignError, ReportError) as error:
        err.print(f"joulegate: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(1) from None


def no_clash() -> None:
    """PyPI's `proxy.py` installs a top-level `proxy` too; whichever came last wins, so look which one it is."""
    import proxy

    if not (Path(str(proxy.__file__)).parent / "forward.py").exists():
        err.print(
            "joulegate: the package `proxy.py` is installed in this environment and hides ours; "
            "install joulegate in an environment of its own (python -m venv, pipx)",
            style="red",
        )
        raise typer.Exit(1)


def log_to_stderr(verbose: bool) -> None:
    handler = RichHandler(console=err, show_path=False, rich_tracebacks=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", datefmt="%H:%M:%S", handlers=[handler])
    logging.getLogger("joulegate").setLevel(logging.DEBUG if verbose else logging.INFO)
    # It warns of every library of a GPU that is not there; what there is, we say ourselves.
    logging.getLogger("zeus").setLevel(logging.DEBUG if verbose else logging.ERROR)


@contextmanager
def said_later(logger_name: str) -> Iterator[Callable[[], None]]:
    """Hold back what this logger has to tell, short of warnings, until the yielded function is called, or the end.

    What the joules are worth is to be the first thing that a person reads.
    """
    logger = logging.getLogger(logger_name)
    held = MemoryHandler(1000, flushLevel=logging.WARNING, target=logging.getLogger().handlers[0])

    def say() -> None:
        logger.removeHandler(held)
        logger.propagate = True
        held.close()

    logger.propagate = False
    logger.addHandler(held)
    try:
        yield say
    finally:
        say()


@app.command()
def serve(
    config: ConfigOption = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="listen here instead; 0 takes a free port")] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose")] = False,
) -> None:
    """Run the gateway. Without a configuration it starts a small model of its own (SmolLM2-135M on the CPU)."""
    no_clash()
    from joulegate.serve import bind, inherited, reached, run, url_of
    from joulegate.serve import check as checked
    from proxy.app import Gateway
    from proxy.config import load, parse

    log_to_stderr(verbose)
    with one_line_errors(), said_later("joulegate.control") as say:
        settings = load(config) if config else parse(EMBEDDED)
        checked(settings)
        listen = settings.listen if port is None else settings.listen.model_copy(update={"port": port})
        sock = inherited() or bind(listen, or_another=config is None and port is None)
        reached(settings, sock)

        def ready(gateway: Gateway) -> None:
            for line in gateway.said:
                out.print(line, highlight=False, soft_wrap=True, markup=False)
            engines = ", ".join(f"{engine.name} ({engine.kind}, {engine.url})" for engine in gateway.engines)
            url = url_of(sock, tls=listen.tls is not None)
            out.print(f"joulegate {version()} listens on {url}/v1 in front of {engines}", soft_wrap=True)
            out.print(f"joules: {url}/energy/workflows · metrics: {url}/metrics", soft_wrap=True)
            say()

        run(settings, version(), sock, ready, read=(lambda: reached(load(config), sock)) if config else None)


EMBEDDED = {"engines": [{"name": "embedded", "kind": "embedded"}]}


@app.command()
def check(file: Annotated[Path, typer.Argument(help="configuration file (YAML)")]) -> None:
    """Say whether a configuration is right, and if not, what is wrong with it."""
    no_clash()
    from joulegate.serve import check as checked
    from proxy.config import load

    with one_line_errors():
        settings = load(file)
        engines = checked(settings)
    names = ", ".join(f"{engine.name} ({engine.kind})" for engine in engines)
    out.print(f"{file} is right: engines {names}; policy {settings.policy.name}", highlight=False, soft_wrap=True)


@app.command()
def key() -> None:
    """Print a new key, for the client, and its hash, for the configuration."""
    import hashlib
    import secrets

    secret = f"jg-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    typer.echo(f"key:      {secret}\nkey_hash: sha256:{digest}")


@app.command()
def energy(
    config: ConfigOption = None,
    ledger: LedgerOption = None,
    json: Annotated[bool, typer.Option("--json", help="figures for a program")] = False,
) -> None:
    """What the ledger knows: joules by workflow and by device."""
    no_clash()
    from joulegate.report import show
    from proxy.config import load
    from proxy.energy.ledger_reader import LedgerReader

    with one_line_errors():
        known = load(config) if config else None
        pue = {name: host.pue for name, host in known.known_hosts().items()} if known else {}
        engines = {one.name: one.devices[0].partition("/")[0] for one in known.engines if one.devices} if known else {}
        show(LedgerReader(_ledger(config, ledger)), json, out, pue, engines)


def _ledger(config: Path | None, file: Path | None) -> Path:
    from proxy.config import LedgerConfig, load

    return file or (load(config).ledger.path if config else LedgerConfig().path)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="where the files go; made when missing")],
    kind: Annotated[str, typer.Option("--format", help="csv or parquet")] = "csv",
    since: Annotated[str | None, typer.Option(help="a date, an ISO time (UTC) or Unix seconds")] = None,
    until: Annotated[str | None, typer.Option(help="likewise; itself no more")] = None,
    workflow: Annotated[str | None, typer.Option(help="one workflow's alone")] = None,
    tenant: Annotated[str | None, typer.Option(help="one tenant's alone")] = None,
    config: ConfigOption = None,
    ledger: LedgerOption = None,
) -> None:
    """Write the ledger's tables into files: requests and runs with their joules, windows, and days."""
    no_clash()
    from joulegate import export as exporting
    from proxy.energy.ledger_reader import LedgerReader
    from proxy.energy.ledger_tables import Selection

    with one_line_errors():
        begin, end = (None if text is None else exporting.moment(text) for text in (since, until))
        selection = Selection(begin, end, workflow, tenant)
        for file, count in exporting.export(LedgerReader(_ledger(config, ledger)), folder, kind, selection).items():
            out.print(f"{file}: {count:,} rows", highlight=False, soft_wrap=True, markup=False)


@app.command()
def attribute(
    trace: Annotated[Path, typer.Argument(help="a recorded trace (energy.record), gzipped or not")],
    json: Annotated[bool, typer.Option("--json", help="figures for a program")] = False,
    fit_on: Annotated[
        str | None, typer.Option(help="fit the prices on these scenarios alone, with commas between; default: on all")
    ] = None,
    gpu: Annotated[str, typer.Option(help="the card, where the trace does not say, as 'NVIDIA H200'")] = "",
    model: Annotated[str, typer.Option(help="the model, likewise, as 'llama-2-7b'")] = "",
) -> None:
    """Who caused the joules of a recorded trace: every scenario by class and request."""
    no_clash()
    from joulegate.attribute import run

    with one_line_errors():
        run(trace, json=json, fit_on=fit_on, gpu=gpu, model=model, out=out)


@app.command()
def restore(config: ConfigOption = None) -> None:
    """Set back every limit and clock that a gateway which is gone left behind (a zeusd's: with its configuration)."""
    no_clash()
    from proxy.config import Host, load
    from proxy.control.gpus import open_knobs
    from proxy.control.lock import GpuLocks
    from proxy.control.restore import is_anything_left, restore_all

    with one_line_errors():
        hosts = load(config).known_hosts() if config else {"local": Host(local=True)}
    lines = restore_all(open_knobs(hosts), locks=GpuLocks())
    for line in lines or ["nothing to restore"]:
        out.print(line, highlight=False, soft_wrap=True, markup=False)
    if is_anything_left():
        raise typer.Exit(1)


@app.command()
def policy(
    url: Annotated[
        str, typer.Option(envvar="JOULEGATE_URL", help="where the gateway listens")
    ] = "http://127.0.0.1:8080",
    key_file: Annotated[Path | None, typer.Option(help="file with the admin key; else JOULEGATE_KEY")] = None,
    json: Annotated[bool, typer.Option("--json", help="figures for a program")] = False,
) -> None:
    """What the policy of a running gateway does, why, and what was measured under it."""
    no_clash()
    from joulegate.policy import fetch, show
    from proxy.config import read_secret

    with one_line_errors():
        show(fetch(url, read_secret(os.environ.get("JOULEGATE_KEY"), key_file)), json, out)


@app.command()
def calibrate(
    data: Annotated[Path, typer.Argument(help="a measured sweep (CSV)")],
    gpu: Annotated[str, typer.Option(help="the card's preset: a name, or a file of your own")],
    model: Annotated[str, typer.Option(help="the model's preset: a name, or a file of your own")],
    check: Annotated[bool, typer.Option("--check", help="fit nothing, report the preset as it is")] = False,
    json: Annotated[bool, typer.Option("--json", help="figures for a program")] = False,
    leave_out: Annotated[bool, typer.Option("--leave-out", help="fit without each kind of row in turn, too")] = False,
    file: Annotated[Path | None, typer.Option("--out", help="write the preset with what was fitted")] = None,
) -> None:
    """How near an emulated card comes to a measured one, and the factors with which it comes nearest."""
    no_clash()
    from joulegate.calibrate import run

    with one_line_errors():
        run(data, gpu, model, check=check, json=json, leave_out=leave_out, file=file, out=out, err=err)


@app.command(name="version")
def show_version() -> None:
    """Which Joulegate this is."""
    out.print(version(), highlight=False)


@app.command()
def emulate(
    gpu: Annotated[str, typer.Option(help="a preset's name, or a file")] = "h200",
    model: Annotated[str, typer.Option(help="a preset's name, or a file")] = "llama-2-7b",
    gpus: Annotated[int, typer.Option(help="cards that share the model")] = 1,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="of the engine; 0 takes a free one")] = 8000,
    zeusd_port: Annotated[int, typer.Option(min=0, max=65535, help="of zeusd; 0 takes a free one")] = 4938,
    max_num_seqs: Annotated[int, typer.Option(help="sequences in one step")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(help="tokens in one step")] = 8192,
    max_model_len: Annotated[int | None, typer.Option(help="context; by default what the model has and fits")] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(help="share of the memory that the engine may use")] = 0.9,
    block_size: Annotated[int, typer.Option(help="tokens in a block of KV cache")] = 16,
    scheduling_policy: Annotated[str, typer.Option(help="fcfs or priority")] = "fcfs",
    max_num_queued_reqs: Annotated[int | None, typer.Option(help="refuse more in the engine than these")] = None,
    prefix_caching: Annotated[bool, typer.Option("--enable-prefix-caching/--no-enable-prefix-caching")] = True,
    prompt_tokens_details: Annotated[
        bool,
        typer.Option("--enable-prompt-tokens-details/--no-prompt-tokens-details", help="tell cached tokens in usage"),
    ] = True,
    served_model_name: Annotated[str | None, typer.Option(help="the model's name for clients")] = None,
    power_limit: Annotated[float | None, typer.Option(help="watts that each card is capped at, at the start")] = None,
    seed: Annotated[int, typer.Option(help="another seed gives other answers")] = 0,
) -> None:
    """Run an emulated GPU host: a vLLM-like engine and its zeusd, without a GPU. All its joules are a model's."""
    no_clash()
    from joulegate.emulate import Options, run

    options = Options(
        gpu=gpu,
        model=model,
        gpus=gpus,
        host=host,
        port=port,
        zeusd_port=zeusd_port,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        gpu_memory_utilization=gpu_memory_utilization,
        block_size=block_size,
        scheduling_policy=scheduling_policy,
        max_num_queued_reqs=max_num_queued_reqs,
        prefix_caching=prefix_caching,
        prompt_tokens_details=prompt_tokens_details,
        served_model_name=served_model_name,
        power_limit_w=power_limit,
        seed=seed,
    )
    with one_line_errors():
        run(options, lambda line: out.print(line, highlight=False, soft_wrap=True, markup=False))


@app.command()
def campaign(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="one that ships, or a file (YAML); none: list them")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer repeats: a look of a minute or two")] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="of every cell, in the campaign's place")] = None,
    machine: Annotated[
        Path | None, typer.Option("--on", help="a real machine (YAML: its url, and commands that turn its knobs)")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="where it grows; what is there already is not done again")
    ] = None,
) -> None:
    """A grid of knobs over workloads, repeated, with a report. Without --on: on the emulator, in virtual time."""
    no_clash()
    from joulegate.campaign import listed, run

    with one_line_errors():
        if name is None:
            listed(out)
        else:
            run(name, quick=quick, repeats=repeats, machine=machine, folder=folder, out=out)


MeasureOption = Annotated[
    list[str] | None, typer.Option("--measure", help="a column of trials.csv; more than once for several")
]


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="a campaign's folder, or its trials.csv")],
    second: Annotated[Path, typer.Argument(help="another's")],
    measure: MeasureOption = None,
    json: Annotated[bool, typer.Option("--json", help="figures for a program")] = False,
) -> None:
    """What changed between two campaigns: cell by cell, with intervals, and in words."""
    no_clash()
    from joulegate.compare import show

    with one_line_errors():
        show(first, second, measure or (), json, out)


@app.command()
def gate(
    base: Annotated[Path, typer.Argument(help="the campaign that sets the mark: its folder, or its trials.csv")],
    new: Annotated[Path, typer.Argument(help="the one that is judged")],
    max_regression: Annotated[str, typer.Option(help="how much worse a cell may be on average")] = "5%",
    measure: MeasureOption = None,
) -> None:
    """For CI: exit status 1 if something got worse by more than is allowed, 3 if repeats are too few to tell."""
    no_clash()
    from joulegate.regress import run

    with one_line_errors():
        status = run(base, new, max_regression, measure or (), out)
    raise typer.Exit(status)


@app.command()
def demo(
    seconds: Annotated[int, typer.Option(min=5, help="length of the load")] = 60,
    port: Annotated[int, typer.Option(min=0, max=65535, help="another free one is taken when it is in use")] = 8080,
    folder: Annotated[Path | None, typer.Option("--out", help="where results go; a new folder here by default")] = None,
    engine: Annotated[
        str, typer.Option(help="embedded (a small model, really run) or emulated (no GPU needed)")
    ] = "embedded",
) -> None:
    """An engine, the gateway and four workloads on this machine: two minutes, and you see what a run costs."""
    no_clash()
    from joulegate.demo import run

    with one_line_errors():
        run(seconds, port, folder or Path(time.strftime("joulegate-demo-%Y%m%d-%H%M%S")), out, engine)
