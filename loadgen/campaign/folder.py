"""A campaign on disk: a file a trial, whole or not there, so that an interruption loses one trial at most.

campaign.json                    what it is
sittings.jsonl                   when, on which machine and with which versions it was worked on
trials/<cell>/<repeat>.jsonl.gz  the records of a trial (loadgen/record.py)
trials/<cell>/<repeat>.json      or why there are none: {"status": "infeasible" | "not possible", "reason": ...}
"""

import gzip
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loadgen.campaign.definition import Campaign
from loadgen.campaign.faults import CampaignError
from loadgen.campaign.grid import Cell, Trial
from loadgen.record import Result, as_bytes, of_bytes

Status = Literal["infeasible", "not possible"]
LONGEST_NAME = 150


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a trial has no records: the machine cannot (`infeasible`), or there is no means here (`not possible`)."""

    status: Status
    reason: str


class Folder:
    """The folder of one campaign with one driver. Made where it is missing.

    Raises CampaignError where it holds the trials of another campaign, which must not be mixed with this one's. More
    repeats, more cells and other panels are still the same campaign.
    """

    def __init__(self, path: Path, campaign: Campaign, driver: str) -> None:
        self.path = path
        about, file = {"driver": driver, "campaign": _dumped(campaign)}, path / "campaign.json"
        if file.exists():
            held = json.loads(file.read_text())
            for what in ("name", "seed", "runs_per_user", "warm_up_s", "workloads"):
                before, now = held["campaign"].get(what), about["campaign"][what]
                if before != now:
                    raise CampaignError(f"{path} holds trials with {what} {before!r}, not {now!r}: give another --out")
            if held["driver"] != driver:
                raise CampaignError(f"{path} holds trials of {held['driver']}, not of {driver}: give another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write(file, json.dumps(about, indent=1).encode())
        except OSError as error:
            raise CampaignError(f"{path} cannot be written: {error.strerror or error}") from None

    def has(self, trial: Trial) -> bool:
        return self._records(trial).exists() or self._refusal(trial).exists()

    def keep(self, trial: Trial, outcome: Result | Refusal) -> None:
        """All of it or nothing."""
        if isinstance(outcome, Result):
            _write(self._records(trial), gzip.compress(as_bytes(outcome), compresslevel=3, mtime=0))
        else:
            about = {"status": outcome.status, "reason": outcome.reason}
            _write(self._refusal(trial), json.dumps(about).encode())

    def read(self, trial: Trial) -> Result | Refusal | None:
        """What was kept; None where nothing was. Raises RecordError for a file that is none of ours."""
        if (file := self._records(trial)).exists():
            return of_bytes(gzip.decompress(file.read_bytes()), str(file))
        if (file := self._refusal(trial)).exists():
            return Refusal(**json.loads(file.read_text()))
        return None

    def refusal(self, cell: Cell) -> Refusal | None:
        """That of any repeat of a cell."""
        files = (self.path / "trials" / _name(cell)).glob("*.json")
        return next((Refusal(**json.loads(file.read_text())) for file in sorted(files)), None)

    def note_sitting(self, facts: dict[str, Any]) -> None:
        with (self.path / "sittings.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def sittings(self) -> list[dict[str, Any]]:
        file = self.path / "sittings.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def _records(self, trial: Trial) -> Path:
        return self.path / "trials" / _name(trial.cell) / f"{trial.repeat:02}.jsonl.gz"

    def _refusal(self, trial: Trial) -> Path:
        return self.path / "trials" / _name(trial.cell) / f"{trial.repeat:02}.json"


def _name(cell: Cell) -> str:
    name = re.sub(r"[^A-Za-z0-9._+=-]+", "_", cell.key)
    if len(name) <= LONGEST_NAME and name == cell.key.replace(" ", "_"):
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(cell.key.encode()).hexdigest()[:8]}"


def _dumped(campaign: Campaign) -> dict[str, Any]:
    return campaign.model_dump(mode="json")


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_bytes(data)
    part.replace(file)
