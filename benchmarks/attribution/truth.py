"""Who should pay what: Shapley's values of every step of a load on the emulated engine, added up by request."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.attribution.load import Sent
from benchmarks.attribution.shapley import Card, Prefix, Values, shapley
from emulator.core.gpu import Gpu
from emulator.core.machine import Observed
from emulator.core.prompt import Text
from emulator.core.step import StepCost, StepWork
from emulator.replay import ANSWER_S

BLOCK = 16
ALIKE = 8  # so many decode steps of the same requests are taken to be shared alike


class Watched(Gpu):
    """A card that remembers what its regulator had left when a step with prefill was asked for."""

    headroom_j = 0.0

    def step(self, work: StepWork) -> StepCost:
        self.headroom_j = self._headroom_j if work.prefill_tokens else 0.0
        return super().step(work)


@dataclass
class Truth:
    """What was: joules of each request by Shapley's rule, and all that counters and clients could have seen."""

    joules: dict[str, float] = field(default_factory=dict)
    variance: dict[str, float] = field(default_factory=dict)  # of these, where orders were drawn: joules squared
    bent_j: float = 0.0  # joules of steps whose game is not linear
    preemptions: int = 0
    off_j: float = 0.0  # Σ |the step's energy - the worth of all its requests|: what interpolation hides
    steps: list[tuple[float, float, float]] = field(default_factory=list)  # start, end, joules
    counted: list[float] = field(default_factory=list)  # when the engine's step counter moved
    generated: list[float] = field(default_factory=list)  # when a token was made
    hits: list[tuple[float, int]] = field(default_factory=list)  # when a prompt was found in the cache, and its tokens
    ticks: dict[str, list[float]] = field(default_factory=dict)  # when tokens reached the gateway


class Observer:
    """Plays the game of every step as it comes."""

    def __init__(self, sent: dict[str, Sent], gpu: Watched, seed: int) -> None:
        self.truth = Truth()
        self._sent, self._gpu = sent, gpu
        self._card = Card(gpu)
        self._rng = np.random.default_rng(seed)
        self._heads: dict[tuple[str, ...], list[Prefix]] = {}
        self._last: tuple[tuple[str, ...], Hashable, Values] | None = None
        self._age = 0

    def __call__(self, step: Observed) -> None:
        truth, end = self.truth, step.start + step.seconds
        truth.steps.append((step.start, end, step.joules))
        told = [self._told(name, part, step.start, end) for name, part in step.parts.items()]
        if any(told):  # the engine counts a step that returns a token
            truth.counted.append(end)
        names = tuple(step.parts)
        values = self._values(names, step)
        whole_j = float(values.joules.sum())
        truth.off_j += abs(step.joules - whole_j)
        truth.bent_j += step.joules * values.bent
        scaled = values.joules * (step.joules / whole_j)
        for name, joules, error_j in zip(names, scaled.tolist(), values.error_j.tolist(), strict=True):
            truth.joules[name] = truth.joules.get(name, 0.0) + joules
            truth.variance[name] = truth.variance.get(name, 0.0) + error_j**2

    def _told(self, name: str, part: StepWork, start: float, end: float) -> bool:
        """Whether a request got a token of the step."""
        truth, ticks = self.truth, self.truth.ticks.setdefault(name, [])
        if name not in truth.joules and part.prefill_tokens:
            truth.hits.append((start, part.prefill_context - part.prefill_tokens))
        if not part.decode_sequences and part.prefill_context < self._sent[name].prompt_tokens + len(ticks):
            return False
        ticks.append(end + ANSWER_S)
        truth.generated.append(end)
        return True

    def _values(self, names: tuple[str, ...], step: Observed) -> Values:
        parts, limits = list(step.parts.values()), self._gpu.limits
        decodes = all(part.decode_sequences for part in parts)
        if decodes and self._age < ALIKE and self._last is not None and self._last[:2] == (names, limits):
            self._age += 1
            return self._last[2]
        headroom_j = 0.0 if decodes else self._gpu.headroom_j
        values = shapley(self._card, parts, self._prefixes(names, parts), headroom_j, self._rng)
        self._last = (names, limits, values) if decodes else None
        self._age = 0
        return values

    def _prefixes(self, names: tuple[str, ...], parts: list[StepWork]) -> list[Prefix]:
        """What decoding requests read in common, in whole blocks."""
        players = tuple(n if part.decode_sequences else "" for n, part in zip(names, parts, strict=True))
        known = self._heads.get(players)
        if known is None:
            readers: dict[tuple[Text, ...], list[int]] = {}
            for player, name in enumerate(players):
                prompt = self._sent[name].prompt if name else ()
                for depth in range(1, len(prompt) + 1):
                    readers.setdefault(prompt[:depth], []).append(player)
            known = []
            for head, who in readers.items():
                tokens = [sum(t.tokens for t in head[:n]) // BLOCK * BLOCK for n in (len(head) - 1, len(head))]
                if len(who) > 1 and tokens[1] > tokens[0]:
                    known.append(Prefix(tokens[1] - tokens[0], tuple(who)))
            self._heads[players] = known
        return known
