"""`joulegate campaign`: carry a campaign out, go on with one, and write what it found."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loadgen.campaign.definition import Campaign, builtins, load
from loadgen.campaign.folder import Folder
from loadgen.campaign.machine import OverHttp
from loadgen.campaign.machine import load as load_machine
from loadgen.campaign.run import Drive, Step, carry_out
from loadgen.campaign.trial import virtually
from loadgen.report.page import write
from loadgen.report.plots import required


def run(
    name: str, *, quick: bool, repeats: int | None, machine: Path | None, folder: Path | None, out: Console
) -> None:
    """Raises CampaignError for a campaign that cannot be, ReportError where a library for the report is missing."""
    campaign = load(name)
    if quick:
        campaign = campaign.quickened()
    if repeats is not None:
        campaign = campaign.model_copy(update={"repeats": repeats})
    for module in ("matplotlib", "plotly"):  # before the work, not after it
        required(module)
    where = folder or Path(f"joulegate-{campaign.name}{'-quick' if quick else ''}")
    drive: Drive = virtually
    if machine is not None:
        found = load_machine(machine)
        campaign, drive = found.campaign(campaign), OverHttp(found)
    kept = Folder(where, campaign, "virtual time" if machine is None else "HTTP")
    what = "emulated, in virtual time; no joule of it is a machine's" if machine is None else f"over HTTP, {machine}"
    out.print(f"{campaign.title}: {what}", highlight=False, soft_wrap=True)
    try:
        _carry_out(campaign, kept, drive, out)
    except KeyboardInterrupt:
        out.print(f"interrupted; the same command goes on where it was ({where})", soft_wrap=True)
        raise
    report, *files = write(campaign, kept)
    tables = ", ".join(file.name for file in files if file.suffix == ".csv")
    out.print(f"{report}\n{tables} and {where}/figures beside it", highlight=False, soft_wrap=True)


def listed(out: Console) -> None:
    """The campaigns that ship."""
    for name in builtins():
        out.print(f"{name}: {load(name).title}", highlight=False, soft_wrap=True)


def _carry_out(campaign: Campaign, folder: Folder, drive: Drive, out: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    marked: dict[str, str] = {}
    invalid = 0
    with Progress(*columns, console=out) as progress:
        task = progress.add_task("trials", total=None)

        def on_step(step: Step) -> None:
            nonlocal invalid
            invalid += not step.valid
            if step.refusal:
                marked.setdefault(step.trial.cell.key, f"{step.refusal.status}: {step.refusal.reason}")
            what = f"{step.trial.cell.workload}, repeat {step.trial.repeat}"
            progress.update(task, total=step.of, completed=step.done, description=what)

        carry_out(campaign, folder, drive, on_step)
    reasons: dict[str, int] = {}
    for reason in marked.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        out.print(f"{count} cells {reason}", highlight=False, soft_wrap=True, markup=False)
    if invalid:
        out.print(f"{invalid} trials are invalid and left out of every figure", highlight=False)
