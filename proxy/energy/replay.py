"""Attributes a recorded trace offline, by the very code that does it live. Sans-I/O.

Twice: once to see what the windows cost, from which the prices are fitted, and once more with these prices held. What
has been told late is known from the start here, so no window is settled by a guess.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from proxy.energy.attribution import Attribution
from proxy.energy.beat import moved_at
from proxy.energy.fit import Fit, Floats
from proxy.energy.prior import Coefficients
from proxy.energy.share import Settled
from proxy.energy.trace import Counter, Scenario, Served, Trace
from proxy.energy.work import Progress

_NEVER_S = 1e9  # no window need be settled before all is known of it
_ROUND_S = 10.0
_LOOK_S = 0.9  # between two looks for tokens of strangers, as when live: they are found late, and spread over that
_AT_LEAST = 16  # tokens: an engine finds whole blocks of a prompt in its cache


@dataclass(slots=True)
class Amount:
    """Microjoules with their band."""

    uj: int = 0
    low_uj: int = 0
    high_uj: int = 0

    def add(self, uj: int, low_uj: int, high_uj: int) -> None:
        self.uj += uj
        self.low_uj += low_uj
        self.high_uj += high_uj


@dataclass(slots=True)
class Outcome:
    """What became of a scenario's joules: counter = Σ by_request + idle + foreign + gap, to the microjoule."""

    by_request: dict[str, Amount]
    counter_uj: int = 0
    idle_uj: int = 0
    foreign_uj: int = 0
    gap_uj: int = 0
    # Of the windows in which one engine worked alone and all the time: what they took, and what the prices say.
    measured_j: float = 0.0
    predicted_j: float = 0.0

    @property
    def residual_uj(self) -> int:
        shared_uj = sum(amount.uj for amount in self.by_request.values())
        return self.counter_uj - shared_uj - self.idle_uj - self.foreign_uj - self.gap_uj

    def take(self, settled: Iterable[Settled]) -> None:
        for window in settled:
            self.idle_uj += window.idle_uj
            self.foreign_uj += window.foreign_uj
            self.gap_uj += window.gap_uj
            for share in window.shares:
                self.by_request[share.progress.request_id].add(share.uj, share.low_uj, share.high_uj)


@dataclass(slots=True)
class Attributed:
    """What became of each scenario's joules, and what each engine's prices rest on."""

    scenarios: dict[str, Outcome]
    fits: dict[str, Fit]


@dataclass(slots=True)
class Window:
    """What one engine alone did in a busy window, and the joules that it took."""

    quantities: Floats
    joules: float
    seconds: float


class Held(Fit):
    """Prices that are known; the windows that would have taught are only kept."""

    def __init__(self, prices: Coefficients) -> None:
        super().__init__(prices)
        self.seen: list[Window] = []

    def observe(self, quantities: Floats, joules: float, seconds: float, setting: str = "") -> None:
        self.seen.append(Window(quantities, joules, seconds))


def attribute(trace: Trace, priors: Mapping[str, Coefficients], fit_on: Iterable[str]) -> Attributed:
    """Attribute every scenario by prices fitted on those of `fit_on`, near each engine's prior."""
    first = {name: Held(prior) for name, prior in priors.items()}
    for name in fit_on:
        replay(trace.scenarios[name], first)
    fits = {name: fitted(prior, first[name].seen) for name, prior in priors.items()}
    held = {name: Held(fit.prices()) for name, fit in fits.items()}
    return Attributed({name: replay(scenario, held) for name, scenario in trace.scenarios.items()}, fits)


def fitted(prior: Coefficients, windows: Iterable[Window]) -> Fit:
    """What these windows say of the prices, near `prior`; they are all of one machine in one state."""
    fit = Fit(prior)
    for window in windows:
        fit.observe(window.quantities, window.joules, window.seconds)
    fit.refit()
    return fit


def replay(scenario: Scenario, fits: Mapping[str, Held]) -> Outcome:
    """Attribute one scenario by the prices of each engine."""
    outcome = Outcome({one.id: Amount() for one in scenario.served})
    before = {name: len(fit.seen) for name, fit in fits.items()}
    playback = _Playback(scenario, fits)
    settled_at = 0.0
    for line in scenario.counters:
        playback.go_on(line)
        if line.t - settled_at >= _ROUND_S:
            settled_at = line.t
            outcome.take(playback.attribution.settle(line.t))
    playback.end()
    outcome.take(playback.attribution.settle(settled_at + 2 * _NEVER_S))
    outcome.counter_uj = sum(playback.attribution.counter_uj().values())
    for name, fit in fits.items():
        prices = fit.prices()
        c = np.array([prices.step_j, prices.prompt_j, prices.output_j, prices.context_j])
        for window in fit.seen[before[name] :]:
            outcome.measured_j += window.joules
            outcome.predicted_j += float(c @ window.quantities)
    return outcome


