"""Random mixes of work on the emulated engine: who should pay what, and what a gateway before it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from math import inf
from random import Random

import numpy as np

from benchmarks.shapley import Card, Prefix, Values, shapley
from emulator.core.gpu import Gpu
from emulator.core.machine import Machine, Observed
from emulator.core.presets import GpuPreset, ModelPreset
from emulator.core.prompt import Text
from emulator.core.step import StepCost, StepWork
from emulator.replay import ANSWER_S, Answer, Call, Replay, Sleep, Task
from proxy.energy.trace import Counter, Scenario, Served

HEAD = Text("head", 3000)
COUNTER_S = 0.1  # how often the card's counter moves
LOOK_S = 0.097  # how often the gateway looks
BLOCK = 16
ALIKE = 8  # so many decode steps of the same requests are taken to be shared alike
KINDS = ("sequential", "interactive", "agentic", "prefill", "decode", "cancelled")


@dataclass(frozen=True)
class Mix:
    """How many users of each kind of work; new runs begin for `seconds`. What is `bent` makes the truth not linear."""

    seed: int
    users: dict[str, int]
    seconds: float
    bent: str = ""  # "", "cap", "clocks" or "evictions"


def random_mix(seed: int, seconds: float, bent: str = "") -> Mix:
    """One to four kinds of work, of 1 to 8 users each."""
    rng = Random(f"{seed} {bent}")
    kinds = rng.sample(KINDS, rng.randint(1, 4))
    return Mix(seed, {kind: rng.choice((1, 1, 2, 3, 4, 6, 8)) for kind in kinds}, seconds, bent)


@dataclass
class Sent:
    at: float
    patience_s: float
    answer: Answer | None = None  # never came to who left


class Users:
    """Closed-loop users of each kind; the lengths of prompts and answers vary by a third around the paper's."""

    def __init__(self, replay: Replay, rng: Random, until: float) -> None:
        self._replay, self._rng, self._until = replay, rng, until
        self._names: Iterator[int] = count()
        self.prompts: dict[str, tuple[Text, ...]] = {}
        self.sent: dict[str, Sent] = {}

    def task(self, kind: str) -> Task:
        run: Callable[[], Task] = getattr(self, f"_{kind}")
        yield Sleep(self._rng.uniform(0, 1.5))
        while self._replay.now < self._until:
            yield from run()

    def warm(self) -> Task:
        """The heads that prompts share, and the machine's first step."""
        for head in (HEAD, *(self._role(role) for role in ("arch", "eng", "rev", "fix"))):
            yield Call((head, self._own(16)), 2)
        yield Sleep(1.0)

    def _own(self, tokens: int) -> Text:
        return Text(("own", next(self._names)), tokens)

    def _about(self, tokens: int) -> int:
        return max(2, round(tokens * self._rng.uniform(0.67, 1.33)))

    def _call(self, kind: str, output: int, *prompt: Text, patience_s: float = inf) -> Task:
        name = f"{kind}-{len(self.sent)}"
        self.prompts[name] = prompt
        sent = self.sent[name] = Sent(self._replay.now, patience_s)
        sent.answer = yield Call(prompt, self._about(output), name, patience_s)

    def _sequential(self) -> Task:
        """A document's chunks one after the other, each with the summary so far."""
        for part in range(self._rng.randint(2, 5)):
            summary = (self._own(50),) if part else ()
            yield from self._call("sequential", 50, self._own(self._about(1000)), *summary)

    def _interactive(self) -> Task:
        """A question after a long shared head, and a look at the answer."""
        yield from self._call("interactive", 150, HEAD, self._own(self._about(40)))
        yield Sleep(self._rng.expovariate(1 / 0.5))

    def _agentic(self) -> Task:
        """Architect, then engineers, reviewers, revisers, three at once."""
        spec = self._own(200)
        yield from self._call("agentic", 200, self._role("arch"), self._own(self._about(60)))
        for role, output, code in (("eng", 300, 0), ("rev", 100, 300), ("fix", 150, 400)):
            yield [self._call("agentic", output, self._role(role), spec, *self._code(code)) for _ in range(3)]

    def _prefill(self) -> Task:
        """A long document, a short answer."""
        yield from self._call("prefill", 16, self._own(self._about(3000)))
        yield Sleep(self._rng.expovariate(1 / 0.3))

    def _decode(self) -> Task:
        """A short question, a long answer."""
        yield from self._call("decode", 600, self._own(self._about(128)))

    def _cancelled(self) -> Task:
        """Somebody of whom every other time the patience ends, before the answer is there or even begun."""
        prompt, output = self._rng.choice(
            (((HEAD, self._own(40)), 150), ((self._own(1000),), 50), ((self._own(128),), 600))
        )
        patience_s = self._rng.choice((inf, self._rng.lognormvariate(0.0, 1.0)))
        yield from self._call("cancelled", output, *prompt, patience_s=patience_s)
        yield Sleep(self._rng.expovariate(1 / 0.5))

    def _role(self, name: str) -> Text:
        return Text(("role", name), 250)

    def _code(self, tokens: int) -> tuple[Text, ...]:
        return (self._own(self._about(tokens)),) if tokens else ()


