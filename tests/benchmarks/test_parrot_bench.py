"""The rig's configuration and campaign, without starting any of it."""

from pathlib import Path

from benchmarks.parrot import CAMPAIGN, ends, machine
from benchmarks.parrot_rig import MODELS, configuration, real
from benchmarks.parrot_table import SHOWN, table
from loadgen.campaign.definition import load
from loadgen.campaign.grid import Cell, cells
from loadgen.campaign.rows import Row
from proxy.config import parse


def test_the_gateway_is_before_the_engine_and_before_parrot(tmp_path: Path) -> None:
    config = parse(configuration(tmp_path, 8080, 8000, 4938, 9000, 8090, "0123456789abcdef"))
    vllm, parrot = config.engines
    assert (vllm.name, parrot.kind) == ("vllm", "parrot") and parrot.egress and parrot.egress.engine == "vllm"
    assert config.ledger.path.parent == tmp_path


def test_parrots_engine_comes_back_through_the_egress() -> None:
    (_, core, at), (_, _, engine) = real(9000, 9001, "http://127.0.0.1:8090/v1", "0123456789abcdef")
    assert core == at["port"] == engine["serve_core"]["port"] == 9000
    assert engine["instance"]["base_url"].endswith(":8090/v1") and engine["instance"]["api_endpoint"] == "chat"


def test_the_campaign_can_be_had_on_the_rig_in_every_cell() -> None:
    campaign = load(CAMPAIGN)
    here = machine("http://127.0.0.1:8080", "a stand-in", batch=8).campaign(campaign)
    assert cells(here) == cells(campaign), "nothing that the rig has is other than the campaign says"
    assert {cell.get("engine") for cell in cells(here)} == MODELS.keys()
    assert {cell.get("mode") for cell in cells(here)} == {"pasted", "nodes"}


def test_the_quick_form_has_the_ends_of_every_sweep() -> None:
    campaign = load(CAMPAIGN)
    quick = ends(campaign)
    assert set(cells(quick)) < set(cells(campaign)) and quick.sweeps.keys() == campaign.sweeps.keys()
    assert quick.sweeps["input"].knobs["input_tokens"] == (500, 2000)


def row(cell: Cell, repeat: int, latency_s: float, status: str = "ok") -> Row:
    measured: dict[str, float | None] = dict.fromkeys(SHOWN, 2.0) | {
        "latency_s": latency_s,
        "dram_joules_per_run": None,
    }
    settings = dict(cell.settings)
    return Row(cell.key, cell.workload, cell.workload, repeat, status, settings=settings, measures=measured)


def test_an_engine_alone_is_held_against_itself_behind_parrot_in_pairs_of_valid_trials() -> None:
    campaign = load(CAMPAIGN)
    alone, behind = (cell for cell in cells(campaign) if cell.get("input_tokens") == 500)
    rows = [row(alone, n, 4.0) for n in (1, 2, 3)] + [row(behind, 1, 6.0), row(behind, 2, 6.0)]
    said = table(campaign, [*rows, row(behind, 3, 60.0, "invalid")]).splitlines()
    found = next(line for line in said if "input length 500 tokens" in line)
    assert "| 4 → 6 (+50.0% to +50.0%) | 2 → 2 (+0.0% to +0.0%) |" in found
    assert found.endswith("| not known | 2 |") and sum("not known" in line for line in said) == len(said) - 2
    one = next(line for line in table(campaign, [rows[0], rows[3]]).splitlines() if "500 tokens" in line)
    assert "| 4 → 6 (+50.0%) |" in one, "one pair has no interval"
