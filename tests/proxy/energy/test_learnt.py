import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from proxy.energy import learnt
from proxy.energy.attribution import Attribution
from proxy.energy.fit import Fit
from proxy.energy.floor import Floor
from proxy.energy.learnt import Learnt
from proxy.energy.prior import Coefficients

PRIOR = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
GPU = "h1/gpu:0"


def taught() -> Fit:
    fit, rng = Fit(PRIOR), np.random.default_rng(1)
    for _ in range(200):
        quantities = rng.uniform(1, 100, 4) * (1, 100, 10, 10_000)
        for setting, gain in (("", 1.3), ("300 W", 0.9)):
            fit.observe(quantities, gain * float(np.array([2.0, 0.0165, 0.025, 0.00007]) @ quantities), 0.5, setting)
    fit.refit()
    return fit


def test_what_was_learnt_outlives_the_process(tmp_path: Path) -> None:
    path = learnt.beside(tmp_path / "ledger.sqlite")
    attribution = Attribution()
    attribution.remember(Learnt({"e1": taught().state()}, {GPU: Floor.of({**Floor().state(), "watts": 122.0})}))
    attribution.add_engine("e1", (GPU,), replace(PRIOR, step_j=9.0))  # the model is not known yet
    attribution.price("e1", PRIOR)
    learnt.write(path, learnt.encode(attribution.learnt()))

    again = Attribution()
    again.remember(learnt.read(path))
    again.add_engine("e1", (GPU,), PRIOR)
    again.add_engine("e2", (GPU,), PRIOR)
    first, second, fresh = attribution.method("e1", 0.0), again.method("e1", 0.0), again.method("e2", 0.0)
    assert first and second and fresh
    assert second == first and second.windows > 300 and second.step_j == pytest.approx(2.6, rel=0.02)
    assert fresh.windows == 0 and fresh.step_j == 2.0
    assert again.floors[GPU].watts == 122.0
    resumed = Fit.of(PRIOR, taught().state())
    assert resumed.prices("300 W") == taught().prices("300 W"), "of every setting"


def test_prices_of_another_prior_are_not_taken_over() -> None:
    other = replace(PRIOR, step_j=5.0)
    assert Fit.of(other, taught().state()).prices() is other


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"c0": "x"},
        taught().state() | {"z": [1, 2]},
        taught().state() | {"z": [1, 2, 3, float("nan")]},
        taught().state() | {"sums": {"": {"pp": 1}}},
        taught().state() | {"gains": 7},
    ],
)
def test_what_cannot_be_understood_is_learnt_anew(state: dict[str, Any]) -> None:
    assert Fit.of(PRIOR, state).prices() is PRIOR


def test_a_file_that_is_missing_or_broken_costs_what_it_knew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "learnt.json"
    assert learnt.read(path) == Learnt() and not caplog.records
    for content in (
        b"",
        b"{",
        b"[1]",
        b'{"version": 9}',
        orjson.dumps({"version": 1, "engines": {}, "floors": {"d": 1}}),
    ):
        caplog.clear()
        path.write_bytes(content)
        assert learnt.read(path) == Learnt()
        assert len(caplog.records) == 1 and "learnt anew" in caplog.text


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        learnt.write(tmp_path / "no folder" / "learnt.json", b"{}")
    assert "cannot be written" in caplog.text
