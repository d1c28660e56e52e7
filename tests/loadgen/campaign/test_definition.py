from pathlib import Path

import pytest

from loadgen.campaign.definition import Campaign, builtins, load, parse
from loadgen.campaign.faults import CampaignError
from loadgen.campaign.grid import cells
from loadgen.campaign.knobs import KNOBS
from loadgen.measures import MEASURES


@pytest.mark.parametrize("name", builtins())
def test_every_campaign_that_ships_is_right_and_declares_what_it_must(name: str) -> None:
    campaign = load(name)
    assert campaign.name == name and campaign.repeats == 10 and cells(campaign)
    assert all(panel.paper for panel in campaign.panels) and campaign.source and campaign.question
    for cell in cells(campaign):
        assert cell.get("users"), "who makes the load is declared"


def test_a_knob_is_not_called_like_a_measure() -> None:
    assert not KNOBS.keys() & MEASURES.keys()  # both are columns of trials.csv


def test_quick_is_the_same_with_less(campaign: Campaign) -> None:
    quick = campaign.quickened()
    assert (quick.repeats, quick.runs_per_user, quick.workload("short").runs_per_user) == (1, 1, 1)
    assert cells(quick) == cells(campaign) and campaign.workload("short").runs_per_user == 2
    assert campaign.workload("coding").workload == "coding"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("in_flight: [1, 2]", "inflight: [1, 2]", "'in_flight' would be"),
        ("joules_per_token", "joule_per_token", "'joules_per_token' would be"),
        ("[short, summarize+short]", "[shor]", "no workload 'shor'; 'short' would be"),
        ("[short, summarize+short]", "[short+short]", "names a workload twice"),
        ("sweep: gate", "sweep: gat", "'gate' would be"),
        ("repeats: 3", "repeat: 3", "'repeats' would be"),
        ("repeats: 3", "repeats: 0", "greater than or equal to 1"),
        ("shape: falls", "shape: lowest_at", "lowest_at needs a value"),
        ("shape: falls", "{shape: falls", "not valid YAML"),
        ("kind: lines", "kind: dual", "needs 2 measures"),
        ("fixed: {users: 2", "fixed: {user: 2", "'users' would be"),
        ("workload: search", "workload: serach", "'search' would be"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(text: str, before: str, after: str, said: str) -> None:
    assert before in text
    with pytest.raises(CampaignError, match=said.replace("+", r"\+")) as caught:
        parse(text.replace(before, after), "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ") and "\n" not in str(caught.value)


def test_a_campaign_is_found_by_its_name_or_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert load(str(file)).name == "small"
    with pytest.raises(CampaignError, match="'rq2' would be"):
        load("rq22")
    with pytest.raises(CampaignError, match="a mapping"):
        parse("- 1")
