import json
from pathlib import Path

import pytest

from loadgen.campaign.definition import Campaign
from loadgen.campaign.faults import CampaignError
from loadgen.campaign.folder import Folder, Refusal
from loadgen.campaign.grid import Trial, cells, trials
from loadgen.campaign.run import Step, carry_out
from loadgen.campaign.trial import Infeasible, NotPossibleHere, virtually
from loadgen.record import Result


class Driver:
    """Drives in virtual time, remembers what it was asked for, and is interrupted at the trial of that number."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        self.tried: list[Trial] = []
        self.interrupted_at = interrupted_at

    def __call__(self, campaign: Campaign, trial: Trial) -> Result:
        if len(self.tried) == self.interrupted_at:
            raise KeyboardInterrupt
        self.tried.append(trial)
        return virtually(campaign, trial)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in (path / "trials").rglob("*.*")}


def test_an_interrupted_campaign_goes_on_without_repeating_or_losing_a_trial(
    campaign: Campaign, tmp_path: Path
) -> None:
    folder, first = Folder(tmp_path / "a", campaign, "virtual time"), Driver(interrupted_at=7)
    with pytest.raises(KeyboardInterrupt):
        carry_out(campaign, folder, first, lambda _: None)
    half = tmp_path / "a" / "trials" / "half.jsonl.gz.part"  # what a kill leaves behind
    half.write_bytes(b"half")
    steps: list[Step] = []
    second = Driver()
    carry_out(campaign, Folder(tmp_path / "a", campaign, "virtual time"), second, steps.append)
    assert first.tried + second.tried == trials(campaign) and len(first.tried) == 7
    assert [step.was_there for step in steps] == [True] * 7 + [False] * 8
    assert [(step.done, step.of) for step in steps] == [(done, 15) for done in range(1, 16)]
    third = Driver()
    carry_out(campaign, folder, third, lambda _: None)
    assert not third.tried
    assert [sitting["trials"] for sitting in folder.sittings()] == [7, 8]
    half.unlink()
    carry_out(campaign, Folder(tmp_path / "b", campaign, "virtual time"), Driver(), lambda _: None)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")  # bit for bit, in one sitting or two
    assert all(isinstance(folder.read(trial), Result) for trial in trials(campaign))


@pytest.mark.parametrize(("error", "status"), [(Infeasible, "infeasible"), (NotPossibleHere, "not possible")])
def test_a_cell_that_cannot_be_is_asked_for_once_and_marked(
    campaign: Campaign, tmp_path: Path, error: type[Exception], status: str
) -> None:
    tried: list[Trial] = []

    def drive(campaign: Campaign, trial: Trial) -> Result:
        tried.append(trial)
        if trial.cell.get("in_flight") == 1:
            raise error("no room")
        return virtually(campaign, trial)

    folder, steps = Folder(tmp_path, campaign, "virtual time"), []
    carry_out(campaign, folder, drive, steps.append)
    narrow = [trial for trial in trials(campaign) if trial.cell.get("in_flight") == 1]
    assert len(narrow) == 6 and sum(trial in narrow for trial in tried) == 2
    assert all(folder.read(trial) == Refusal(status, "no room") for trial in narrow)  # pyright: ignore[reportArgumentType]
    assert sum(step.refusal is not None for step in steps) == 6


def test_a_folder_holds_one_campaign(campaign: Campaign, tmp_path: Path) -> None:
    Folder(tmp_path, campaign, "virtual time")
    Folder(tmp_path, campaign.model_copy(update={"repeats": 20, "title": "another", "panels": ()}), "virtual time")
    with pytest.raises(CampaignError, match="holds trials with seed 1, not 2: give another --out"):
        Folder(tmp_path, campaign.model_copy(update={"seed": 2}), "virtual time")
    with pytest.raises(CampaignError, match="runs_per_user"):
        Folder(tmp_path, campaign.quickened().model_copy(update={"runs_per_user": 5}), "virtual time")
    with pytest.raises(CampaignError, match="holds trials of virtual time, not of"):
        Folder(tmp_path, campaign, "http://127.0.0.1:8080")
    (tmp_path / "file").write_text("")
    with pytest.raises(CampaignError, match="cannot be written"):
        Folder(tmp_path / "file" / "below", campaign, "virtual time")


def test_names_of_files_are_those_of_cells_and_never_meet(campaign: Campaign, tmp_path: Path) -> None:
    folder = Folder(tmp_path, campaign, "virtual time")
    odd = [type(cells(campaign)[0])("a", (("policy", value),)) for value in ("x/y", "x:y", "../x", "y" * 300)]
    for cell in odd:
        folder.keep(Trial(cell, 1), Refusal("infeasible", cell.key))
    assert [folder.read(Trial(cell, 1)) for cell in odd] == [Refusal("infeasible", cell.key) for cell in odd]
    assert len(list((tmp_path / "trials").iterdir())) == 4
    assert json.loads((tmp_path / "campaign.json").read_text())["campaign"]["name"] == "small"
