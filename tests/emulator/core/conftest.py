"""A small card with a cost that anyone can compute, until and beside the calibrated one."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from emulator.core.machine import Machine
from emulator.core.settings import EngineSettings
from emulator.core.step import StepCost, StepWork


@dataclass
class LinearCard:
    """Five milliseconds for the weights, 0.2 ms a prompt token, and what each token of context adds."""

    power_limit_w: float = 700.0
    idle_power_w: float = 100.0
    curved: float = 0.0  # seconds a squared (mean context / 1000), to be not quite linear
    energy_j: float = 0.0
    worked_s: float = 0.0
    rested_s: float = 0.0
    asked: int = 0

    @property
    def limits(self) -> float:
        return self.power_limit_w

    def step(self, work: StepWork) -> StepCost:
        self.asked += 1
        seconds = 0.005 + 0.0002 * work.prefill_tokens + 1e-8 * work.prefill_attended
        seconds += 2e-5 * work.decode_sequences + 1e-7 * (work.decode_context + work.prefill_context)
        if work.decode_sequences:
            seconds += self.curved * (work.decode_context / work.decode_sequences / 1000) ** 2
        seconds *= 700 / self.power_limit_w
        return StepCost(seconds, joules=0.5 * self.power_limit_w * seconds, sm_mhz=1000, capped=False)

    def spend(self, joules: float, seconds: float) -> None:
        assert joules >= 0 and seconds >= 0
        self.energy_j += joules
        self.worked_s += seconds

    def rest(self, seconds: float) -> None:
        assert seconds >= 0
        self.energy_j += self.idle_power_w * seconds
        self.rested_s += seconds


@pytest.fixture
def card() -> LinearCard:
    return LinearCard()


@pytest.fixture
def make_card() -> type[LinearCard]:
    return LinearCard


@pytest.fixture
def machine(card: LinearCard) -> Callable[..., Machine]:
    """An engine on `card` with a roomy cache, and the settings that the test names."""

    def build(**settings) -> Machine:
        return Machine(EngineSettings(**{"kv_blocks": 4096, "max_model_len": 4096} | settings), [card])

    return build
