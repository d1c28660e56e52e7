"""What each request of an engine step would have to pay by Shapley's rule: the yardstick for attribution.

The players are the requests in the step, and the worth of a coalition is that step's energy with only them in it, on
the same card in the same state: same limits, same headroom of the cap's regulator. Idle energy is outside. A step's
work is a sum over its requests but for two things: a prefix that several read is read once, and the rest of its
readers find a part of it on the chip; and the roofline's maximum and the cap's clocks bend what follows from the sum.

Where no coalition is bent (memory-bound, below the cap) the game is a sum of unanimity games in closed form. Else
up to `EXACT` players are enumerated, and of more, orders are drawn, each with its reverse, and only what the game is
above that closed form is sampled.
"""

from dataclasses import dataclass, fields
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emulator.core.gpu import Gpu
from emulator.core.step import StepWork

Floats = NDArray[np.float64]
Members = NDArray[np.bool_]  # coalitions x players

EXACT = 11
ORDERS = 128  # drawn, and as many reversed


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens at the head of several requests' contexts; `readers` are the players that have it."""

    tokens: int
    readers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """A card's cost of a step as `Gpu.step` has it, for many steps at once. `headroom_j` is as at the step's start."""

    gpu: Gpu

    def joules(self, work: StepWork, headroom_j: float) -> Floats:
        """Joules of each step; the fields of `work` are arrays."""
        gpu, demand = self.gpu, self.gpu._roofline.demand(work)
        prefill = np.asarray(work.prefill_tokens) > 0
        allowed_j = np.where(prefill, headroom_j, 0.0)

        def at(clock: NDArray[np.int64]) -> tuple[Floats, Floats]:
            memory_s = demand.memory_s * np.take(gpu._memory_stretch, clock)
            compute_s = demand.compute_s * np.take(gpu._stretch, clock)
            seconds = demand.overhead_s + np.maximum(memory_s, compute_s)
            v2 = np.take(gpu._v2, clock)
            return seconds, np.take(gpu._static_w, clock) * seconds + demand.hbm_j + demand.core_j * v2

        low, high = np.zeros(prefill.shape, int), np.full(prefill.shape, gpu._top)
        seconds, joules = at(high)
        held = joules <= gpu._cap_w * seconds + allowed_j
        if held.all():
            return joules
        while (high - low > 1).any():
            middle = (low + high) // 2
            middle_s, middle_j = at(middle)
            fits = middle_j <= gpu._cap_w * middle_s + allowed_j
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return np.where(held, joules, at(low)[1])

    def closed_form(self, work: StepWork, prefixes: list[Prefix]) -> tuple[Floats, float, bool]:
        """Shapley values at the top clock as if memory were the bound, what an empty step costs, and whether no
        coalition differs from that."""
        gpu, none = self.gpu, np.zeros(1)
        zero = StepWork(*(none for _ in fields(StepWork)))  # type: ignore[arg-type]
        top = gpu._top
        stretch, static_w, v2 = gpu._memory_stretch[top], gpu._static_w[top], gpu._v2[top]
        demands = [gpu._roofline.demand(one) for one in (work, zero)]
        costs = []
        for demand in demands:
            seconds = demand.overhead_s + demand.memory_s * stretch
            compute_s = demand.compute_s * gpu._stretch[top]
            costs.append((seconds, static_w * seconds + demand.hbm_j + demand.core_j * v2, compute_s, demand.memory_s))
        (own_s, own_j, own_c, own_m), (base_s, base_j, base_c, base_m) = costs
        extra_s, extra_j = own_s - base_s, own_j - base_j
        # The worst coalition: all those whose arithmetic outgrows their memory; all that exceed the cap.
        bound = base_m * stretch - base_c + np.minimum(0, (own_m - base_m) * stretch - (own_c - base_c)).sum()
        over_j = base_j - gpu._cap_w * base_s + np.maximum(0, extra_j - gpu._cap_w * extra_s).sum()
        straight = bool(bound[0] >= 0 and over_j[0] <= 0)
        players = len(own_j)
        values = extra_j + base_j[0] / players
        saved_j = self._saved_j()
        for prefix in prefixes:
            readers = len(prefix.readers)
            values[list(prefix.readers)] -= saved_j * prefix.tokens * (readers - 1) / readers
        return values, float(base_j[0]), straight

    def _saved_j(self) -> float:
        """What a token of context costs less for a further reader, at the top clock and memory-bound."""
        many = 1_000_000
        works = [StepWork(decode_sequences=1, decode_context=many, decode_shared=shared) for shared in (0, many)]
        gpu, top = self.gpu, self.gpu._top
        joules = []
        for work in works:
            demand = gpu._roofline.demand(work)
            seconds = demand.overhead_s + demand.memory_s * gpu._memory_stretch[top]
            joules.append(gpu._static_w[top] * seconds + demand.hbm_j + demand.core_j * gpu._v2[top])
        return (joules[0] - joules[1]) / many


