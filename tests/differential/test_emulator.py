"""The emulator does what vLLM did with the same requests: the same frames, counts, errors and order of service."""

from collections.abc import Callable

import pytest
from compare import same
from perform import Player
from recording import load
from script import SCRIPTS, Script
from shape import differences

from proxy.config import EngineConfig
from proxy.engines.vllm import Vllm

RECORDED = {group: load(group) for group in SCRIPTS}


@pytest.mark.parametrize(
    ("group", "script"),
    [pytest.param(group, script, id=script.name) for group, scripts in SCRIPTS.items() for script in scripts],
)
def test_it_answers_as_vllm(emulated: Callable[[str], Player], group: str, script: Script) -> None:
    player = emulated(group)
    told = player.play(script)
    if script.not_emulated:
        assert [(reply["status"], "not emulated" in reply["message"]) for reply in told["replies"]] == [(400, True)]
    else:
        same(RECORDED[group][script.name], told, player.exported())


def test_every_recording_is_of_a_script() -> None:
    assert {group: [*told] for group, told in RECORDED.items()} == {
        group: [script.name for script in scripts] for group, scripts in SCRIPTS.items()
    }


def test_its_metrics_are_vllms(emulated: Callable[[str], Player]) -> None:
    theirs, mine = load("metrics"), emulated("usual").families()
    assert mine, "it exports some"
    for name in [name for name in mine if name.endswith("_info")]:  # labels that are settings, which it has fewer of
        theirs[name]["labels"] = [label for label in theirs[name]["labels"] if label in mine[name]["labels"]]
    unlike = list(differences({name: theirs.get(name) for name in mine}, mine))
    assert not unlike, "names, types, labels or bounds that vLLM does not have"


def test_the_gateway_reads_all_that_it_wants(emulated: Callable[[str], Player]) -> None:
    sample = Vllm(EngineConfig(name="e1", kind="vllm", url="http://host")).parse(
        0.0, emulated("usual").metrics().encode()
    )
    assert sample and not [name for name in sample.__slots__ if getattr(sample, name) is None]
