from dataclasses import replace
from pathlib import Path

import pytest

from loadgen.campaign.definition import Campaign
from loadgen.campaign.faults import CampaignError
from loadgen.campaign.folder import Refusal
from loadgen.campaign.grid import Trial, cells
from loadgen.campaign.rows import Row, read, rows_of, write
from loadgen.campaign.trial import virtually
from loadgen.measures import Check


def test_rows_come_back_as_they_were(campaign: Campaign, tmp_path: Path) -> None:
    alone, beside = (Trial(cells(campaign)[index], 1) for index in (0, 2))
    rows = [
        *rows_of(alone, virtually(campaign, alone), "whole"),
        *rows_of(beside, virtually(campaign, beside), "whole"),
        *rows_of(replace(alone, repeat=2), Refusal("infeasible", "out of memory"), "whole"),
        Row("x in_flight=None", "x", "x", 1, "ok", settings={"in_flight": None, "enable_prefix_caching": True}),
    ]
    assert write(tmp_path / "trials.csv", rows) == 6
    found = read(tmp_path)
    assert [replace(row, measures={}) for row in found] == [replace(row, measures={}) for row in rows]
    assert found[:4] == rows[:4] and found[4].measures["latency_s"] is None
    assert [row.of for row in found] == ["short", "summarize+short", "summarize", "short", "short", "x"]
    assert {row.quality for row in found[:4]} == {"emulated"} and not found[4].ok
    both, one, other = (row.measures["tokens_counted"] or 0 for row in found[1:4])
    assert both == one + other and one > 0 < other


def test_an_invalid_trial_says_why(campaign: Campaign) -> None:
    trial = Trial(cells(campaign)[0], 1)
    result = virtually(campaign, trial)
    late = replace(result, load=replace(result.load, valid=False, reasons=("requests were sent 90 ms late",)))
    (row,) = rows_of(trial, late, "whole")
    assert (row.status, row.reason, row.ok) == ("invalid", "requests were sent 90 ms late", False)


def test_the_campaigns_check_is_that_of_its_runs(campaign: Campaign) -> None:
    trial = Trial(cells(campaign)[0], 1)
    result = virtually(campaign, trial)
    slowest_s = max(run.latency_s for run in result.runs)
    for latency_s, low, high in ((slowest_s, 1.0, 1.0), (0.99 * slowest_s, 0.0, 0.9)):
        (row,) = rows_of(trial, result, "whole", Check(latency_s=latency_s))
        assert low <= (row.measures["passed_share"] or 0.0) <= high


def test_what_is_no_table_of_a_campaign_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="cannot be read: No such file"):
        read(tmp_path)
    (tmp_path / "trials.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CampaignError, match=r"is no trials\.csv"):
        read(tmp_path)
