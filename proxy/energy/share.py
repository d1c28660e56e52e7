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
from math import isfinite
from operator import mul
from typing import NamedTuple

from proxy.energy.prior import Coefficients
from proxy.energy.records import Phase
from proxy.energy.work import Progress, Steps, work_in

Terms = tuple[float, float, float, float]  # predicted joules of steps, prompt, output, context


def split(delta_uj: int, weights: Sequence[float]) -> list[int]:
    """Share `delta_uj` microjoules in proportion to `weights`, in integers that sum to it (largest remainder).

    All-zero weights share equally. Raises ValueError for a negative or non-finite weight, or nobody to share among.
    """
    if not weights or delta_uj < 0:
        raise ValueError(f"cannot share {delta_uj} µJ among {len(weights)}")
    return _apportion(delta_uj, _scaled(weights))


def _scaled(weights: Sequence[float]) -> list[int]:
    """Weights as integers, so that everything after them is exact: scaled to 2^53 they lose nothing a float held."""
    if not all(isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError("weights must be finite and not negative")
    largest = max(weights, default=0.0)
    return [int(weight / largest * 2**53) for weight in weights] if largest else [1] * len(weights)


def _apportion(delta_uj: int, scaled: Sequence[int]) -> list[int]:
    total = sum(scaled)
    shares: list[int] = []
    remainders: list[int] = []
    for weight in scaled:
        share, remainder = divmod(delta_uj * weight, total)
        shares.append(share)
        remainders.append(remainder)
    left = delta_uj - sum(shares)
    for index in sorted(range(len(shares)), key=remainders.__getitem__, reverse=True)[:left]:
        shares[index] += 1
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


@dataclass(frozen=True, slots=True)
class Plan:
    """How the joules of a stretch of time are shared, however many they are: the devices of an engine have one plan.

    `weights` belong to `parts`, and those beyond them to foreign work. `lows` and `highs` are parts of what is busy.
    """

    parts: list[tuple[Progress, Phase]]
    weights: list[int]
    lows: list[float]
    highs: list[float]
    busy: float  # the part of the time in which anything was in flight

    def settle(self, window: Window) -> Settled:
        """The window shared for good."""
        busy_uj = self._busy_uj(window.delta_uj) if self.weights else 0
        ours = len(self.parts)
        split_uj = _apportion(busy_uj, self.weights) if busy_uj else []
        shares = tuple(
            Share(progress, phase, uj, min(uj, int(busy_uj * low)), max(uj, int(busy_uj * high)))
            for (progress, phase), uj, low, high in zip(self.parts, split_uj, self.lows, self.highs, strict=False)
        )
        idle_uj, foreign_uj = window.delta_uj - busy_uj, sum(split_uj[ours:])
        return Settled(window.device, window.t0, window.t1, shares, idle_uj=idle_uj, foreign_uj=foreign_uj)

    def predict(self, delta_uj: int) -> dict[Progress, int]:
        """About what each attempt will get, without a band."""
        busy_uj, total = self._busy_uj(delta_uj), sum(self.weights)
        predicted: dict[Progress, int] = {}
        for (progress, _), weight in zip(self.parts, self.weights, strict=False):
            if uj := busy_uj * weight // total:
                predicted[progress] = predicted.get(progress, 0) + uj
        return predicted

    def _busy_uj(self, delta_uj: int) -> int:
        return min(delta_uj, round(delta_uj * self.busy)) if self.busy < 1 else delta_uj


def plan(loads: Sequence[Load], t0: float, t1: float, now: float, banded: bool = True) -> Plan:
    """How to share what the devices of `loads` used between `t0` and `t1`, by what is known at `now`."""
    parts: list[tuple[Progress, Phase]] = []
    terms: list[Terms] = []
    spreads: list[float] = []
    aliens: list[tuple[Terms, float]] = []
    for load in loads:
        own, alien = _predict(load, t0, t1, now)
        for progress, phase, term in own:
            parts.append((progress, phase))
            terms.append(term)
        spreads += [load.prices.spread] * len(own)
        if load.foreign:
            aliens.append((alien, load.prices.spread))
    terms += [term for term, _ in aliens]
    spreads += [spread for _, spread in aliens]
    busy = 1.0
    if not aliens and t1 > t0:
        busy = _busy_s([p for load in loads for p in load.attempts], t0, t1, now) / (t1 - t0)
    lows, highs = _band(terms, spreads) if banded and terms else ([], [])
    return Plan(parts, _scaled([sum(term) for term in terms]), lows, highs, busy)


def _predict(load: Load, t0: float, t1: float, now: float) -> tuple[list[tuple[Progress, Phase, Terms]], Terms]:
    """Predicted joules by price: of the phases of every attempt, and of foreign work."""
    prices = load.prices
    works = [work_in(p, t0, t1, now, prices, load.steps) for p in load.attempts]
    steps = load.counted
    if steps is None:
        steps = _busy_s(load.attempts, t0, t1, now) / prices.step_s
    # Foreign tokens over steps is how many strangers were in the batch on average.
    alien_s = (t1 - t0) * load.foreign / steps if steps else 0.0
    seconds = sum(w.prefill_s + w.decode_s for w in works) + alien_s
    a_second = prices.step_j * steps / seconds if seconds else 0.0
    own: list[tuple[Progress, Phase, Terms]] = []
    for p, w in zip(load.attempts, works, strict=True):
        prefill = (a_second * w.prefill_s, prices.prompt_j * w.prompt, 0.0, 0.0)
        decode = (a_second * w.decode_s, 0.0, prices.output_j * w.output, prices.context_j * w.context)
        if any(prefill):
            own.append((p, Phase.PREFILL, prefill))
        if any(decode):
            own.append((p, Phase.DECODE, decode))
    if not own and not load.foreign:  # nothing is known but that they were there
        own += [
            (p, phase, (s, 0.0, 0.0, 0.0))
            for p, w in zip(load.attempts, works, strict=True)
            for phase, s in ((Phase.PREFILL, w.prefill_s), (Phase.DECODE, w.decode_s))
            if s
        ]
    return own, (a_second * alien_s, 0.0, prices.output_j * load.foreign, 0.0)


def _busy_s(attempts: Sequence[Progress], t0: float, t1: float, now: float) -> float:
    """Seconds in which at least one attempt was in flight."""
    if any(p.dispatched <= t0 and (now if p.ended is None else p.ended) >= t1 for p in attempts):
        return t1 - t0
    spans = sorted((max(p.dispatched, t0), min(now if p.ended is None else p.ended, t1)) for p in attempts)
    busy, until = 0.0, t0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def _band(terms: Sequence[Terms], spreads: Sequence[float]) -> tuple[list[float], list[float]]:
    """The least and the greatest part for each, with any one price off by its spread, in either direction."""
    weights = [sum(term) for term in terms]
    total = sum(weights)
    exact = [weight / total for weight in weights] if total else [1 / len(weights)] * len(weights)
    ends: list[list[float]] = []
    for price in range(4):
        column = [term[price] for term in terms]
        if not any(column):
            continue
        for more in ([spread - 1 for spread in spreads], [1 / spread - 1 for spread in spreads]):
            whole = total + sum(map(mul, column, more))
            if whole > 0:
                ends.append([(w + t * m) / whole for w, t, m in zip(weights, column, more, strict=True)])
    return list(map(min, exact, *ends)) if ends else exact, list(map(max, exact, *ends)) if ends else exact
