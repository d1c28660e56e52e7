"""A small card with a cost that anyone can compute, until and beside the calibrated one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st

from emulator.core.machine import Machine
from emulator.core.prompt import Text
from emulator.core.request import Request
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

    def build(**settings: Any) -> Machine:
        roomy: dict[str, Any] = {"kv_blocks": 4096, "max_model_len": 4096}
        return Machine(EngineSettings(**roomy | settings), [card])

    return build


@dataclass(frozen=True)
class Workload:
    """Settings of a small engine, requests with their arrivals, and cancellations."""

    settings: EngineSettings
    requests: tuple[tuple[float, Request], ...]
    cancels: tuple[tuple[float, str], ...]

    def machine(self, *cards: LinearCard, **more) -> Machine:
        machine = Machine(self.settings, cards, **more)
        for at, request in self.requests:
            machine.submit(request, at)
        for at, request_id in self.cancels:
            machine.cancel(request_id, at)
        return machine


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Few blocks, short contexts and a small budget, so that everything happens that can."""
    block_size = draw(st.sampled_from([4, 16]))
    max_model_len = draw(st.integers(20, 160))
    least = -(-max_model_len // block_size)
    seqs = draw(st.integers(1, 6))
    settings = EngineSettings(
        kv_blocks=draw(st.integers(least, 3 * least)),
        max_model_len=max_model_len,
        block_size=block_size,
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(seqs, 64)),
        policy=draw(st.sampled_from(["fcfs", "priority"])),
        enable_prefix_caching=draw(st.booleans()),
        reserve_full_prompt=draw(st.booleans()),
        max_num_queued_reqs=draw(st.none() | st.integers(1, 8)),
        request_s=draw(st.sampled_from([0.0, 0.002])),
        prompt_token_s=draw(st.sampled_from([0.0, 1e-5])),
        output_s=draw(st.sampled_from([0.0, 0.001])),
    )
    requests, cancels, at = [], [], 0.0
    for number in range(draw(st.integers(1, 12))):
        at += draw(st.sampled_from([0.0, 0.0123, 0.1, 1.7]))
        head = draw(st.sampled_from([("a", 40), ("b", 64), ("c", 1)]))
        tokens = draw(st.integers(1, 60))
        request = Request(
            id=f"r{number}",
            prompt=(Text(*head), Text(number, tokens)),
            max_tokens=draw(st.integers(1, 80)),
            priority=draw(st.integers(0, 2)),
        )
        requests.append((at, request))
        if draw(st.integers(0, 4)) == 0:
            cancels.append((at + draw(st.sampled_from([0.0, 0.001, 0.05, 0.4])), request.id))
    return Workload(settings, tuple(requests), tuple(cancels))


@pytest.fixture(scope="session")
def any_workload() -> st.SearchStrategy[Workload]:
    return workloads()
