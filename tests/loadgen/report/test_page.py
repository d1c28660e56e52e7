import csv
import re
from pathlib import Path

import pytest

from loadgen.campaign.definition import Campaign, load, parse
from loadgen.campaign.folder import Folder
from loadgen.campaign.run import carry_out
from loadgen.campaign.trial import virtually
from loadgen.report.interactive import script
from loadgen.report.page import availability, write
from loadgen.report.tables import write_all

TEXT = """
name: little
title: Little & often
question: Does it fall?
source: a paper
worth: [It says <little>.]
repeats: 2
fixed: {users: 3, output_tokens: 20}
workloads: {short: {workload: search, fields: {queries: [2, 2]}}}
sweeps:
  gate: {workloads: [short], knobs: {in_flight: [1, 3], engine: [vllm, parrot]}}
panels:
  - {figure: "1", title: Joules, sweep: gate, kind: lines, measures: [joules_per_token], paper: It <falls>.,
     expects: [{of: vllm, shape: falls}, {of: vllm, shape: below, value: parrot}]}
  - {figure: "2", title: Busy, sweep: gate, kind: timeline, only: {in_flight: 3}}
  - {figure: "3", title: Parrot, sweep: gate, kind: box, measures: [hit_rate], only: {engine: parrot}}
"""


@pytest.fixture
def done(tmp_path: Path) -> tuple[Campaign, Folder]:
    campaign = parse(TEXT)
    folder = Folder(tmp_path, campaign, "virtual time")
    carry_out(campaign, folder, virtually, lambda _: None)
    return campaign, folder


def test_a_report_opens_with_what_was_claimed_and_seen_and_needs_nothing_beside_it(
    done: tuple[Campaign, Folder],
) -> None:
    report, *files = write(*done)
    page = report.read_text()
    assert not re.search("(src|href)=", page.replace(script(), ""))
    body = page[page.index("<body>") :]
    assert body.index("a model&#x27;s figures") < body.index("<h2>What was claimed") < body.index("<h2>Figures")
    assert body.index("It says &lt;little&gt;.") < body.index("<h2>What was claimed")
    assert "It &lt;falls&gt;." in body and "Little &amp; often" in body
    assert "vllm falls throughout: <span class='agrees'>agrees</span>" in body
    assert "vllm: emulated; parrot: not possible: the emulator has no engine &#x27;parrot&#x27;" in body
    assert "below parrot throughout: <span class='not'>not seen</span>" in body
    assert "vllm, share of time that the GPU was busy: " in body
    assert body.count("<td>no</td>") == 1  # both accountings of the one claim that could be judged
    assert "4 cells" in body and "random order" in body and "Student" in body and "4 not possible" in body
    assert body.count("Plotly.newPlot") == 2  # nothing of the third can be drawn
    assert {file.name for file in files} >= {"trials.csv", "runs.csv", "requests.csv", "1.png", "1.svg", "2.png"}


def test_tables_hold_every_trial_run_and_request(done: tuple[Campaign, Folder]) -> None:
    campaign, folder = done
    write_all(campaign, folder)
    tables = {
        name: list(csv.DictReader((folder.path / f"{name}.csv").open())) for name in ("trials", "runs", "requests")
    }
    assert [len(table) for table in tables.values()] == [4 * 2, 2 * 2 * 3, 2 * 2 * 3 * 2]
    names = ("cell", "repeat", "run")
    for run in tables["runs"]:
        own = [one for one in tables["requests"] if all(one[name] == run[name] for name in names)]
        assert sum(float(one["joules"]) for one in own) == pytest.approx(float(run["joules"]))
        assert float(run["joules_on_path"]) == pytest.approx(float(run["joules"]))  # one after the other
    assert {run["quality"] for run in tables["runs"]} == {"emulated"}


def test_what_is_not_there_yet_is_said(tmp_path: Path) -> None:
    campaign = load("rq2")
    assert availability(campaign, campaign.panels[0], []) == "not tried yet"
    folder = Folder(tmp_path, campaign, "virtual time")
    assert "not tried" in write(campaign, folder)[0].read_text()
