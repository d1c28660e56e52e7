"""How the joules of one stretch of time are shared over the work in it, and how far each share may be off.

In window k of a device, with measured energy ΔE and every price c >= 0 (`prior.Coefficients`):

    w_ik = c_step · S_k · a_ik / Σ_j a_jk  +  c_prompt · u_ik  +  c_output · d_ik  +  c_context · x_ik
    e_ik = ΔE_k · w_ik / Σ_j w_jk

a: seconds in flight; S: engine steps, shared by those in flight; u: uncached prompt tokens, spread evenly from dispatch
to first token; d: output tokens; x: Σ context length over those tokens. The shape follows how a batched engine works: a
step reads the weights once for all, each token adds arithmetic, each token of context adds a read of the KV cache.

Integers of microjoules throughout, so that shares sum to what the counter moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxy.energy.prior import Coefficients
from proxy.energy.records import Phase
from proxy.energy.work import Progress, Steps, work_in

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_STEPS, _PROMPT, _OUTPUT, _CONTEXT = range(4)  # columns of predicted joules, one a price


def split(delta_uj: int, weights: ArrayLike) -> Integers:
    """Share `delta_uj` microjoules in proportion to `weights`, in integers that sum to it (largest remainder).

    All-zero weights share equally. Raises ValueError for a negative or non-finite weight, or nobody to share among.
    """
    given = np.asarray(weights, dtype=np.float64)
    if not given.size or delta_uj < 0:
        raise ValueError(f"cannot share {delta_uj} µJ among {given.size}")
    largest = given.max()
    if not (np.isfinite(largest) and given.min() >= 0):
        raise ValueError("weights must be finite and not negative")
    parts = given / largest if largest else np.ones_like(given)
    # A hair too little, so that rounding never gives away more than there is.
    exact = parts * (delta_uj / parts.sum() * (1 - 1e-14))
    shares = exact.astype(np.int64)
    some = parts > 0
    each, left = divmod(delta_uj - int(shares.sum()), int(np.count_nonzero(some)))
    shares[some] += each  # none, but where microjoules are too many for a float's digits
    if left:
        shares[np.argsort(np.where(some, shares - exact, np.inf), kind="stable")[:left]] += 1
    return shares


@dataclass(frozen=True, slots=True)
class Window:
    """What a device's counter moved between two times."""

    device: str
    t0: float
    t1: float
    delta_uj: int
    gap: bool = False


class Share(NamedTuple):
    """Settled microjoules of one attempt in one phase, with their band."""

    progress: Progress
    phase: Phase
    uj: int
    low_uj: int
    high_uj: int


@dataclass(frozen=True, slots=True)
class Settled:
    """One settled window of a device: delta = Σ shares + idle + foreign + gap."""

    device: str
    t0: float
    t1: float
    shares: tuple[Share, ...]
    idle_uj: int = 0
    foreign_uj: int = 0
    gap_uj: int = 0

    @property
    def delta_uj(self) -> int:
        return sum(share.uj for share in self.shares) + self.idle_uj + self.foreign_uj + self.gap_uj


