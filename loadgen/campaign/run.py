"""Carries a campaign out: the trials that its folder lacks, in their order, whoever drives them."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from loadgen.campaign.definition import Campaign
from loadgen.campaign.folder import Folder, Refusal
from loadgen.campaign.grid import Trial, trials
from loadgen.campaign.trial import Infeasible, NotPossibleHere
from loadgen.record import Result

Drive = Callable[[Campaign, Trial], Result]


@dataclass(frozen=True, slots=True)
class Step:
    """One trial is done: what came of it, and how far the campaign is. `was_there` from an earlier sitting."""

    trial: Trial
    done: int
    of: int
    was_there: bool
    refusal: Refusal | None = None
    valid: bool = True


def carry_out(campaign: Campaign, folder: Folder, drive: Drive, on_step: Callable[[Step], None]) -> None:
    """Try what was not tried yet. A cell that cannot be is asked for once, and marked so in its other repeats."""
    order = trials(campaign)
    began = time.time()
    tried = 0
    try:
        for done, trial in enumerate(order, start=1):
            if folder.has(trial):
                on_step(Step(trial, done, len(order), was_there=True))
                continue
            outcome = folder.refusal(trial.cell) or _try(campaign, trial, drive)
            folder.keep(trial, outcome)
            tried += 1
            refusal = outcome if isinstance(outcome, Refusal) else None
            valid = not isinstance(outcome, Result) or outcome.load.valid
            on_step(Step(trial, done, len(order), was_there=False, refusal=refusal, valid=valid))
    finally:
        if tried:
            folder.note_sitting({"began_unix_s": began, "ended_unix_s": time.time(), "trials": tried, **_here()})


def _try(campaign: Campaign, trial: Trial, drive: Drive) -> Result | Refusal:
    try:
        return drive(campaign, trial)
    except Infeasible as why:
        return Refusal("infeasible", str(why))
    except NotPossibleHere as why:
        return Refusal("not possible", str(why))


def _here() -> dict[str, Any]:
    """The machine that the generator ran on, and what it was made of."""
    packages = {}
    for name in ("joulegate", "numpy", "scipy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    } | packages
