"""The rig's configuration and campaign, without starting any of it."""

from pathlib import Path

from benchmarks.parrot import CAMPAIGN, ends, machine
from benchmarks.parrot_rig import MODELS, configuration, real
from loadgen.campaign.definition import load
from loadgen.campaign.grid import cells
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