class _Playback:
    """A scenario as it went on, told to an attribution line by line."""

    def __init__(self, scenario: Scenario, fits: Mapping[str, Held]) -> None:
        self.attribution = Attribution(settle_s=_NEVER_S)
        for name, devices in scenario.engines().items():
            self.attribution.add_engine(name, devices, fits[name].prices(), fits[name])
        end = scenario.counters[-1].t if scenario.counters else 0.0
        attempts = zip(scenario.served, found(scenario), strict=True)
        self._waiting = [_Attempt(one, cached, end) for one, cached in attempts][::-1]
        self._running: list[_Attempt] = []
        self._moved = {device: iter(_moves(scenario, device)) for device in {one.device for one in scenario.counters}}
        self._asked: dict[str, float] = {}
        self._looked: dict[str, float] = {}
        self._told: dict[str, tuple[float | None, float | None]] = {}

    def go_on(self, line: Counter) -> None:
        while self._waiting and self._waiting[-1].served.t0 <= line.t:
            attempt = self._waiting.pop()
            self.attribution.start(attempt.progress)
            self._running.append(attempt)
        came: dict[str, int] = defaultdict(int)
        for attempt in self._running:
            came[attempt.served.engine] += attempt.reach(line.t)
        self._running = [attempt for attempt in self._running if attempt.progress.ended is None]
        self._ask(line, came[line.engine] > 0)
        self.attribution.reading(line.device, next(self._moved[line.device]), line.energy_uj)
        self.attribution.mark(line.t)

    def end(self) -> None:
        """Nobody looked any longer; what ran on ran to its end."""
        for attempt in self._running:
            attempt.end()

    def _ask(self, line: Counter, tokens_came: bool) -> None:
        """The engine's own counters. Those that stood still while tokens came are those of an earlier question."""
        at = line.t if line.engine_t is None else min(line.t, line.engine_t)
        says = line.steps, line.output_tokens
        known = self._asked.get(line.engine)
        if known is not None and (at <= known or (tokens_came and says == self._told[line.engine])):
            return
        self._asked[line.engine], self._told[line.engine] = at, says
        looks = at - self._looked.get(line.engine, -inf) >= _LOOK_S
        if looks:
            self._looked[line.engine] = at
        if looks or line.steps is not None:
            self.attribution.engine(line.engine, at, line.steps, line.output_tokens if looks else None)


def _moves(scenario: Scenario, device: str) -> list[float]:
    """When a counter had moved to what was read, line by line."""
    lines = [line for line in scenario.counters if line.device == device]
    return moved_at([line.t for line in lines], [line.energy_uj for line in lines])


class _Attempt:
    """One attempt as it went on."""

    def __init__(self, served: Served, cached: int | None, end: float) -> None:
        self.served = served
        self._ends = served.end if served.end is not None else max(end, served.t0)
        self._cached = cached
        self.progress = Progress(served.id, 1, served.engine, served.t0, served.prompt_tokens or 0, served.streamed)

    def reach(self, t: float) -> int:
        """Go on to `t`; how many frames came."""
        progress, before = self.progress, self.progress.frames
        progress.frames = bisect_right(self.served.ticks, t)
        if self.served.first is not None and self.served.first <= t:
            progress.first = self.served.first
        if self._ends <= t:
            self.end()
        return progress.frames - before

    def end(self) -> None:
        served, progress = self.served, self.progress
        progress.first, progress.frames, progress.ended = served.first, len(served.ticks), self._ends
        progress.prompt_tokens, progress.output_tokens = served.prompt_tokens, served.output_tokens
        progress.cached_tokens = self._cached


def found(scenario: Scenario) -> list[int | None]:
    """Each attempt's cached prompt tokens: as told, else its part of what the engine's own counter of them moved.

    An engine finds a prompt in its cache when it takes it up. So what the counter moves between two answers, less what
    was told of those who got their first token meanwhile, belongs to the others that got theirs, or still waited, in
    proportion to what is left of their prompts.
    """
    cached: list[int | None] = [one.cached_tokens for one in scenario.served]
    unknown = [n for n, one in enumerate(scenario.served) if one.cached_tokens is None and one.prompt_tokens]
    last: dict[str, Counter] = {}
    for line in scenario.counters if unknown else ():
        before = last.setdefault(line.engine, line)
        if line.cached_tokens is None or line[4:7] == before[4:7]:
            continue
        last[line.engine] = line
        told = sum(one.cached_tokens or 0 for one in scenario.served if _taken_up(one, before, line))
        hits = line.cached_tokens - (before.cached_tokens or 0.0) - told
        if hits >= _AT_LEAST:
            _give(hits, [n for n in unknown if _waited(scenario.served[n], before, line)], scenario.served, cached)
    return cached


def _taken_up(one: Served, before: Counter, line: Counter) -> bool:
    return one.engine == line.engine and before.t < (one.first or one.end or inf) <= line.t


def _waited(one: Served, before: Counter, line: Counter) -> bool:
    return one.engine == line.engine and one.t0 <= line.t and before.t < (one.first or one.end or inf)


def _give(hits: float, taking: list[int], served: Sequence[Served], cached: list[int | None]) -> None:
    left = [max(0, (served[n].prompt_tokens or 0) - (cached[n] or 0) - 1) for n in taking]
    for n, tokens in zip(taking, left, strict=True):
        if tokens:
            cached[n] = (cached[n] or 0) + min(tokens, round(hits * tokens / sum(left)))
