"""What steps and tokens cost on this engine, learnt from its own windows, near what was believed before.

A busy window k of an engine's device moved ΔE_k joules for X_k = (steps, uncached prompt tokens, output tokens,
context):

    ΔE_k ≈ g_s · Σ_p c_p · X_kp          c_p = z_p · c0_p, z_p >= 0

c0 is the prior, z how far it was off, g_s one free gain for each setting s of clocks and limits. With weights of
1 / (ERROR · predicted)² it is a ridge regression: z is normal around 1 with the prior's spread, so a price that the
load never shows alone stays where it was (Hoerl & Kennard 1970; the non-negative minimum by coordinate descent, Franc
et al. 2005). Sums over the windows are all that is kept, and they fade.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxy.energy.prior import Coefficients

Floats = NDArray[np.float64]

ERROR = 0.12  # relative error of a window of half a second: counter steps and the sensor's own sampling
LEAST_S = 0.4  # shorter windows are mostly noise, and are taken together
ENOUGH = 20  # windows before what was learnt is used
_WORTH_IT = 5  # new windows
_FADE = 1 / 2000  # about a quarter of an hour of busy windows is remembered
_NEIGHBOURS = 4.0  # windows in a row err alike: so many count as one
_LEAST_SPREAD = 1.08  # real traffic of one kind was off by as much with every price as good as could be
_DRIFT = 0.1  # a prediction that is off by a tenth on average is of a machine that has changed
_DRIFT_WINDOWS = 40
_ROUNDS = 8
_FAR = 100.0  # a window that is off by more shows a counter's trouble, and no price


@dataclass(slots=True)
class _Sums:
    """Σ over the windows of one setting: φφᵀ, φ·ΔE and how many, weighted; φ_p = c0_p · X_p."""

    pp: Floats = field(default_factory=lambda: np.zeros((4, 4)))
    pe: Floats = field(default_factory=lambda: np.zeros(4))
    windows: float = 0.0

    def fade(self, by: float) -> None:
        self.pp *= by
        self.pe *= by
        self.windows *= by


class Fit:
    """One engine's prices as its windows show them. Joules and counts go in, `prices` come out."""

    def __init__(self, prior: Coefficients) -> None:
        self.prior = prior
        self.drifts = 0  # how often the machine was found to have changed
        self._c0 = np.array([prior.step_j, prior.prompt_j, prior.output_j, prior.context_j])
        self._sigma = max(prior.spread - 1, 1e-3)
        self._z = np.ones(4)
        self._spread = prior.spread
        self._gains: dict[str, float] = {}
        self._sums: dict[str, _Sums] = {}
        self._short: dict[str, tuple[Floats, float, float]] = {}  # quantities, joules, seconds that wait for more
        self._new = 0  # windows since the prices were brought up to date
        self._off = 0.0  # mean of log(measured / predicted) of late
        self._off_windows = 0

    @property
    def windows(self) -> int:
        """Windows that the prices rest on; 0 while they are the prior's."""
        return round(sum(sums.windows for setting, sums in self._sums.items() if setting in self._gains))

    def prices(self, setting: str = "") -> Coefficients:
        """What is known of the prices under a setting of clocks and limits."""
        if not self._gains:
            return self.prior
        gain = self._gains.get(setting, 1.0)
        step_j, prompt_j, output_j, context_j = (gain * self._z * self._c0).tolist()
        source = f"fitted on {self.windows} windows from {self.prior.source}"
        return replace(
            self.prior,
            step_j=step_j,
            prompt_j=prompt_j,
            output_j=output_j,
            context_j=context_j,
            spread=self._spread,
            source=source,
        )

    def observe(self, quantities: Floats, joules: float, seconds: float, setting: str = "") -> None:
        """Take a busy window in: its steps, uncached prompt tokens, output tokens and context."""
        if seconds < LEAST_S:
            before, before_j, before_s = self._short.pop(setting, (np.zeros(4), 0.0, 0.0))
            quantities, joules, seconds = before + quantities, before_j + joules, before_s + seconds
            if seconds < LEAST_S:
                self._short[setting] = quantities, joules, seconds
                return
        terms = self._c0 * quantities
        believed = float(self._z @ terms) or float(terms.sum())
        if not believed / _FAR < joules < believed * _FAR:
            return
        sums = self._sums.get(setting)
        if sums is None:
            sums = self._sums[setting] = _Sums()
        gain = self._gains.get(setting, joules / believed)
        weight = 1 / (ERROR * gain * believed) ** 2 / _NEIGHBOURS
        sums.fade(1 - _FADE)
        sums.pp += weight * np.outer(terms, terms)
        sums.pe += weight * joules * terms
        sums.windows += 1
        self._new += 1
        if setting in self._gains:
            self._watch(math.log(joules / (gain * believed)))

    def refit(self) -> None:
        """Bring the prices up to date with what was observed, once that is a few windows more."""
        if self._new < _WORTH_IT:
            return
        self._new = 0
        seen = {setting: sums for setting, sums in self._sums.items() if sums.windows >= ENOUGH}
        if not seen:
            return
        precision = np.eye(4)
        for _ in range(_ROUNDS):
            for setting, sums in seen.items():
                self._gains[setting] = float(self._z @ sums.pe) / float(self._z @ sums.pp @ self._z)
            gains = [(self._gains[setting], sums) for setting, sums in seen.items()]
            precision = np.eye(4) / self._sigma**2 + sum(gain**2 * sums.pp for gain, sums in gains)
            pull = np.ones(4) / self._sigma**2 + sum(gain * sums.pe for gain, sums in gains)
            self._z = _least(precision, pull, self._z)
        error = math.sqrt(float(np.linalg.inv(precision).diagonal().max()))
        self._spread = min(self.prior.spread, max(_LEAST_SPREAD, 1 + error))

    def state(self) -> dict[str, Any]:
        """All that was learnt, as plain lists and numbers."""
        return {
            "c0": self._c0.tolist(),
            "z": self._z.tolist(),
            "spread": self._spread,
            "drifts": self.drifts,
            "gains": dict(self._gains),
            "sums": {
                name: {"pp": sums.pp.tolist(), "pe": sums.pe.tolist(), "windows": sums.windows}
                for name, sums in self._sums.items()
            },
        }

    @classmethod
    def of(cls, prior: Coefficients, state: Mapping[str, Any]) -> "Fit":
        """Go on from what `state` gave. Where that was learnt from another prior, or cannot be understood: anew."""
        fit = cls(prior)
        try:
            if state["c0"] != fit._c0.tolist():
                return cls(prior)
            fit._z, fit._spread, fit.drifts = _finite(state["z"], 4), float(state["spread"]), int(state["drifts"])
            fit._gains = {str(name): float(gain) for name, gain in state["gains"].items()}
            for name, sums in state["sums"].items():
                fit._sums[name] = _Sums(_finite(sums["pp"], 4, 4), _finite(sums["pe"], 4), float(sums["windows"]))
            return fit
        except (KeyError, TypeError, ValueError, AttributeError):
            return cls(prior)

    def _watch(self, off: float) -> None:
        """Notice that predictions have come to be off: then what was learnt counts for little."""
        self._off_windows += 1
        if self._off_windows <= 0:
            return
        self._off += (off - self._off) / min(self._off_windows, _DRIFT_WINDOWS)
        if self._off_windows >= _DRIFT_WINDOWS and abs(self._off) > _DRIFT:
            self.drifts += 1
            # Not looked at again before it is learnt anew: else one change would be found twice.
            self._off, self._off_windows = 0.0, -ENOUGH
            for sums in self._sums.values():
                sums.fade(min(1.0, 1 / (sums.windows or 1)))


def _finite(numbers: Any, *shape: int) -> Floats:
    """An array of this shape. Raises ValueError for anything else."""
    found = np.array(numbers, dtype=np.float64).reshape(shape)
    if not np.isfinite(found).all():
        raise ValueError(f"{found} is not finite")
    return found


def _least(precision: Floats, pull: Floats, start: Floats) -> Floats:
    """argmin over z >= 0 of ½ zᵀ·precision·z - pull·z."""
    z = start.copy()
    for _ in range(200):
        before = z.copy()
        for p in range(z.size):
            z[p] = max(0.0, z[p] + (pull[p] - float(precision[p] @ z)) / precision[p, p])
        if np.abs(z - before).max() < 1e-9:
            break
    return z
