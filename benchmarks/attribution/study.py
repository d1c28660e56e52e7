"""One mix after the other: what each method makes of it, beside Shapley's values."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import numpy as np

from benchmarks.attribution import baselines
from benchmarks.attribution.load import random_mix
from benchmarks.attribution.seen import play
from emulator.core.presets import GpuPreset, ModelPreset, load_gpu, load_model
from proxy.energy.prior import Coefficients, prior
from proxy.energy.replay import Held, Outcome, Window, fitted, replay
from proxy.energy.trace import Scenario

GPU, MODEL = "h200", "llama-2-7b"
FITTED, PRIOR, WRONG = "ours", "ours, unfitted", "ours, fitted from a wrong prior"
WRONG_BY = 2.0


@dataclass(frozen=True)
class Found:
    """What one mix showed. Errors are Σ |joules - Shapley's| over Shapley's sum; `each` pairs the two by request."""

    figures: dict[str, Any]
    each: list[tuple[str, float, float]]  # class, by Shapley's rule, ours
    windows: list[Window]


@cache
def _presets() -> tuple[GpuPreset, ModelPreset]:
    return load_gpu(GPU), load_model(MODEL)


def shipped() -> Coefficients:
    """The prior that a gateway has for this card and model."""
    return prior("NVIDIA H200", MODEL)


def wrong(seed: int) -> Coefficients:
    """A prior that is off by up to `WRONG_BY` in every price, and says so: as for hardware that nobody measured."""
    rng, right = Random(seed), shipped()
    names = ("step_j", "prompt_j", "output_j", "context_j")
    off = {name: getattr(right, name) * WRONG_BY ** rng.uniform(-1, 1) for name in names}
    return replace(right, **off, spread=WRONG_BY, source="wrong on purpose")


def study(job: tuple[int, float, str]) -> Found:
    """Play the mix of (seed, seconds, what bends it) and attribute it."""
    mix = random_mix(*job)
    truth, scenario = play(mix, *_presets())
    unfitted = Held(shipped())
    first = replay(scenario, {"e": unfitted})
    ours = _attributed(scenario, fitted(shipped(), unfitted.seen).prices())
    off = wrong(mix.seed)
    beside = _attributed(scenario, fitted(off, unfitted.seen).prices())
    outcomes = {FITTED: ours, PRIOR: first, WRONG: beside}
    methods = {name: {one: amount.uj / 1e6 for one, amount in o.by_request.items()} for name, o in outcomes.items()}
    methods |= baselines.shared(scenario)
    whole_j = sum(truth.joules.values())
    figures = {
        "seed": mix.seed,
        "bent": mix.bent,
        "users": mix.users,
        "requests": len(scenario.served),
        "steps": len(truth.steps),
        "joules": round(whole_j, 1),
        "errors": {name: round(error(joules, truth.joules), 5) for name, joules in methods.items()},
        "classes": _classes(methods[FITTED], truth.joules),
        "in_band": round(_in_band(ours, truth.joules), 3),
        "bent_share": round(truth.bent_j / whole_j, 3),
        "preemptions": truth.preemptions,
        "sampling": round(sum(variance**0.5 for variance in truth.variance.values()) / whole_j, 6),
        "interpolation": round(truth.off_j / whole_j, 5),
        "residual_uj": ours.residual_uj,
    }
    each = [(one.cls, truth.joules.get(one.id, 0.0), methods[FITTED][one.id]) for one in scenario.served]
    return Found(figures, each, unfitted.seen)


def _attributed(scenario: Scenario, prices: Coefficients) -> Outcome:
    return replay(scenario, {"e": Held(prices)})


def error(joules: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Σ |error| / E over all requests that either of the two knows."""
    off = sum(abs(joules.get(name, 0.0) - truth.get(name, 0.0)) for name in {*joules, *truth})
    return off / sum(truth.values())


def _classes(joules: Mapping[str, float], truth: Mapping[str, float]) -> dict[str, float]:
    """How far each class's sum is off."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name in truth:
        sums[name.partition("-")[0]][0] += joules.get(name, 0.0)
        sums[name.partition("-")[0]][1] += truth[name]
    return {cls: round(ours / right - 1, 4) for cls, (ours, right) in sums.items()}


def _in_band(outcome: Outcome, truth: Mapping[str, float]) -> float:
    """The part of the requests whose Shapley value lies in the band that was given."""
    within = [a.low_uj <= truth.get(name, 0.0) * 1e6 <= a.high_uj for name, a in outcome.by_request.items()]
    return float(np.mean(within))
