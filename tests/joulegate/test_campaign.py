from pathlib import Path

import pytest
from typer.testing import CliRunner

from joulegate.cli import app

TEXT = """
name: little
title: Little
repeats: 3
fixed: {users: 4, output_tokens: OUT}
workloads: {short: {workload: search, fields: {queries: [2, 3]}}}
sweeps:
  gate: {workloads: [short], knobs: {in_flight: [1, 4]}}
panels:
  - {figure: "1", title: Joules, sweep: gate, kind: lines, measures: [joules_per_token]}
"""


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "400"})
    return result.exit_code, result.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "little.yaml"
    path.write_text(TEXT.replace("OUT", "20"))
    return path


def test_a_campaign_ends_with_its_report_and_is_not_done_twice(file: Path, tmp_path: Path) -> None:
    status, said = run("campaign", file, "--out", tmp_path / "a")
    assert status == 0 and "6/6" in said and "emulated" in said
    assert (tmp_path / "a" / "report.html").exists() and (tmp_path / "a" / "figures" / "1.png").exists()
    trial = next((tmp_path / "a" / "trials").rglob("*.gz"))
    before = trial.stat().st_mtime_ns
    assert run("campaign", file, "--out", tmp_path / "a", "--repeats", "4")[0] == 0
    assert trial.stat().st_mtime_ns == before and len(list((tmp_path / "a" / "trials").rglob("*.gz"))) == 8


def test_campaigns_that_ship_are_listed_and_others_named_right() -> None:
    status, said = run("campaign")
    assert status == 0 and {"rq1:", "rq2:", "rq3:"} <= set(said.split())
    status, said = run("campaign", "rq9")
    assert status == 1 and said.startswith("joulegate: 'rq9' is neither a file nor a campaign that ships; 'rq")


def test_two_campaigns_are_compared_and_a_gate_stands_between_them(file: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(file.read_text().replace("[2, 3]", "[2, 3], system_tokens: 2000"))
    for path, name in ((file, "a"), (changed, "b")):
        assert run("campaign", path, "--out", tmp_path / name)[0] == 0
    a, b = tmp_path / "a", tmp_path / "b" / "trials.csv"
    status, said = run("compare", a, b, "--measure", "joules_per_run")
    assert status == 0 and "2 better, 0 worse" in said and "better: -" in said
    assert run("gate", a, b) == (0, "passed: 4 comparisons, 5.0% worse allowed\n")
    status, said = run("gate", b, a, "--measure", "joules_per_run", "--max-regression", "1%")
    assert status == 1 and said.count("regressed: short in_flight=") == 2
    assert run("gate", b, a, "--measure", "joules_per_run", "--max-regression", "900%")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compare", "FOLDER", "missing"), "cannot be read"),
        (("compare", "FOLDER", "FOLDER", "--measure", "joules"), "there is no measure 'joules'"),
        (("gate", "FOLDER", "FOLDER", "--max-regression", "much"), "a share such as 5%, got 'much'"),
    ],
)
def test_what_is_wrong_is_one_line(file: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    run("campaign", file, "--out", tmp_path / "a", "--repeats", "1")
    status, output = run(*(one.replace("FOLDER", str(tmp_path / "a")) for one in arguments))
    assert status == 1 and said in output and output.count("\n") == 1
