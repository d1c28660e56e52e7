"""The best that a fixed setting of the gate, or of gate and clock, could have done: found by trying."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf

from benchmarks.policies.cells import Cell
from benchmarks.policies.trial import Trial
from benchmarks.sim import DEVICE, ENGINE
from policies.static import Hold, Static

HOLDS = (0.1, 1 / 3, 2 / 3, 1.0)  # of patience; then halfway to the next ones, 0 among them
JOINS = (0.0, 0.35, 0.7, inf)  # of a request's own time
LIMITS = (4, 16, 64)
CLOCKS = (0.6, 0.7, 0.8, 0.9)  # of the highest
CLOCKED_LIMITS = (8, 16, 32)
FINE_JOIN = 0.15
SEEDS, FINALISTS = 2, 3
LATER = 0.01  # so much more of the requests may miss an objective than without


@dataclass(frozen=True, order=True)
class Setting:
    """`hold` is a part of the patience, `clock` of the highest SM clock; `limit` 0 stands for none."""

    hold: float = 0.0
    join: float = 0.0
    limit: int = 0
    clock: float = 1.0

    def policy(self, cell: Cell, patience_s: float) -> Static:
        highest = cell.preset.card.sm_mhz_max
        return Static(
            release={cell.workload: Hold(hold_s=self.hold * patience_s, join_part=self.join)} if self.hold else {},
            engine_in_flight={ENGINE: self.limit} if self.limit else {},
            sm_clock_mhz={DEVICE: round(self.clock * highest)} if self.clock < 1 else {},
        )


Measure = Callable[[Setting, int], Trial]  # a setting and a seed


@dataclass
class Oracle:
    """Tries settings beside the default's trials, by seed."""

    measure: Measure
    default: Sequence[Trial]

    def saved(self, setting: Setting, seeds: int) -> tuple[float, bool]:
        """The part of the default's joules that it saves over these seeds, and whether it keeps the objectives."""
        if setting == Setting():
            return 0.0, True
        trials = [self.measure(setting, seed) for seed in range(seeds)]
        return mean_saved(self.default[:seeds], trials), is_kept(self.default[:seeds], trials)

    def best(self, settings: Iterable[Setting], seeds: int, count: int) -> list[Setting]:
        """Those that save most, of those that keep the objectives."""
        found = [
            (saved, setting)
            for setting in dict.fromkeys(settings)
            for saved, kept in [self.saved(setting, seeds)]
            if kept
        ]
        return [setting for _, setting in sorted(found, reverse=True)[:count]]

    def coarse(self, settings: Iterable[Setting]) -> list[Setting]:
        """The best first, over `SEEDS`; after the first of them the better half goes on, and the default.

        Settings that differ by so little that one seed would mistake the worse half for the better differ by next to
        nothing.
        """
        tried = list(dict.fromkeys((Setting(), *settings)))
        half = self.best(tried, 1, ceil(len(tried) / 2))
        return self.best((Setting(), *half), SEEDS, len(tried))

    def final(self, ranked: Iterable[Setting]) -> Setting:
        """The best over all seeds of the first `FINALISTS` of these that keep the objectives there, and the default."""
        found: list[Setting] = []
        for setting in ranked:
            if len(found) == FINALISTS:
                break
            if self.saved(setting, len(self.default))[1]:
                found.append(setting)
        return self.best((Setting(), *found), len(self.default), 1)[0]

    def of_gate(self) -> Setting:
        """Over when requests go and how many are in flight; the default may be the answer."""
        coarse = self.coarse(Setting(hold, join) for hold in HOLDS for join in JOINS)
        top = coarse[0]
        near = [replace(top, limit=limit) for limit in LIMITS]
        if top.hold:
            joins = [top.join + by for by in (-FINE_JOIN, FINE_JOIN)] if top.join < inf else []
            near += [replace(top, join=join) for join in joins if join >= 0]
            near += [
                replace(top, hold=(low + high) / 2) for low, high in pairwise((0.0, *HOLDS)) if top.hold in (low, high)
            ]
        return self.final(self.best((*coarse, *self.coarse(near)), SEEDS, len(coarse) + len(near)))

    def with_clock(self, gate: Setting) -> Setting:
        """Over the clock too: at the gate's best, at half its hold (slow prompts leave less room), at its default; and
        over limits, which leave the objectives room for a clock that is lower still."""
        bases = dict.fromkeys((gate, replace(gate, hold=gate.hold / 2), Setting()))
        coarse = self.coarse(replace(base, clock=clock) for base in bases for clock in CLOCKS)
        top = coarse[0]
        near = [replace(top, limit=limit, clock=c) for limit in CLOCKED_LIMITS for c in CLOCKS if c <= top.clock]
        found = self.final(self.best((*coarse, *self.coarse(near)), SEEDS, len(coarse) + len(near)))
        return self.best((gate, found), len(self.default), 1)[0]


def mean_saved(default: Sequence[Trial], trials: Sequence[Trial]) -> float:
    return sum(savings(default, trials)) / len(trials)


def savings(default: Sequence[Trial], trials: Sequence[Trial]) -> list[float]:
    """By seed: the part of the default's joules that was saved, both until the later of the two ends."""
    return [_saved(one, other, Trial.joules_by) for one, other in zip(default, trials, strict=True)]


def converged(default: Sequence[Trial], trials: Sequence[Trial]) -> list[float]:
    """The same of the time after it should have converged, for an output token."""
    return [_saved(one, other, Trial.converged_by) for one, other in zip(default, trials, strict=True)]


def _saved(default: Trial, trial: Trial, joules: Callable[[Trial, float], float]) -> float:
    until = max(default.ended, trial.ended)
    return 1 - joules(trial, until) / joules(default, until)


def later(default: Sequence[Trial], trials: Sequence[Trial]) -> float:
    """How much more is late, as a part of all, on average: of the kind of objective of which it is most."""
    kinds = default[0].late
    means = [sum(b.late[kind] - a.late[kind] for a, b in zip(default, trials, strict=True)) for kind in kinds]
    return max(means) / len(trials)


def is_kept(default: Sequence[Trial], trials: Sequence[Trial]) -> bool:
    return later(default, trials) <= LATER