class Values(NamedTuple):
    """Each player's joules of one step, standard errors where orders were drawn (else 0), and whether it was bent."""

    joules: Floats
    error_j: Floats
    bent: bool


def shapley(
    card: Card, parts: list[StepWork], prefixes: list[Prefix], headroom_j: float, rng: np.random.Generator
) -> Values:
    """Who pays what of one step."""
    work = _columns(parts)
    straight, base_j, is_straight = card.closed_form(work, prefixes)
    zero = np.zeros(len(parts))
    if is_straight:
        return Values(straight, zero, False)
    table = np.array([getattr(work, name.name) for name in fields(StepWork)])
    if len(parts) <= EXACT:
        return Values(_enumerated(card, table, prefixes, headroom_j), zero, True)
    return Values(*_sampled(card, table, prefixes, headroom_j, straight, base_j, rng), True)


def _columns(parts: list[StepWork]) -> StepWork:
    return StepWork(*(np.array([getattr(part, f.name) for part in parts], float) for f in fields(StepWork)))  # type: ignore[arg-type]


def worths(card: Card, table: Floats, prefixes: list[Prefix], members: Members, headroom_j: float) -> Floats:
    """Joules of the step with only the members of each coalition; none for the empty one."""
    inside = members.astype(float)
    work = StepWork(*(inside @ column for column in table))
    shared = np.zeros(len(members))
    for prefix in prefixes:
        shared += prefix.tokens * np.maximum(0.0, inside[:, list(prefix.readers)].sum(axis=1) - 1)
    work.decode_shared = shared  # type: ignore[assignment]
    return np.where(members.any(axis=1), card.joules(work, headroom_j), 0.0)


def _enumerated(card: Card, table: Floats, prefixes: list[Prefix], headroom_j: float) -> Floats:
    players = table.shape[1]
    number = np.arange(1 << players)
    members = (number[:, None] >> np.arange(players) & 1).astype(bool)
    worth = worths(card, table, prefixes, members, headroom_j)
    sizes = members.sum(axis=1)
    weight = np.array([1 / (players * comb(players - 1, size)) for size in range(players)])
    values = np.zeros(players)
    for player in range(players):
        without = ~members[:, player]
        gains = worth[number[without] | 1 << player] - worth[without]
        values[player] = (weight[sizes[without]] * gains).sum()
    return values


def _sampled(
    card: Card,
    table: Floats,
    prefixes: list[Prefix],
    headroom_j: float,
    straight: Floats,
    base_j: float,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    players = table.shape[1]
    order = rng.permuted(np.tile(np.arange(players), (ORDERS, 1)), axis=1)
    pairs = np.empty((2, ORDERS, players))
    saved_j = card._saved_j()
    for way, orders in enumerate((order, order[:, ::-1])):
        place = np.argsort(orders, axis=1)
        members = place[:, None, :] <= np.arange(players)[None, :, None]  # orders x how many came x players
        flat = members.reshape(-1, players)
        worth = worths(card, table, prefixes, flat, headroom_j).reshape(ORDERS, players)
        gains = np.diff(worth, axis=1, prepend=0.0)
        known = _straight_gains(straight, base_j, saved_j, prefixes, place)
        pairs[way] = np.take_along_axis(gains, place, axis=1) - known
    means = pairs.mean(axis=0)
    return straight + means.mean(axis=0), means.std(axis=0, ddof=1) / np.sqrt(ORDERS)


def _straight_gains(straight: Floats, base_j: float, saved_j: float, prefixes: list[Prefix], place: NDArray) -> Floats:
    """What each player of each order adds in the straight game."""
    players = len(straight)
    gains = np.tile(straight - base_j / players, (len(place), 1)) + base_j * (place == 0)
    for prefix in prefixes:
        readers = list(prefix.readers)
        among = place[:, readers]
        first = among == among.min(axis=1, keepdims=True)
        count = len(readers)
        gains[:, readers] += saved_j * prefix.tokens * ((count - 1) / count - ~first)
    return gains
