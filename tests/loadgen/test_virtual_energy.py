"""Shares in virtual time against Shapley values of every step, which are what each request should pay."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.attribution.shapley import Card, shapley
from emulator.core.machine import Observed
from emulator.core.presets import load_gpu
from loadgen import virtual
from loadgen.arrivals import Closed
from loadgen.request import Request
from loadgen.schedule import Load, Stream
from loadgen.summarize import Summarize
from loadgen.virtual_energy import Prices
from loadgen.virtual_host import Host


def test_shares_are_close_to_shapleys(monkeypatch: pytest.MonkeyPatch) -> None:
    truth: Counter[str] = Counter()

    class Watched(virtual.Machine):
        def __init__(self, settings, cards) -> None:
            super().__init__(settings, cards, observer=self.play)
            self.card, self.rng = Card(cards[0].gpu), np.random.default_rng(0)

        def play(self, step: Observed) -> None:
            joules = shapley(self.card, list(step.parts.values()), [], 0.0, self.rng).joules
            for name, part in zip(step.parts, joules * (step.joules / joules.sum()), strict=True):
                truth[name] += part

    monkeypatch.setattr(virtual, "Machine", Watched)
    work = (Summarize(document_tokens=(3000, 5000)), Request(100, 120), Request(2000, 10))
    streams = tuple(Stream((workload,), Closed(2), 4) for workload in work)
    result = virtual.run(Load(streams, seed=2), Host())
    of_stream = {stream: [0.0, 0.0] for stream in range(3)}
    for request in result.requests:
        assert request.energy
        of_stream[request.stream][0] += truth[f"{request.run}/{request.node}"]
        of_stream[request.stream][1] += request.energy.by_component["gpu"]
    for should, does in of_stream.values():
        assert does == pytest.approx(should, rel=0.06)


def test_prices_are_those_that_were_measured() -> None:
    """On a real H200: 2.00 J a step, 16.5 mJ an uncached prompt token, 0.070 mJ a token of context."""
    _, (card,) = Host().engine(load_gpu("h200"))
    prices = Prices.of(card.gpu)
    assert prices.step_j == pytest.approx(2.0, rel=0.25) and prices.prompt_j == pytest.approx(0.0165, rel=0.25)
    assert prices.context_j == pytest.approx(70e-6, rel=0.5) and prices.output_j > 0
