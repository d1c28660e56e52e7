"""One request's hold on the budgets that it draws on: whether it may run, how long its answer may be, when it must end.

An account says what its tenant, or its run, had spent when `Spending` last looked.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from proxy.budget import Period, Standing, Terms, ceiling, closed, standings, tightest, token_uj
from proxy.energy.receipts import Run
from proxy.energy.serving import Serving
from proxy.refusal import Refusal
from proxy.telemetry.metrics import Metrics

PATIENCE_S = 60  # whoever may spend again only later than this need not ask again by itself
LONG_TOKENS = 1024  # an answer without a limit of its own is given none above this: not every model can make as many


@dataclass(slots=True, eq=False)
class TenantAccount:
    """What a tenant has spent in each period that a budget of its keys is for; part of it predicted."""

    tenant: str
    spent_uj: dict[Period, int] = field(default_factory=dict)
    open_uj: int = 0  # predicted, of requests that are not settled
    drawing: int = 0  # requests that draw on it


@dataclass(slots=True, eq=False)
class RunAccount:
    """What one run has spent, over all of its segments and the lives of the gateway; part of it predicted."""

    tenant: str
    run: str
    alone: bool  # one request, and no other will come
    before_uj: int  # of segments that are not in `segments`
    segments: list[Run]
    asked_uj: int | None = None  # the lowest budget that the client asked for
    terms: Terms | None = None
    spent_uj: int = 0
    open_uj: int = 0
    drawing: int = 0
    told: int = 0  # how low its budget was said to be

    def joins(self, run: Run) -> None:
        """A request of the account is in this segment."""
        if run not in self.segments:
            self.segments.append(run)

    def standings(self, now: float) -> list[Standing]:
        """How its budget stands."""
        return [] if self.terms is None else standings(self.terms, lambda _: self.spent_uj, now)

    def add_up(self) -> None:
        self.spent_uj = self.before_uj + sum(run.uj for run in self.segments) + self.open_uj


class Draw:
    """`key_terms` is the budget of the request's key, `run` the account of its run; either may be none.

    `stop` is called, once, when a budget that ends requests in flight is spent.
    """

    def __init__(
        self,
        tenant: TenantAccount,
        key_terms: Terms | None,
        run: RunAccount | None,
        fresh: Callable[[float], None],
        metrics: Metrics,
    ) -> None:
        """`fresh` sees to it that the accounts are of this hour."""
        self.tenant, self.key_terms, self.run = tenant, key_terms, run
        self._fresh, self._metrics = fresh, metrics
        self.stop: Callable[[Standing], None] | None = None

    def standings(self, now: float) -> list[Standing]:
        """How each limit that holds for the request stands."""
        self._fresh(now)
        found: list[Standing] = []
        if self.key_terms is not None:
            found += standings(self.key_terms, lambda period: self.tenant.spent_uj.get(period, 0), now)
        return found if self.run is None else [*found, *self.run.standings(now)]

    def check(self, now: float) -> int | None:
        """Microjoules that are left, None where no limit holds any more. Raises Refusal (429) where one is spent."""
        found = self.standings(now)
        if (standing := closed(found)) is not None:
            self.count(standing, "refused")
            raise self.refusal(standing, now)
        return tightest(found).left_uj if found else None

    def most_tokens(
        self, serving: Serving | None, in_flight: int, prompt_tokens: int, choices: int, asked: float | None, now: float
    ) -> int | None:
        """How many output tokens an answer may have at an engine with so many requests in flight; None for any.

        `asked` is what the client limits it to. What an engine without a counter does costs nothing that is counted.
        """
        found = self.standings(now)
        token, prompt = 0.0, 0.0
        if serving is not None and serving.alike:
            token, prompt = token_uj(serving.prices, serving.alike, in_flight, prompt_tokens)
        drawing = max(
            self.tenant.drawing if self.key_terms is not None else 0, self.run.drawing if self.run is not None else 0
        )
        most = ceiling(found, token * choices, prompt, drawing)
        caps = [one.terms.cap_tokens for one in found if one.is_low and one.terms.cap_tokens is not None]
        if most is None or (asked is None and most > max([LONG_TOKENS, *caps])):
            return None
        return most

    def joins(self, run: Run) -> None:
        """The request is in this segment of its run."""
        if self.run is not None:
            self.run.joins(run)

    def capped(self, now: float) -> None:
        """An answer was made shorter than it was asked for."""
        self.count(tightest(self.standings(now)), "capped")

    def count(self, standing: Standing, action: str) -> None:
        self._metrics.budget(self.tenant.tenant, standing.period.value, action)

    def refusal(self, standing: Standing, now: float) -> Refusal:
        """What the client is told when this limit is spent."""
        limit = f"{standing.limit_uj / 1e6:g} J"
        if standing.period is Period.RUN:
            message = f"this run has spent its budget of {limit}, which does not open again"
            return Refusal(429, message, "run_budget_spent", retry=False)
        message = f"tenant {self.tenant.tenant} has spent its budget of {limit} for this {standing.period.value}"
        wait_s = standing.retry_after_s(now)
        soon = wait_s is not None and wait_s <= PATIENCE_S
        return Refusal(429, f"{message}; try again in {wait_s} s", "budget_spent", retry_after_s=wait_s, retry=soon)


def asked_uj(headers: Mapping[bytes, bytes]) -> int | None:
    """The budget that a client gives its run, in microjoules. Raises Refusal (400) for what is none."""
    raw = headers.get(b"x-workflow-budget")
    if raw is None:
        return None
    try:
        joules = float(raw)
    except ValueError:
        joules = math.nan
    if not 1e-6 <= joules <= 1e12:
        raise Refusal(400, "x-workflow-budget must be a number of joules, more than 0", "invalid_workflow_header")
    return round(joules * 1e6)
