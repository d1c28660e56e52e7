from dataclasses import replace

import pytest

from loadgen.campaign.definition import Campaign, Expect
from loadgen.report.findings import accounts, findings
from loadgen.report.points import lines

M = "joules_per_token_paper"


def judged(campaign: Campaign, rows, **expect) -> tuple[str, str]:
    panel = campaign.panels[0].model_copy(update={"expects": (Expect(of="search", **expect),)})
    (found,) = findings(campaign, panel, rows)
    return found.verdict, found.seen


@pytest.mark.parametrize(
    ("means", "expect", "verdict"),
    [
        ([8, 4, 2, 1], {"shape": "falls"}, "agrees"),
        ([8, 4, 5, 1], {"shape": "falls"}, "differs"),
        ([8, 4, 5, 1], {"shape": "falls", "to": 2}, "agrees"),
        ([1, 1, 1, 1], {"shape": "falls"}, "differs"),
        ([1, 2, 3, 4], {"shape": "rises"}, "agrees"),
        ([100, 105, 109, 102], {"shape": "flat"}, "agrees"),
        ([100, 105, 111, 102], {"shape": "flat"}, "differs"),
        ([1, 2, 4, 16], {"shape": "linear"}, "agrees"),
        ([1, 9, 9, 9], {"shape": "linear"}, "differs"),
        ([3, 1, 2, 4], {"shape": "lowest_at", "value": 2}, "agrees"),
        ([3, 1, 2, 4], {"shape": "lowest_at", "value": 4}, "differs"),
        ([3, 1, 2, 4], {"shape": "highest_at", "value": 16}, "agrees"),
        ([9, 3, 2, 1], {"shape": "sharpest_from", "value": 1}, "agrees"),
        ([9, 8, 3, 1], {"shape": "sharpest_from", "value": 1}, "differs"),
        ([5, 4, 3, 2], {"shape": "about", "value": 2.6}, "agrees"),
        ([9, 4, 3, 2], {"shape": "about", "value": 2.6}, "differs"),
    ],
)
def test_shapes(campaign: Campaign, make, means: list[float], expect: dict, verdict: str) -> None:
    assert judged(campaign, make([[mean, mean * 1.001, mean * 0.999] for mean in means]), **expect)[0] == verdict


def test_a_step_back_that_the_intervals_cannot_see_is_none(campaign: Campaign, make) -> None:
    noisy = make([[8.0, 9.0], [4.0, 5.0], [4.2, 5.2], [1.0, 1.5]])
    assert judged(campaign, noisy, shape="falls")[0] == "agrees"
    single = make([[8.0], [4.0], [4.2], [1.0]])
    assert judged(campaign, single, shape="falls")[0] == "differs"


def test_what_was_not_tried_is_not_judged(campaign: Campaign, make) -> None:
    assert judged(campaign, [], shape="falls") == ("not seen", "not tried: ")
    assert judged(campaign, make([[1.0], None, None, None]), shape="falls")[0] == "not seen"
    verdict, seen = judged(campaign, make([[8.0, 8.1], [4.0, 4.1], [3.0, 3.1], None]), shape="falls")
    assert verdict == "agrees"
    assert seen == "8.05 at 1, 3.05 J/token at 4 (2.6 times less); infeasible at 16"
    panel = campaign.panels[0].model_copy(update={"expects": (Expect(of="composite", shape="falls"),)})
    assert [one.verdict for one in findings(campaign, panel, [])] == ["not seen"]


def test_invalid_trials_do_not_count(campaign: Campaign, make) -> None:
    rows = [replace(row, status="invalid", reason="late") if row.repeat == 2 else row for row in make([[1.0, 9.0]] * 4)]
    points = lines(campaign, campaign.panels[0], rows, M)["search"]
    assert [point.values for point in points] == [(1.0,)] * 4
    rows = [replace(row, status="invalid", reason="late") for row in rows]
    point = lines(campaign, campaign.panels[0], rows, M)["search"][0]
    assert (point.status, point.reason, point.interval) == ("invalid", "late", None)


def test_series_are_workloads_or_the_other_knob(campaign: Campaign) -> None:
    assert list(lines(campaign, campaign.panels[0], [], M)) == ["search", "coding"]
    assert list(lines(campaign, campaign.panels[3], [], M)) == ["vllm", "parrot"]


def test_one_series_is_held_against_another(campaign: Campaign, make) -> None:
    expect = Expect(of="vllm", shape="below", value="parrot", measure="latency_s")
    panel = campaign.panels[3].model_copy(update={"expects": (expect,)})
    vllm = make([[1.0], [2.0]], "latency_s", knob="output_tokens", engine="vllm")
    for parrot, verdict in (([1.1], [2.2]), "agrees"), (([1.1], [1.9]), "differs"), (("no", "no"), "not seen"):
        rows = vllm + make(parrot, "latency_s", knob="output_tokens", engine="parrot")
        (found,) = findings(campaign, panel, rows)
        assert found.verdict == verdict
    assert found.seen == "nothing of parrot (not possible: no)"


def test_both_accountings_are_judged_and_whether_it_matters(campaign: Campaign, make) -> None:
    panel = campaign.panels[0].model_copy(update={"expects": (Expect(of="search", shape="falls"),)})
    paper = make([[8.0], [4.0], [2.0], [1.0]])
    for ours, changes in ([[1.0], [2.0], [3.0], [4.0]], True), ([[4.0], [2.0], [1.0], [0.5]], False):
        rows = [
            replace(row, measures=row.measures | other.measures)
            for row, other in zip(paper, make(ours, "joules_per_token"), strict=True)
        ]
        (found,) = accounts(campaign, panel, rows)
        assert found.changes is changes
        assert (found.paper.measure, found.ours.measure) == ("joules_per_token_paper", "joules_per_token")
