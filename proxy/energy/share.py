"""How the joules of one stretch of time are shared over the work in it, and how far each share may be off.

In window k of a device, with measured energy ΔE and every price c >= 0 (`prior.Coefficients`):

    w_ik = c_step · Σ_s S_s · p_is / Σ_j p_js  +  c_prompt · u_ik  +  c_output · d_ik  +  c_context · x_ik
    e_ik = ΔE_k · w_ik / Σ_j w_jk

S: engine steps in a slice s of the window, shared by those that took part in them, p; u: uncached prompt tokens, in the
time before the first token that they take by the price; d: output tokens; x: Σ context length over those tokens. The
shape follows how a batched engine works: a step reads the weights once for all, each token adds arithmetic, each token
of context adds a read of the KV cache. It is Shapley's value of the game whose players are the requests in a step and
whose worth is a step's energy with only some of them, where that is a constant and a sum over the requests: the
constant is shared evenly by those in the step (Shapley 1953), which is why p counts steps and not seconds.

A step takes every request that decodes on by one token. So a request took part in as many steps as it got tokens, one
whose prompt was computed in one more, and one that waits inside of the engine in none; and who got most tells how many
steps there were. Engines that make several tokens a step show it: the counter of steps is behind the tokens.

Integers of microjoules throughout, so that shares sum to what the counter moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxy.energy.columns import works
from proxy.energy.prior import Coefficients
from proxy.energy.records import Phase
from proxy.energy.seen import Seen
from proxy.energy.work import Progress, Steps

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
    cuts: tuple[float, ...] = ()  # where the windows met that were joined to this one


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
    steps_seen: float = 1.0  # steps for each token of the request that got most
    seen: Seen = field(default_factory=Seen)


class Alone(NamedTuple):
    """What one engine did in a stretch of time in which no other worked."""

    engine: str
    quantities: Floats  # steps, uncached prompt tokens, output tokens, context
    counted: float | None  # steps by its counter
    seen: float  # tokens of who got most, slice by slice


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
    alone: Alone | None
    part: float = 1.0  # of all that is busy, what this plan is about

    def settle(self, window: Window, idle_w: float | None = None) -> Settled:
        """The window shared for good. `idle_w` is what the device draws with nothing in flight, where that is known."""
        busy_uj = self._busy_uj(window, idle_w) if self.weights.size else 0
        if not busy_uj:
            return Settled(window.device, window.t0, window.t1, (), idle_uj=window.delta_uj)
        ours = len(self.parts)
        split_uj = split(busy_uj, self.weights)
        uj = split_uj[:ours]
        low_uj = np.minimum(uj, (busy_uj * self.lows[:ours]).astype(np.int64))
        high_uj = np.maximum(uj, (busy_uj * self.highs[:ours]).astype(np.int64))
        amounts = (uj.tolist(), low_uj.tolist(), high_uj.tolist())
        shares = tuple(map(Share, *zip(*self.parts, strict=True), *amounts)) if ours else ()
        idle_uj, foreign_uj = window.delta_uj - busy_uj, int(split_uj[ours:].sum())
        return Settled(window.device, window.t0, window.t1, shares, idle_uj=idle_uj, foreign_uj=foreign_uj)

    def predict(self, window: Window, idle_w: float | None = None) -> dict[Progress, int]:
        """About what each attempt will get, without a band."""
        predicted: dict[Progress, int] = {}
        if total := self.weights.sum():
            shares = (self.weights * (self._busy_uj(window, idle_w) / total)).astype(np.int64).tolist()
            for (progress, _), uj in zip(self.parts, shares, strict=False):
                if uj:
                    predicted[progress] = predicted.get(progress, 0) + uj
        return predicted

    def _busy_uj(self, window: Window, idle_w: float | None) -> int:
        """What is left when the time with nothing in flight has had its power, and no more than its part by time."""
        delta_uj = window.delta_uj
        if self.busy >= 1:
            return delta_uj
        idle_uj = delta_uj * (1 - self.busy)
        if idle_w is not None:
            idle_uj = min(idle_uj, 1e6 * idle_w * (1 - self.busy) * (window.t1 - window.t0))
        return min(delta_uj, round(delta_uj - idle_uj))


def plan(
    loads: Sequence[Load], t0: float, t1: float, now: float, banded: bool = True, cuts: Sequence[float] = ()
) -> Plan:
    """How to share what the devices of `loads` used between `t0` and `t1`, by what is known at `now`.

    Steps are shared in slices, between the `cuts`: company comes and goes.
    """
    edges = (t0, *cuts, t1)
    parts: list[tuple[Progress, Phase]] = []
    terms: list[Floats] = []
    spreads: list[float] = []
    aliens: list[tuple[Floats, float]] = []
    alone: Alone | None = None
    for load in loads:
        predicted = _predict(load, edges, now)
        parts += predicted.own
        if len(loads) == 1 and not load.foreign:
            alone = Alone(load.engine, predicted.quantities, load.counted, predicted.seen)
        terms.append(predicted.terms)
        spreads += [load.prices.spread] * len(predicted.own)
        if load.foreign:
            aliens.append((predicted.strangers, load.prices.spread))
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
    return Plan(parts, weights, lows, highs, busy, alone)


class _Predicted(NamedTuple):
    """Joules that one engine's work should have taken, a column a price."""

    own: list[tuple[Progress, Phase]]
    terms: Floats  # a row for each of `own`
    strangers: Floats  # one row
    quantities: Floats  # steps, uncached prompt tokens, output tokens, context: of ours
    seen: float


