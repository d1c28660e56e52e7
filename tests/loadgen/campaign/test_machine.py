from pathlib import Path

import pytest

from loadgen import http
from loadgen.answer import AnswerError
from loadgen.campaign import machine as machines
from loadgen.campaign.books import Agreement, Books, Totals
from loadgen.campaign.definition import Campaign, parse
from loadgen.campaign.faults import CampaignError
from loadgen.campaign.grid import Trial, cells
from loadgen.campaign.machine import Machine, OverHttp, load
from loadgen.campaign.trial import Infeasible, NotPossibleHere, virtually
from loadgen.client import Target
from loadgen.record import Result
from loadgen.schedule import Load

FILE = """
url: http://127.0.0.1:8080
is: {gpu: h200}
turn:
  - {knobs: [in_flight], command: echo gate $JOULEGATE_IN_FLIGHT >> LOG}
  - {knobs: [max_num_seqs, max_num_batched_tokens],
     command: 'echo engine $JOULEGATE_MAX_NUM_SEQS >> LOG;
       [ $JOULEGATE_MAX_NUM_SEQS -lt 64 ] || { echo no room >&2; exit 3; }'}
"""
CAMPAIGN = """
name: little
title: Little
fixed: {gpu: a100-40g, users: 1, output_tokens: 20}
sweeps:
  gate: {workloads: [search], knobs: {max_num_seqs: [8, 64], in_flight: [1, null]}}
"""


@pytest.fixture
def campaign() -> Campaign:
    return parse(CAMPAIGN)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    file = tmp_path / "machine.yaml"
    file.write_text(FILE.replace("LOG", str(tmp_path / "log")))
    return load(file)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Load, Target]]:
    """What was asked of an endpoint that is not there; it answers as the emulator would."""
    asked: list[tuple[Load, Target]] = []

    def run(load: Load, target: Target) -> Result:
        asked.append((load, target))
        return virtually(parse(CAMPAIGN), Trial(cells(parse(CAMPAIGN))[0], 1))

    monkeypatch.setattr(http, "run", run)
    return asked


def test_knobs_are_turned_when_they_change_and_only_then(
    machine: Machine, campaign: Campaign, tmp_path: Path, served: list[tuple[Load, Target]]
) -> None:
    here, drive = machine.campaign(campaign), OverHttp(machine)
    narrow, wide, big, _ = cells(here)
    for cell, repeat in ((narrow, 1), (wide, 1), (wide, 2), (narrow, 2)):
        drive(here, Trial(cell, repeat))
    assert (tmp_path / "log").read_text().split("\n") == ["gate 1", "engine 8", "gate", "gate 1", ""]
    with pytest.raises(Infeasible, match=r"^no room$"):
        drive(here, Trial(big, 1))
    drive(here, Trial(narrow, 3))  # nobody knows what the engine is after that: it is set again
    assert (tmp_path / "log").read_text().split("\n")[-3:] == ["engine 64", "engine 8", ""]
    assert len(served) == 5 and len({target.cache_salt for _, target in served}) == 5
    assert narrow.get("gpu") == "h200"


def test_an_engine_behind_a_gateway_is_chosen_by_its_model(served: list[tuple[Load, Target]]) -> None:
    machine = Machine.model_validate(
        {"url": "http://127.0.0.1:9", "model": "m", "is": {"gpu": "h200"}, "models": {"vllm": "llama", "parrot": "by"}}
    )
    knobs = "knobs: {engine: [vllm, parrot, tgi], mode: [nodes]}"
    text = CAMPAIGN.replace("knobs: {max_num_seqs: [8, 64], in_flight: [1, null]}", knobs)
    here = machine.campaign(parse(text))
    vllm, parrot, other = cells(here)
    for cell in (vllm, parrot):
        OverHttp(machine)(here, Trial(cell, 1))
    assert [(target.model, target.mode) for _, target in served] == [("llama", "nodes"), ("by", "nodes")]
    with pytest.raises(NotPossibleHere, match="no model under `models` is served by engine 'tgi'"):
        OverHttp(machine)(here, Trial(other, 1))
    wrong = machine.campaign(parse(text.replace("[nodes]", "[dag]")))
    with pytest.raises(NotPossibleHere, match="mode must be one of calls, pasted, nodes, got 'dag'"):
        OverHttp(machine)(wrong, Trial(cells(wrong)[0], 1))


