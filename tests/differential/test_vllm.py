"""Real vLLM still does what was recorded of it; `make test-vllm` starts it and says where it listens."""

import os

import pytest
from compare import same
from perform import Player
from recording import load
from script import SCRIPTS, Script
from shape import differences

from proxy.config import EngineConfig
from proxy.engines.vllm import Vllm

URL, GROUP = os.environ.get("JOULEGATE_VLLM_URL"), os.environ.get("JOULEGATE_VLLM_GROUP", "")
if not URL:
    pytest.skip("no real vLLM: make test-vllm", allow_module_level=True)


@pytest.fixture(scope="module")
def vllm() -> Player:
    assert URL
    return Player(URL)


@pytest.mark.parametrize("script", [pytest.param(script, id=script.name) for script in SCRIPTS.get(GROUP, ())])
def test_it_answers_as_recorded(vllm: Player, script: Script) -> None:
    same(load(GROUP)[script.name], vllm.play(script), vllm.exported())


def test_its_metrics_are_the_recorded_ones(vllm: Player) -> None:
    assert not list(differences(load("metrics"), vllm.families()))


def test_the_gateway_reads_all_that_it_wants(vllm: Player) -> None:
    sample = Vllm(EngineConfig(name="e1", kind="vllm", url="http://host")).parse(0.0, vllm.metrics().encode())
    assert sample and not [name for name in sample.__slots__ if getattr(sample, name) is None]