class _Steps(NamedTuple):
    """Engine steps slice by slice, and who took part in them: how many each attempt (by phase) and strangers did."""

    steps: Floats
    took: Floats
    strangers: Floats
    seen: float


def _steps(load: Load, edges: Sequence[float], now: float, spent_s: Floats, took: Floats) -> _Steps:
    lengths_s, slices = np.diff(edges), len(edges) - 1
    # A step takes all that decode on by one token: who got most tells how many steps there were, and when.
    seen = took.sum(axis=2).max(axis=1, initial=0.0)
    if seen.any():
        steps = seen * load.steps_seen
        # Nobody took part in more steps than there were.
        return _Steps(steps, np.minimum(took, steps[:, None, None]), load.foreign * _even(lengths_s), float(seen.sum()))
    counted = load.counted
    if counted is None:
        counted = busy_s(load.attempts, edges[0], edges[-1], now) / load.prices.step_s
    # No token was seen: who was there was in every step. Foreign tokens over steps is how many strangers there were.
    strangers = lengths_s * (load.foreign / counted) if counted else np.zeros(slices)
    return _Steps(counted * _even(lengths_s), spent_s, strangers, 0.0)


def _even(lengths_s: Floats) -> Floats:
    """The part of each slice in the whole, by time."""
    return lengths_s / (lengths_s.sum() or 1.0)


def _predict(load: Load, edges: Sequence[float], now: float) -> _Predicted:
    prices, attempts, slices = load.prices, load.attempts, len(edges) - 1
    table = works(attempts, edges, now, prices, load.steps, load.seen)
    prompt, output, context = table[:, :, 4:].sum(axis=0).T
    spent_s = table[:, :, 0:2]
    steps, took, alien, seen = _steps(load, edges, now, spent_s, table[:, :, 2:4])
    company = took.sum(axis=(1, 2)) + alien
    step_j = np.divide(prices.step_j * steps, company, out=np.zeros(slices), where=company > 0)
    terms = np.zeros((2, len(attempts), 4))
    terms[:, :, _STEPS] = np.einsum("s,sap->pa", step_j, took)
    terms[0, :, _PROMPT] = prices.prompt_j * prompt
    terms[1, :, _OUTPUT], terms[1, :, _CONTEXT] = prices.output_j * output, prices.context_j * context
    strangers = np.array([[float(step_j @ alien), 0.0, prices.output_j * load.foreign, 0.0]])
    worked = np.any(terms, axis=2)
    if not worked.any() and not load.foreign:  # nothing is known but that they were there
        terms[:, :, _STEPS] = spent_s.sum(axis=0).T
        worked = np.any(terms, axis=2)
    own = [
        (attempts[index], phase)
        for phase, row in ((Phase.PREFILL, worked[0]), (Phase.DECODE, worked[1]))
        for index in np.flatnonzero(row).tolist()
    ]
    quantities = np.array([steps.sum(), prompt.sum(), output.sum(), context.sum()])
    rows = np.concatenate((terms[0, worked[0]], terms[1, worked[1]]))
    return _Predicted(own, rows, strangers, quantities, seen)


def busy_s(attempts: Sequence[Progress], t0: float, t1: float, now: float) -> float:
    """Seconds in which at least one attempt was in flight."""
    spans = np.array(list(map(_SPAN, attempts)), dtype=float).reshape(len(attempts), 2)
    start, end = spans[np.argsort(spans[:, 0])].T
    # From when it was to when it is quiet; without a gap the whole time, to the last digit.
    quiet_from = np.maximum.accumulate(np.concatenate(((t0,), np.where(np.isnan(end), now, end))))
    quiet_to = np.concatenate((start, (t1,)))
    quiet_s = np.minimum(quiet_to, t1) - np.minimum(quiet_from, t1)
    return max(0.0, t1 - t0 - float(np.maximum(0.0, quiet_s).sum()))


_SPAN = attrgetter("dispatched", "ended")


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