def test_what_the_machine_cannot_turn_is_not_tried(campaign: Campaign, served: list[tuple[Load, Target]]) -> None:
    machine = Machine.model_validate({"url": "http://127.0.0.1:9", "is": {"gpu": "h200"}})
    here = machine.campaign(campaign)
    with pytest.raises(NotPossibleHere, match="no command under `turn` sets in_flight"):
        OverHttp(machine)(here, Trial(cells(here)[0], 1))
    assert not served


def test_nobody_answers_for_a_fixed_value_that_is_neither_true_nor_turned(campaign: Campaign) -> None:
    machine = Machine.model_validate({"url": "http://127.0.0.1:9"})
    with pytest.raises(CampaignError, match="the campaign fixes gpu a100-40g: say what this machine has under `is`"):
        machine.campaign(campaign)


@pytest.mark.parametrize(
    ("command", "said"),
    [("echo one >&2; echo two >&2; exit 4", "max_num_seqs=8 ended with status 4: two"), ("sleep 5", "within 0.05 s")],
)
def test_a_command_that_fails_ends_the_campaign(campaign: Campaign, command: str, said: str) -> None:
    turn = [
        {"knobs": ["in_flight", "max_num_seqs"], "command": command, "timeout_s": 0.05 if "sleep" in command else 9}
    ]
    machine = Machine.model_validate({"url": "http://127.0.0.1:9", "is": {"gpu": "h200"}, "turn": turn})
    here = machine.campaign(campaign)
    with pytest.raises(CampaignError, match=said):
        OverHttp(machine)(here, Trial(cells(here)[0], 1))


def test_a_machine_that_does_not_serve_ends_the_campaign(
    machine: Machine, campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(load: Load, target: Target) -> Result:
        raise AnswerError("it is down")

    monkeypatch.setattr(machines.http, "run", refuse)
    here = machine.campaign(campaign)
    with pytest.raises(CampaignError, match=r"8080 does not serve: it is down"):
        OverHttp(machine)(here, Trial(cells(here)[0], 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("url: x\nturn: [{knobs: [in_flights], command: x}]", "no knob 'in_flights'"),
        ("url: x\nis: {gpu: a}\nturn: [{knobs: [gpu], command: x}]", "gpu stands under `is` and under `turn`"),
        ("urls: x", "Field required"),
        ("url: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(CampaignError, match=said):
        load(tmp_path / "m.yaml")
    with pytest.raises(CampaignError, match="cannot be read"):
        load(tmp_path / "missing.yaml")


def test_totals_agree_or_not(campaign: Campaign) -> None:
    result = virtually(campaign, Trial(cells(campaign)[0], 1))
    joules = sum(request.energy.joules for request in result.requests if request.energy)
    requests = float(len(result.requests))
    counts = {
        "requests": requests,
        "prompt_tokens": float(sum(request.prompt_tokens or 0 for request in result.requests)),
        "output_tokens": float(sum(request.output_tokens or 0 for request in result.requests)),
    }
    nothing = Totals(dict.fromkeys((*counts, "joules"), 5.0), {"requests": 7.0, "joules": 7.0})

    def after(**other: float) -> Totals:
        ledger = counts | {"joules": joules} | other
        return Totals(
            {name: value + 5.0 for name, value in ledger.items()},
            {"requests": requests + 7.0, "joules": joules + 7.0},
        )

    same = Agreement.of(result, nothing, after())
    assert same and same.agrees and same.said()["load"]["requests"] == requests
    for other in ({"requests": requests + 1}, {"joules": joules + 0.001}, {"output_tokens": 1.0}):
        found = Agreement.of(result, nothing, after(**other))
        assert found and not found.agrees
    assert Agreement.of(result, None, after()) is None


def test_where_there_is_no_gateway_there_are_no_books() -> None:
    assert Books("http://127.0.0.1:9", None).read() is None
