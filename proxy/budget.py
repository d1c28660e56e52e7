"""When a budget in joules is spent, how much is left of it, and what that pays for.

Sans-I/O: time is passed in. Hours, days and months are those of the calendar, in UTC; a run has one budget for its
whole life. Energies are integers of microjoules.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from proxy.energy.prior import Coefficients


class Period(StrEnum):
    """What a budget is for."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    RUN = "run"

    def began(self, now: float) -> float:
        """When the period that `now` lies in began (Unix seconds); a run's is all the time there was."""
        if self is Period.RUN:
            return -math.inf
        return _start(self, now).timestamp()

    def ends(self, now: float) -> float | None:
        """When the next one begins; None for a run, which has no next."""
        if self is Period.RUN:
            return None
        start = _start(self, now)
        if self is Period.MONTH:
            return (start + timedelta(days=32)).replace(day=1).timestamp()
        return (start + (timedelta(hours=1) if self is Period.HOUR else timedelta(days=1))).timestamp()


def _start(period: Period, now: float) -> datetime:
    hour = datetime.fromtimestamp(now, UTC).replace(minute=0, second=0, microsecond=0)
    if period is Period.HOUR:
        return hour
    return hour.replace(hour=0) if period is Period.DAY else hour.replace(hour=0, day=1)


@dataclass(frozen=True, slots=True)
class Terms:
    """A budget as it was agreed: microjoules for each period.

    From the part `warn` of a limit on it is said that it runs out, and answers are no longer than `cap_tokens` or what
    the rest pays for. `stop` ends requests in flight too.
    """

    limits_uj: Mapping[Period, int]
    warn: float = 0.8
    cap_tokens: int | None = None
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How one limit stands at one moment; `opens` is when there is more to spend, None for never."""

    terms: Terms
    period: Period
    limit_uj: int
    spent_uj: int
    opens: float | None

    @property
    def left_uj(self) -> int:
        return max(0, self.limit_uj - self.spent_uj)

    @property
    def is_spent(self) -> bool:
        return self.spent_uj >= self.limit_uj

    @property
    def is_low(self) -> bool:
        """Whether it is time to say that the budget runs out."""
        return self.spent_uj >= self.terms.warn * self.limit_uj

    def retry_after_s(self, now: float) -> int | None:
        """Whole seconds until there is more to spend, at least 1; None for never."""
        return None if self.opens is None else max(1, math.ceil(self.opens - now))


def standings(terms: Terms, spent_uj: Callable[[Period], int], now: float) -> list[Standing]:
    """How each limit of a budget stands, when that much was spent in its period."""
    return [
        Standing(terms, period, limit_uj, spent_uj(period), period.ends(now))
        for period, limit_uj in terms.limits_uj.items()
    ]


def tightest(found: Iterable[Standing]) -> Standing:
    """The limit with the least left. Raises ValueError where there is none."""
    return min(found, key=lambda standing: standing.left_uj)


def closed(found: Iterable[Standing]) -> Standing | None:
    """The spent limit that lasts longest, as nothing runs before it opens; None while nothing is spent."""
    spent = (standing for standing in found if standing.is_spent)
    return max(spent, key=lambda standing: math.inf if standing.opens is None else standing.opens, default=None)


def ceiling(found: Sequence[Standing], token_uj: float, prompt_uj: float, sharers: int) -> int | None:
    """The output tokens that an answer may have, at least 1; None where nothing says.

    An answer may never cost more than the rest of a budget; once that is low, no more than its part of it, the rest
    being shared by the `sharers` requests that it pays for, this one included. `token_uj` is the price of an output
    token, 0 where that is not known.
    """
    most: list[float] = []
    for standing in found:
        if standing.is_low and standing.terms.cap_tokens is not None:
            most.append(standing.terms.cap_tokens)
        if token_uj > 0:
            part_uj = standing.left_uj / (max(1, sharers) if standing.is_low else 1)
            most.append((part_uj - prompt_uj) / token_uj)
    return max(1, math.floor(min(most))) if most else None


def token_uj(prices: Coefficients, devices: int, in_flight: int, prompt_tokens: int) -> tuple[float, float]:
    """What an output token and a prompt are expected to cost by an engine's prices, in microjoules.

    A step's joules are shared by the `in_flight` requests in it, this one included; `devices` do the same work each.
    """
    per_token_j = prices.step_j / max(1, in_flight) + prices.output_j + prices.context_j * prompt_tokens
    return per_token_j * devices * 1e6, prices.prompt_j * prompt_tokens * devices * 1e6
