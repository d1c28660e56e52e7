"""When runs begin: closed (users, each with one run at a time) or open (at times that nobody's answer can move).

Open arrivals are drawn beforehand from the load's seed, in seconds from its beginning; the ones of a longer load begin
with those of a shorter. As text, for command lines and campaign files:

    closed:16          16 users               closed:16,think=2,over=10    who pause 2 s, and come one by one in 10 s
    poisson:2.5        2.5 runs a second, at random          constant:2.5  evenly
    ramp:0.5-4/60      at random, from 0.5 to 4 runs a second within 60 s, then 4
    trace:FILE         at the times in FILE, a number of seconds a line
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import isfinite, sqrt
from pathlib import Path
from random import Random


@dataclass(frozen=True, slots=True)
class Closed:
    """`users` who begin their next run `think_s` after the last one's end. They come evenly spread over `over_s`."""

    users: int
    think_s: float = 0.0
    over_s: float = 0.0

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ValueError(f"a closed load has at least 1 user, got {self.users}")
        if not (0 <= self.think_s < float("inf") and 0 <= self.over_s < float("inf")):
            raise ValueError(f"think_s and over_s must be 0 s or more, got {self.think_s} and {self.over_s}")

    def begins_s(self) -> tuple[float, ...]:
        """When each user begins the first run."""
        return tuple(self.over_s * user / self.users for user in range(self.users))


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent runs, `runs_s` of them a second on average."""

    runs_s: float

    def __post_init__(self) -> None:
        _positive("runs a second", self.runs_s)

    def times_s(self, rng: Random) -> Iterator[float]:
        at = 0.0
        while True:
            at += rng.expovariate(self.runs_s)
            yield at


@dataclass(frozen=True, slots=True)
class Constant:
    """One run every 1 / `runs_s` seconds, the first at once."""

    runs_s: float

    def __post_init__(self) -> None:
        _positive("runs a second", self.runs_s)

    def times_s(self, rng: Random) -> Iterator[float]:
        return (number / self.runs_s for number in count())


@dataclass(frozen=True, slots=True)
class Ramp:
    """A Poisson process whose rate goes in a straight line from `from_runs_s` to `to_runs_s` within `over_s`, and
    stays there.

    Unit-rate arrivals are mapped through the inverse of the integrated rate (Cinlar, Introduction to Stochastic
    Processes, 1975, section 4.7), so that a seed gives the same pattern at every steepness.
    """

    from_runs_s: float
    to_runs_s: float
    over_s: float

    def __post_init__(self) -> None:
        if not (0 <= self.from_runs_s < float("inf")):
            raise ValueError(f"a ramp begins at 0 runs a second or more, got {self.from_runs_s}")
        _positive("runs a second at the end", self.to_runs_s)
        _positive("seconds of a ramp", self.over_s)

    def times_s(self, rng: Random) -> Iterator[float]:
        first, last, over_s = self.from_runs_s, self.to_runs_s, self.over_s
        within = (first + last) / 2 * over_s  # runs expected in the ramp
        slope, due = (last - first) / over_s, 0.0
        while True:
            due += rng.expovariate(1.0)
            if due > within:
                yield over_s + (due - within) / last
            elif slope:
                yield 2 * due / (first + sqrt(first * first + 2 * slope * due))
            else:
                yield due / first


@dataclass(frozen=True, slots=True)
class Trace:
    """Runs at `at_s`, recorded or made up, and then no more."""

    at_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.at_s:
            raise ValueError("a trace needs at least one time")
        if not all(isfinite(at) for at in self.at_s) or self.at_s[0] < 0 or list(self.at_s) != sorted(self.at_s):
            raise ValueError("the times of a trace must be 0 s or more, in their order")

    def times_s(self, rng: Random) -> Iterator[float]:
        return iter(self.at_s)


Open = Poisson | Constant | Ramp | Trace
Arrivals = Closed | Open


def parse(text: str) -> Arrivals:
    """Arrivals from the text that the module's docstring describes. Raises ValueError that says what would be right."""
    kind, _, rest = text.partition(":")
    try:
        match kind:
            case "closed":
                users, *more = rest.split(",")
                named = dict(part.split("=") for part in more)
                if unknown := named.keys() - {"think", "over"}:
                    raise ValueError(f"{min(unknown)!r} is neither think nor over")
                return Closed(int(users), float(named.get("think", 0)), float(named.get("over", 0)))
            case "poisson":
                return Poisson(float(rest))
            case "constant":
                return Constant(float(rest))
            case "ramp":
                rates, _, over_s = rest.partition("/")
                first, _, last = rates.partition("-")
                return Ramp(float(first), float(last), float(over_s))
            case "trace":
                return Trace(tuple(float(line) for line in Path(rest).read_text().split()))
            case _:
                raise ValueError("the kind is none of them")
    except (ValueError, OSError) as error:
        form = "closed:USERS, poisson:RATE, constant:RATE, ramp:RATE-RATE/SECONDS or trace:FILE"
        raise ValueError(f"arrivals must be {form}, got {text!r} ({error})") from None


def _positive(what: str, value: float) -> None:
    if not (0 < value < float("inf")):
        raise ValueError(f"{what} must be above 0, got {value}")