@dataclass(frozen=True, slots=True)
class Load:
    """What one engine had to do in a stretch of time."""

    prices: Coefficients
    attempts: Sequence[Progress]
    foreign: float  # output tokens that are not ours
    counted: float | None  # steps by the engine's counter, None without one
    steps: Steps  # steps as far as they are known, and expected where they are not
    engine: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the joules of a stretch of time are shared, however many they are: the devices of an engine have one plan.

    `weights` belong to `parts`, and those beyond them to foreign work. `lows` and `highs` are parts of what is busy.
    """

    parts: list[tuple[Progress, Phase]]
    weights: Floats
    lows: Floats
    highs: Floats
    busy: float  # the part of the time in which anything was in flight
    # Where one engine alone was at work, and all the time: which, and its steps, uncached prompt, output and context.
    alone: tuple[str, Floats] | None

    def settle(self, window: Window) -> Settled:
        """The window shared for good."""
        busy_uj = self._busy_uj(window.delta_uj) if self.weights.size else 0
        if not busy_uj:
            return Settled(window.device, window.t0, window.t1, (), idle_uj=window.delta_uj)
        ours = len(self.parts)
        split_uj = split(busy_uj, self.weights)
        uj = split_uj[:ours]
        low_uj = np.minimum(uj, (busy_uj * self.lows[:ours]).astype(np.int64))
        high_uj = np.maximum(uj, (busy_uj * self.highs[:ours]).astype(np.int64))
        shares = tuple(
            Share(progress, phase, *amounts)
            for (progress, phase), *amounts in zip(
                self.parts, uj.tolist(), low_uj.tolist(), high_uj.tolist(), strict=True
            )
        )
        idle_uj, foreign_uj = window.delta_uj - busy_uj, int(split_uj[ours:].sum())
        return Settled(window.device, window.t0, window.t1, shares, idle_uj=idle_uj, foreign_uj=foreign_uj)

    def predict(self, delta_uj: int) -> dict[Progress, int]:
        """About what each attempt will get, without a band."""
        predicted: dict[Progress, int] = {}
        if total := self.weights.sum():
            shares = (self.weights * (self._busy_uj(delta_uj) / total)).astype(np.int64).tolist()
            for (progress, _), uj in zip(self.parts, shares, strict=False):
                if uj:
                    predicted[progress] = predicted.get(progress, 0) + uj
        return predicted

    def _busy_uj(self, delta_uj: int) -> int:
        return min(delta_uj, round(delta_uj * self.busy)) if self.busy < 1 else delta_uj


def plan(loads: Sequence[Load], t0: float, t1: float, now: float, banded: bool = True) -> Plan:
    """How to share what the devices of `loads` used between `t0` and `t1`, by what is known at `now`."""
    parts: list[tuple[Progress, Phase]] = []
    terms: list[Floats] = []
    spreads: list[float] = []
    aliens: list[tuple[Floats, float]] = []
    alone: tuple[str, Floats] | None = None
    for load in loads:
        own, predicted, alien, quantities = _predict(load, t0, t1, now)
        parts += own
        alone = (load.engine, quantities) if len(loads) == 1 and not load.foreign else None
        terms.append(predicted)
        spreads += [load.prices.spread] * len(own)
        if load.foreign:
            aliens.append((alien, load.prices.spread))
    terms += [alien for alien, _ in aliens]
    spreads += [spread for _, spread in aliens]
    busy = 1.0
    if not aliens and t1 > t0:
        busy = busy_s([p for load in loads for p in load.attempts], t0, t1, now) / (t1 - t0)
    table = np.concatenate(terms) if terms else np.zeros((0, 4))
    weights = table.sum(axis=1)
    if not weights.any():
        weights = np.ones_like(weights)
    lows, highs = _band(table, weights, np.array(spreads)) if banded and weights.size else (weights, weights)
    return Plan(parts, weights, lows, highs, busy, alone if busy >= 1 else None)


def _predict(
    load: Load, t0: float, t1: float, now: float
) -> tuple[list[tuple[Progress, Phase]], Floats, Floats, Floats]:
    """Predicted joules, a column a price: a row for each phase of every attempt, and one of foreign work.

    Last, what the engine had to do in all: steps, uncached prompt tokens, output tokens, context.
    """
    prices, attempts = load.prices, load.attempts
    works = np.array([work_in(p, t0, t1, now, prices, load.steps) for p in attempts]).reshape(-1, 5)
    prefill_s, decode_s, prompt, output, context = works.T
    steps = load.counted
    if steps is None:
        steps = busy_s(attempts, t0, t1, now) / prices.step_s
    # Foreign tokens over steps is how many strangers were in the batch on average.
    alien_s = (t1 - t0) * load.foreign / steps if steps else 0.0
    seconds = prefill_s.sum() + decode_s.sum() + alien_s
    a_second = prices.step_j * steps / seconds if seconds else 0.0
    terms = np.zeros((2, len(attempts), 4))
    terms[0, :, _STEPS], terms[0, :, _PROMPT] = a_second * prefill_s, prices.prompt_j * prompt
    terms[1, :, _STEPS] = a_second * decode_s
    terms[1, :, _OUTPUT], terms[1, :, _CONTEXT] = prices.output_j * output, prices.context_j * context
    alien = np.array([[a_second * alien_s, 0.0, prices.output_j * load.foreign, 0.0]])
    worked = np.any(terms, axis=2)
    if not worked.any() and not load.foreign:  # nothing is known but that they were there
        terms[0, :, _STEPS], terms[1, :, _STEPS] = prefill_s, decode_s
        worked = np.any(terms, axis=2)
    own = [
        (attempts[index], phase)
        for phase, row in ((Phase.PREFILL, worked[0]), (Phase.DECODE, worked[1]))
        for index in np.flatnonzero(row).tolist()
    ]
    quantities = np.array([steps, prompt.sum(), output.sum(), context.sum()])
    return own, np.concatenate((terms[0, worked[0]], terms[1, worked[1]])), alien, quantities


def busy_s(attempts: Sequence[Progress], t0: float, t1: float, now: float) -> float:
    """Seconds in which at least one attempt was in flight."""
    if any(p.dispatched <= t0 and (now if p.ended is None else p.ended) >= t1 for p in attempts):
        return t1 - t0
    spans = sorted((max(p.dispatched, t0), min(now if p.ended is None else p.ended, t1)) for p in attempts)
    busy, until = 0.0, t0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def _band(terms: Floats, weights: Floats, spreads: Floats) -> tuple[Floats, Floats]:
    """The least and the greatest part for each, with any one price off by its spread, in either direction."""
    total = weights.sum()
    low = high = weights / total
    for column in terms.T:
        if not column.any():
            continue
        for more in (spreads - 1, 1 / spreads - 1):
            moved = weights + column * more
            if (whole := moved.sum()) > 0:
                part = moved / whole
                low, high = np.minimum(low, part), np.maximum(high, part)
    return low, high
