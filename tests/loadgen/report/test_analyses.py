import csv
from pathlib import Path

import pytest

from loadgen.campaign.definition import Analysis, Campaign, parse
from loadgen.campaign.grid import cells_of
from loadgen.campaign.rows import Row
from loadgen.report.analyses import section

TEXT = """
name: made-up
title: Made up
fixed: {users: 1}
sweeps:
  lengths: {workloads: [request], knobs: {input_tokens: [100, 200, 400], output_tokens: [10, 20], model: [small, big]}}
  knobs: {workloads: [search, coding], knobs: {in_flight: [1, 4], power_limit_w: [300, 500]}}
  company: {workloads: [search, coding, coding+search], knobs: {in_flight: [4]}}
"""


@pytest.fixture
def campaign() -> Campaign:
    return parse(TEXT)


def rows(campaign: Campaign, sweep: str, joules, repeats: int = 3, measure: str = "joules_per_run") -> list[Row]:
    """A row a cell, part of a cell and repeat, whose joules are what `joules(cell, of, repeat)` says; None: invalid."""
    found: list[Row] = []
    for cell in cells_of(campaign, campaign.sweeps[sweep]):
        for repeat in range(1, repeats + 1):
            for of in dict.fromkeys((cell.workload, *cell.parts)):
                value = joules(cell, of, repeat)
                status = "invalid" if value is None else "ok"
                found.append(Row(cell.key, cell.workload, of, repeat, status, measures={measure: value}))
    return found


def test_an_energy_model_for_each_setting_of_the_other_knobs(campaign: Campaign) -> None:
    def joules(cell, of: str, repeat: int) -> float:
        times = 2.0 if cell.get("model") == "big" else 1.0
        return times * (0.01 * cell.get("input_tokens") + (2.0 + 0.1 * repeat) * cell.get("output_tokens"))

    made = section(campaign, Analysis(kind="energy model", sweep="lengths"), rows(campaign, "lengths", joules))
    small, big = made.rows
    assert small[0] == "model small" and small[1].startswith("10 (") and small[2].startswith("2200 (1952 to 2448)")
    assert big[2].startswith("4400 (") and small[4].startswith("1") and small[5] == "6"


def test_a_model_that_lacks_cells_says_so(campaign: Campaign) -> None:
    made = section(campaign, Analysis(kind="energy model", sweep="lengths"), [])
    assert made.rows == () and "For model small: no repeat has all cells." in made.text


def test_variance_goes_to_the_knob_that_matters(campaign: Campaign) -> None:
    def joules(cell, of: str, repeat: int) -> float:
        return (8.0 if cell.get("in_flight") == 1 else 2.0) * (1.1 if cell.workload == "coding" else 1.0)

    analysis = Analysis(kind="variance", sweep="knobs", measure="joules_per_run")
    made = section(campaign, analysis, rows(campaign, "knobs", joules))
    assert [row[0] for row in made.rows][:2] == ["in_flight", "workload"]
    assert made.rows[0][1] == "99.5%" and made.rows[-1][0] == "the rest, chance among it"
    assert made.name == "variance_joules_per_run" and "8 cells and 3 repeats" in made.text
    nothing = section(campaign, analysis, rows(campaign, "knobs", lambda *_: 1.0))
    assert not nothing.rows and "all values are the same" in nothing.text


def test_repeats_that_lack_a_cell_are_left_out_of_variance(campaign: Campaign) -> None:
    def joules(cell, of: str, repeat: int) -> float | None:
        return None if repeat == 2 and cell.get("in_flight") == 1 else float(cell.get("in_flight") * repeat)

    analysis = Analysis(kind="variance", sweep="knobs")
    assert "8 cells and 2 repeats" in section(campaign, analysis, rows(campaign, "knobs", joules)).text
    assert "No repeat has all cells" in section(campaign, analysis, []).text


def test_interference_is_a_matrix_of_pairs(campaign: Campaign, tmp_path: Path) -> None:
    def joules(cell, of: str, repeat: int) -> float:
        alone = 100.0 * repeat
        return alone if len(cell.parts) == 1 else alone * (0.8 if of == "search" else 1.5)

    made = section(campaign, Analysis(kind="interference", sweep="company"), rows(campaign, "company", joules))
    assert made.heads == ("workload", "alone, J", "beside search", "beside coding")
    search, coding = made.rows
    assert search[0] == "search, in_flight 4" and search[1].startswith("200 (")
    assert search[2] == "" and search[3] == "-20% (-20% to -20%)" and coding[2] == "+50% (+50% to +50%)"
    assert list(csv.reader(made.write(tmp_path).open()))[1] == list(search)
    empty = section(campaign, Analysis(kind="interference", sweep="company"), [])
    assert empty.rows[0][1:] == ("not known", "", "not known")