class Watched(Gpu):
    """A card that remembers what its regulator had left when a step with prefill was asked for."""

    headroom_j = 0.0

    def step(self, work: StepWork) -> StepCost:
        self.headroom_j = self._headroom_j if work.prefill_tokens else 0.0
        return super().step(work)


@dataclass
class Truth:
    """What was played: joules of each request by Shapley, what the counter would have said, the steps' times."""

    joules: dict[str, float] = field(default_factory=dict)
    variance: dict[str, float] = field(default_factory=dict)  # of these, where orders were drawn: joules squared
    bent_j: float = 0.0  # joules of steps whose game is not linear
    off_j: float = 0.0  # Σ |the step's energy - the worth of all its requests|: what interpolation hides
    steps: list[tuple[float, float, float]] = field(default_factory=list)  # start, end, joules
    counted: list[float] = field(default_factory=list)  # when the engine's step counter moved
    ticks: dict[str, list[float]] = field(default_factory=dict)
    generated: list[float] = field(default_factory=list)


class Observer:
    """Plays the game of every step as it comes."""

    def __init__(self, users: Users, gpu: Watched, seed: int) -> None:
        self.truth = Truth()
        self.users, self.gpu = users, gpu
        self.hit_at: list[float] = []  # when a prompt was found in the cache
        self.hits: list[int] = []  # and tokens of it
        self._card = Card(gpu)
        self._rng = np.random.default_rng(seed)
        self._heads: dict[tuple[str, ...], list[Prefix]] = {}
        self._last: tuple[tuple[str, ...], Hashable, Values] | None = None
        self._age = 0

    def __call__(self, step: Observed) -> None:
        truth, end = self.truth, step.start + step.seconds
        truth.steps.append((step.start, end, step.joules))
        names = tuple(step.parts)
        told = False
        for name, part in step.parts.items():
            known = sum(text.tokens for text in self.users.prompts.get(name, ()))
            ticks = truth.ticks.setdefault(name, [])
            if name not in truth.joules and part.prefill_tokens:
                self.hit_at.append(step.start)
                self.hits.append(part.prefill_context - part.prefill_tokens)
            if part.decode_sequences or part.prefill_context >= known + len(ticks):
                ticks.append(end + ANSWER_S)
                truth.generated.append(end)
                told = True
        if told:
            truth.counted.append(end)
        values = self._values(names, step)
        whole_j = float(values.joules.sum())
        truth.off_j += abs(step.joules - whole_j)
        truth.bent_j += step.joules * values.bent
        scaled = values.joules * (step.joules / whole_j)
        for name, joules, error_j in zip(names, scaled.tolist(), values.error_j.tolist(), strict=True):
            truth.joules[name] = truth.joules.get(name, 0.0) + joules
            truth.variance[name] = truth.variance.get(name, 0.0) + error_j**2

    def _values(self, names: tuple[str, ...], step: Observed) -> Values:
        parts, limits = list(step.parts.values()), self.gpu.limits
        decodes = all(part.decode_sequences for part in parts)
        if decodes and self._age < ALIKE and self._last is not None and self._last[:2] == (names, limits):
            self._age += 1
            return self._last[2]
        headroom_j = 0.0 if decodes else self.gpu.headroom_j
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
                prompt = self.users.prompts.get(name, ())
                for depth in range(1, len(prompt) + 1):
                    readers.setdefault(prompt[:depth], []).append(player)
            known = []
            for head, who in readers.items():
                tokens = [sum(t.tokens for t in head[:n]) // BLOCK * BLOCK for n in (len(head) - 1, len(head))]
                if len(who) > 1 and tokens[1] > tokens[0]:
                    known.append(Prefix(tokens[1] - tokens[0], tuple(who)))
            self._heads[players] = known
        return known


def play(mix: Mix, gpu: GpuPreset, model: ModelPreset) -> tuple[Truth, Scenario]:
    """Run a mix; what was true, and what the gateway saw. Idle seconds come before and after."""
    rng = Random(f"{mix.seed} load")
    replay = Replay(gpu, model)
    settings = replay.machine.settings
    if mix.bent == "evictions":
        settings = replace(settings, kv_blocks=4096 // BLOCK * rng.choice((3, 4, 6)))
    card = Watched(gpu.card, gpu.factors, model.shape)
    users = Users(replay, rng, 0.0)
    replay.machine = Machine(settings, [card])
    replay.run(users.warm())
    users.sent.clear()
    users.prompts.clear()
    observer = replay.machine.observer = Observer(users, card, mix.seed)
    began, warm_j = replay.now, card.energy_j
    users._until = began + mix.seconds
    tasks = [users.task(kind) for kind, number in mix.users.items() for _ in range(number)]
    if mix.bent in ("cap", "clocks"):
        tasks.append(_bend(mix.bent, card, rng, replay, began + mix.seconds))
    replay.run(*tasks)
    replay.rest(replay.now + 1.5)
    return observer.truth, _seen(mix, observer, replay, began, warm_j, rng)


def _bend(how: str, card: Gpu, rng: Random, replay: Replay, until: float) -> Task:
    """Limits that change as a policy, or a colder night, would change them."""
    while replay.now < until:
        if how == "cap":
            card.power_limit_w = rng.choice((250.0, 300.0, 400.0, 500.0))
        else:
            card.sm_clock_range_mhz = (210, rng.choice((700, 1000, 1300, 1600, 1980)))
        yield Sleep(rng.uniform(1.0, 6.0))


def _seen(mix: Mix, observer: Observer, replay: Replay, began: float, warm_j: float, rng: Random) -> Scenario:
    truth, scenario = observer.truth, Scenario()
    idle_w = observer.gpu.idle_power_w
    starts, ends, joules = np.array(truth.steps).T
    times = np.stack((starts, ends), axis=1).ravel()
    idle_s = np.concatenate(([starts[0] - began], starts[1:] - ends[:-1]))
    moved = np.cumsum(np.stack((idle_s * idle_w, joules), axis=1).ravel())
    times, moved = np.concatenate(([began], times, [replay.now])), np.concatenate(([0.0], moved, [0.0]))
    moved[-1] = moved[-2] + (replay.now - times[-2]) * idle_w
    assert abs(moved[-1] + warm_j - observer.gpu.energy_j) < 1e-3 * moved[-1], "every joule of the card is known"
    phase_s, looks_s = rng.uniform(0, COUNTER_S), 1 / rng.uniform(1, 2)
    asked_at, steps, tokens, cached = -1.0, 0.0, 0.0, 0.0
    sent = observer.users.sent
    hit_at, hit = observer.hit_at, np.cumsum([0, *observer.hits])
    polls = np.arange(began, replay.now, LOOK_S)
    polls += np.random.default_rng(mix.seed).uniform(0, 0.002, len(polls))
    moves = np.floor((polls - phase_s) / COUNTER_S) * COUNTER_S + phase_s
    for t, at_mj in zip(polls.tolist(), np.floor(1000 * np.interp(moves, times, moved)).tolist(), strict=True):
        if t - asked_at >= looks_s:
            asked_at = t
            steps = float(np.searchsorted(truth.counted, t, "right"))
            tokens = float(np.searchsorted(truth.generated, t, "right"))
            cached = float(hit[np.searchsorted(hit_at, t, "right")])
        scenario.counters.append(Counter(t, int(at_mj) * 1000, "gpu", "e", steps, tokens, cached, asked_at))
    scenario.served = [_served(name, one, observer, rng) for name, one in sent.items()]
    return scenario


def _served(name: str, sent: Sent, observer: Observer, rng: Random) -> Served:
    """A request as the gateway saw it. Of one whose client has left nobody tells the usage."""
    answer, ticks = sent.answer, observer.truth.ticks.get(name, [])
    end, guess = sent.at + sent.patience_s, sum(text.tokens for text in observer.users.prompts[name])
    if answer is None:
        ticks = [t for t in ticks if t <= end]
    return Served(
        id=name,
        cls=name.partition("-")[0],
        engine="e",
        t0=sent.at,
        first=ticks[0] if ticks else None,
        end=answer.at if answer else end,
        prompt_tokens=answer.prompt_tokens if answer else round(guess * rng.uniform(0.9, 1.1)),
        cached_tokens=answer.cached_tokens if answer else None,
        output_tokens=answer.output_tokens if answer else None,
        ticks=ticks,
        streamed=True,
    )
