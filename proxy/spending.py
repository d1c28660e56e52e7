"""Who has spent what of which budget: the accounts of tenants and runs.

What counts is settled joules plus those predicted for requests that are not settled yet. Both are looked at together
every half second, by `look`, since a joule moves from the one to the other; in between the last look holds.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from proxy import clock
from proxy.budget import Period, Standing, Terms, closed, standings
from proxy.draw import Draw, RunAccount, TenantAccount
from proxy.energy.attribution import Attribution
from proxy.energy.ledger_file import LedgerError
from proxy.energy.receipts import Book, Receipt
from proxy.energy.spent import HOUR_S, Spent
from proxy.telemetry.metrics import Metrics

log = logging.getLogger("joulegate.budget")

LOOK_EVERY_S = 0.5
MOST_RUNS = 20_000  # runs whose accounts are kept in memory; the ledger knows the others

_LEVELS = ("low", "spent")

RunKey = tuple[str, str]  # tenant, run id
RunUj = Callable[[str, str, Sequence[str]], int]  # tenant, run, uids left out -> what the ledger has of it


class Spending:
    """The accounts of tenants and runs. One owner, one thread."""

    def __init__(self, book: Book, attribution: Attribution, spent: Spent, run_uj: RunUj, metrics: Metrics) -> None:
        """`spent` is what tenants' settled requests cost; `run_uj` reads a ledger, and may raise LedgerError."""
        self._book, self._attribution, self._spent, self._run_uj = book, attribution, spent, run_uj
        self._metrics = metrics
        self._of_runs: Mapping[str, Terms] = {}  # by workflow
        self._of_keys: dict[str, list[Terms]] = {}  # by tenant
        self._tenants: dict[str, TenantAccount] = {}
        self._runs: dict[RunKey, RunAccount] = {}
        self._moving: dict[RunAccount, None] = {}  # runs that had unsettled joules when last looked at
        self._draws: dict[Draw, None] = {}
        self._told: dict[tuple[str, Period, int], tuple[float, int]] = {}
        self._looked = -math.inf

    def configure(self, of_runs: Mapping[str, Terms], of_keys: Iterable[tuple[str, Terms]]) -> None:
        """The budgets of runs by workflow, and those of keys with their tenants; for requests from now on."""
        self._of_runs, self._of_keys = of_runs, {}
        for tenant, terms in of_keys:
            self._of_keys.setdefault(tenant, []).append(terms)
        self._looked = -math.inf

    async def watch_forever(self) -> None:
        while True:
            self.look(clock.now())
            await asyncio.sleep(LOOK_EVERY_S)

    # A request's way ------------------------------------------------------------------------------------------------

    def may_hold(self, tenant: str, key_terms: Terms | None, run: str, workflow: str) -> bool:
        """Whether a budget may hold for a request that asks for none itself: else it need not `enter`."""
        return key_terms is not None or workflow in self._of_runs or (tenant, run) in self._runs

    async def enter(
        self, tenant: str, key_terms: Terms | None, run: str, workflow: str, alone: bool, asked_uj: int | None
    ) -> Draw | None:
        """A request came in; None where no budget holds for it, else `leave` must follow.

        `alone`: its run is this request and nothing else. `asked_uj` is the budget that the client gives its run.
        """
        account = self._runs.get((tenant, run))
        if account is None and (asked_uj is not None or workflow in self._of_runs):
            account = await self._account((tenant, run), alone)
        if account is not None:
            if account not in self._moving:
                account.add_up()
            if asked_uj is not None:
                account.asked_uj = min(asked_uj, account.asked_uj or asked_uj)
            account.terms = self._run_terms(account, workflow)
            self._say_of(account, clock.now())
        if key_terms is None and (account is None or account.terms is None):
            return None
        draw = Draw(self._tenant(tenant), key_terms, account, self._fresh, self._metrics)
        self._draws[draw] = None
        draw.tenant.drawing += 1
        if account is not None:
            account.drawing += 1
        return draw

    def leave(self, draw: Draw) -> None:
        """The request is over."""
        del self._draws[draw]
        draw.tenant.drawing -= 1
        if (account := draw.run) is not None:
            account.drawing -= 1
            if account.alone and not account.drawing:
                self._runs.pop((account.tenant, account.run), None)

    def _tenant(self, tenant: str) -> TenantAccount:
        account = self._tenants.get(tenant)
        if account is None:
            account = self._tenants[tenant] = TenantAccount(tenant)
        return account

    async def _account(self, key: RunKey, alone: bool) -> RunAccount:
        """The account of a run that has none in memory."""
        live = self._book.runs(*key)
        before_uj = 0
        if not alone:
            try:
                before_uj = await asyncio.to_thread(self._run_uj, *key, [run.uid for run in live])
            except LedgerError as error:
                log.warning("what a run spent before cannot be read, and counts as nothing: %s", error)
        if (known := self._runs.get(key)) is not None:  # another request of it was faster
            return known
        segments = list(dict.fromkeys([*live, *self._book.runs(*key)]))
        account = self._runs[key] = RunAccount(*key, alone, before_uj, segments)
        if len(self._runs) > MOST_RUNS:
            self._forget_one(but=account)
        return account

    def _forget_one(self, but: RunAccount) -> None:
        """Forget the run that began first and has nothing on its way: what it spent is in the ledger."""
        for key, account in self._runs.items():
            if account is not but and not account.drawing and all(run.state == "final" for run in account.segments):
                del self._runs[key]
                return

    def _run_terms(self, account: RunAccount, workflow: str) -> Terms | None:
        """The strictest of what is configured for the workflow, by any name that the run has had, and asked for."""
        names = {workflow, *(run.workflow for run in account.segments)}
        known = [self._of_runs[name] for name in names if name in self._of_runs]
        terms = min(known, key=lambda terms: terms.limits_uj[Period.RUN], default=None)
        asked_uj = account.asked_uj
        if asked_uj is None or (terms is not None and terms.limits_uj[Period.RUN] <= asked_uj):
            return terms
        limits_uj = {Period.RUN: asked_uj}
        return Terms(limits_uj) if terms is None else Terms(limits_uj, terms.warn, terms.cap_tokens, terms.stop)

    # Looking --------------------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Add up what is settled and what is predicted; say what runs out, and end what has to be."""
        self._looked = now
        if not self._of_keys and not self._runs:
            return
        self._predict(now)
        for tenant, budgets in self._of_keys.items():
            account = self._tenant(tenant)
            for period in {period for terms in budgets for period in terms.limits_uj}:
                account.spent_uj[period] = self._spent.since(tenant, period.began(now)) + account.open_uj
        self._say(now)
        self._stop(now)

    def shown(self, now: float) -> Iterator[tuple[str, Standing]]:
        """How every limit of every key stands: (tenant, standing)."""
        self._fresh(now)
        for tenant, budgets in self._of_keys.items():
            account = self._tenant(tenant)
            for terms in budgets:
                for standing in standings(terms, lambda period, of=account: of.spent_uj.get(period, 0), now):
                    yield tenant, standing

    def _fresh(self, now: float) -> None:
        """Look again when the last look was in another hour, or is long ago."""
        if now // HOUR_S != self._looked // HOUR_S or now - self._looked > 2 * LOOK_EVERY_S:
            self.look(now)

    def _predict(self, now: float) -> None:
        moving, self._moving = self._moving, {}
        for account in (*self._tenants.values(), *moving):
            account.open_uj = 0
        for receipt in self._book.unsettled():
            run = receipt.run
            account, budgeted = self._runs.get((run.tenant, run.run)), run.tenant in self._of_keys
            if account is None and not budgeted:
                continue
            uj = _open_uj(receipt, self._attribution, now)
            if budgeted:
                self._tenant(run.tenant).open_uj += uj
            if account is not None:
                account.open_uj += uj
                self._moving[account] = None
        for account in {**moving, **self._moving}:
            account.add_up()
            self._say_of(account, now)

    def _say(self, now: float) -> None:
        """Say once in each period that a budget is low, and that it is spent."""
        for tenant, standing in self.shown(now):
            key, began = (tenant, standing.period, standing.limit_uj), standing.period.began(now)
            of, told = self._told.get(key, (began, 0))
            self._told[key] = began, self._tell(f"tenant {tenant}", tenant, standing, told if of == began else 0)

    def _say_of(self, account: RunAccount, now: float) -> None:
        """The same of a run, once. Its name comes from a client, and goes into no log."""
        for standing in account.standings(now):
            account.told = self._tell(f"a run of tenant {account.tenant}", account.tenant, standing, account.told)

    def _tell(self, whose: str, tenant: str, standing: Standing, told: int) -> int:
        """Say how low a budget is, if that is lower than was `told`; returns what is told now."""
        level = 2 if standing.is_spent else 1 if standing.is_low else 0
        if level <= told:
            return told
        for action in _LEVELS[told:level]:
            self._metrics.budget(tenant, standing.period.value, action)
        spent, limit = f"{standing.spent_uj / 1e6:.3g} J", f"{standing.limit_uj / 1e6:g} J"
        refused = "; what comes now is refused" if standing.is_spent else ""
        log.warning("%s has spent %s of %s for this %s%s", whose, spent, limit, standing.period.value, refused)
        return level

    def _stop(self, now: float) -> None:
        for draw in [draw for draw in self._draws if draw.stop is not None]:
            spent = closed(standing for standing in draw.standings(now) if standing.terms.stop)
            if spent is not None and draw.stop is not None:
                stop, draw.stop = draw.stop, None
                draw.count(spent, "stopped")
                stop(spent)


def _open_uj(receipt: Receipt, attribution: Attribution, now: float) -> int:
    return sum(attribution.provisional_uj(one.progress, now) for one in receipt.attempts if one.progress is not None)
