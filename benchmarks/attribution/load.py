"""Random mixes of work: sequential, interactive, agentic, long prompts beside long answers, and what is given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import inf
from random import Random

from emulator.core.gpu import Gpu
from emulator.core.prompt import Text
from emulator.replay import Answer, Call, Replay, Sleep, Task

HEAD = Text("head", 3000)
ROLES = ("arch", "eng", "rev", "fix")
KINDS = ("sequential", "interactive", "agentic", "prefill", "decode", "cancelled")


@dataclass(frozen=True)
class Mix:
    """How many users of each kind of work; new runs begin for `seconds`. `bent`: what makes the truth not linear."""

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
    """A request as its client knows it; who left has no answer."""

    prompt: tuple[Text, ...]
    at: float
    patience_s: float
    answer: Answer | None = None

    @property
    def prompt_tokens(self) -> int:
        return sum(text.tokens for text in self.prompt)


class Users:
    """Closed-loop users of each kind; the lengths of prompts and answers vary by a third around the paper's."""

    def __init__(self, replay: Replay, rng: Random) -> None:
        self._replay, self._rng = replay, rng
        self._names = count()
        self.sent: dict[str, Sent] = {}

    def tasks(self, users: dict[str, int], until: float) -> list[Task]:
        """So many users of each kind, who begin new runs until then."""
        return [self._user(kind, until) for kind, number in users.items() for _ in range(number)]

    def _user(self, kind: str, until: float) -> Task:
        run: Callable[[], Task] = getattr(self, f"_{kind}")
        yield Sleep(self._rng.uniform(0, 1.5))
        while self._replay.now < until:
            yield from run()

    def warm(self) -> Task:
        """The heads that prompts share, and the machine's first step."""
        for head in (HEAD, *map(_role, ROLES)):
            yield Call((head, self._own(16)), 2)
        yield Sleep(1.0)

    def _own(self, tokens: int) -> Text:
        return Text(("own", next(self._names)), tokens)

    def _about(self, tokens: int) -> int:
        return max(2, round(tokens * self._rng.uniform(0.67, 1.33)))

    def _call(self, kind: str, output: int, *prompt: Text, patience_s: float = inf) -> Task:
        name = f"{kind}-{len(self.sent)}"
        sent = self.sent[name] = Sent(prompt, self._replay.now, patience_s)
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
        yield from self._call("agentic", 200, _role("arch"), self._own(self._about(60)))
        for role, output, code in (("eng", 300, 0), ("rev", 100, 300), ("fix", 150, 400)):
            prompts = [(_role(role), spec, *([self._own(self._about(code))] if code else [])) for _ in range(3)]
            yield [self._call("agentic", output, *prompt) for prompt in prompts]

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


def _role(name: str) -> Text:
    return Text(("role", name), 250)


def bend(how: str, card: Gpu, rng: Random, replay: Replay, until: float) -> Task:
    """Limits that change as a policy, or a colder night, would change them."""
    while replay.now < until:
        if how == "cap":
            card.power_limit_w = rng.choice((250.0, 300.0, 400.0, 500.0))
        else:
            card.sm_clock_range_mhz = (210, rng.choice((700, 1000, 1300, 1600, 1980)))
        yield Sleep(rng.uniform(1.0, 6.0))
