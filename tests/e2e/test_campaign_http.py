"""A campaign through a gateway, whose gate it turns, at an engine that does not exist: its totals are the books'."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from stage import Gateway, environment, until

from loadgen import collect
from loadgen.campaign.definition import parse
from loadgen.campaign.folder import Folder
from loadgen.campaign.grid import trials
from loadgen.campaign.machine import Machine, OverHttp
from loadgen.campaign.run import carry_out
from loadgen.record import Result

COMMAND = ("-u", "-m", "joulegate", "emulate", "--gpu", "h200", "--port", "0", "--zeusd-port", "0")
CAMPAIGN = """
name: gate
title: The gate
repeats: 1
fixed: {users: 4, output_tokens: 12}
workloads: {one: {workload: request, fields: {input_tokens: 200}, runs_per_user: 2}}
sweeps: {gate: {workloads: [one], knobs: {in_flight: [1, 4]}}}
"""
TURN = """
import os, re, signal, sys
text = open(sys.argv[1]).read()
open(sys.argv[1], "w").write(re.sub("in_flight: .*", "in_flight: " + os.environ["JOULEGATE_IN_FLIGHT"], text))
"""


def test_a_campaign_over_http_keeps_the_gateways_books(
    make_gateway: Callable[..., Gateway], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "SETTLED_AFTER_S", 1.0)
    said = tmp_path / "emulate.txt"
    with said.open("w") as out:
        process = subprocess.Popen([sys.executable, *COMMAND], stdout=out, stderr=out, env=environment(tmp_path))
    try:
        until(lambda: said.read_text().endswith("}\n"))
        text = said.read_text()
        config = yaml.safe_load(text[text.index("hosts: ") :]) | {"limits": {"in_flight": 9}}
        gateway = make_gateway(config)
        script = tmp_path / "turn.py"
        script.write_text(TURN)
        reload = f"curl -sf -X POST {gateway.url}/admin/reload >&2"
        command = f"{sys.executable} {script} {gateway.folder}/joulegate.yaml && {reload}"
        machine = Machine.model_validate(
            {"url": gateway.url, "exact": True, "turn": [{"knobs": ["in_flight"], "command": command}]}
        )
        campaign = machine.campaign(parse(CAMPAIGN))
        folder = Folder(tmp_path / "campaign", campaign, "HTTP")
        carry_out(campaign, folder, OverHttp(machine), lambda _: None)
    finally:
        process.terminate()
        process.wait(20)
    results = [folder.read(trial) for trial in trials(campaign)]
    assert len(results) == 2
    for result in results:
        assert isinstance(result, Result)
        books = result.load.facts["books"]
        assert books["agrees"] and books["ledger"]["requests"] == 8 and books["counters"]["joules"] > 0
        assert (books["ledger"]["prompt_tokens"], books["ledger"]["output_tokens"]) == (8 * 200, 8 * 12)
