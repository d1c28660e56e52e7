"""`with joulegate.run("search") as r:` makes the calls inside it one run, and says what they cost."""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextvars import Token
from types import TracebackType
from typing import Self

from joulegate.figures import EnergyUnavailable, Gateway, NotYet, Report, RequestEnergy
from joulegate.tagging import Scope, Traffic, current, inside, install

log = logging.getLogger("joulegate")

DEFAULT_URL = "http://127.0.0.1:8080"
LONG_POLL_S = 5
PAUSE_S = 0.2  # between polls, for a gateway that answers at once
CLOSE_TIMEOUT_S = 2.0

_unreachable: set[str] = set()  # gateways of which it has been said already


class Run:
    """One run of a workflow. Use it as `with` or `async with`, once.

    What it cost is read from `report()` (`areport()` in async code) and the properties over it: they wait, blocking,
    until the figures of all calls made so far are settled, and raise EnergyUnavailable where these cannot be had.
    """

    def __init__(
        self,
        workflow: str,
        run_id: str,
        step: str | None,
        gateway: Gateway,
        key: str | None,
        budget_j: float | None = None,
    ) -> None:
        self.workflow = workflow
        self.id = run_id
        self._gateway = gateway
        self._authorization = f"Bearer {key.strip()}" if key else None
        self._traffic = Traffic()
        whole = Scope.of_run(gateway.origin, run_id, workflow, self._traffic, budget_j)
        self._scope = whole.at_step(step) if step is not None else whole
        self._token: Token[Scope | None] | None = None
        self._final: Report | None = None

    def __repr__(self) -> str:
        return f"<joulegate run {self.id} of {self.workflow}>"

    @property
    def headers(self) -> dict[str, str]:
        """What to send with calls of clients that are not tagged by themselves (other libraries, other processes)."""
        scope = current.get()
        return dict((scope if scope and scope.traffic is self._traffic else self._scope).headers)

    @contextlib.contextmanager
    def step(self, name: str, *, node: str | None = None, parents: Sequence[str] = ()) -> Iterator[None]:
        """The calls inside are this step of the run, in whichever thread or task it is entered.

        `node` is the call's own name in the run's graph, `parents` are the nodes (or request ids) whose output it uses.
        """
        with inside(self._scope.at_step(name, node, parents)):
            yield

    def __enter__(self) -> Self:
        if self._token is not None:
            raise RuntimeError(
                f"run {self.id} was entered before; make a new one with joulegate.run({self.workflow!r})"
            )
        install()
        self._token = current.set(self._scope)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        self._close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio  # here, so that importing joulegate stays light

        self._leave()
        await asyncio.to_thread(self._close)

    def report(self, timeout_s: float = 30.0) -> Report:
        """Wait up to `timeout_s` seconds for the settled figures of the calls made so far. Raises EnergyUnavailable."""
        if self._final is not None:
            return self._final
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            try:
                report = self._gateway.report(self.id, self._key(), wait_s=max(0, min(LONG_POLL_S, int(left_s))))
            except NotYet:
                if left_s <= 0:
                    raise
            else:
                if report is None:
                    raise EnergyUnavailable(self._why_unknown())
                if report.settled:
                    self._final = report if report.final else None
                    return report
                if left_s <= 0:
                    raise EnergyUnavailable(
                        f"the figures of run {self.id} are not settled after {timeout_s:g} s: ask report() again later"
                    )
            time.sleep(PAUSE_S)

    async def areport(self, timeout_s: float = 30.0) -> Report:
        """`report()` for async code: waits in a thread, so that the event loop goes on."""
        import asyncio  # here, so that importing joulegate stays light

        return await asyncio.to_thread(self.report, timeout_s)

    @property
    def joules(self) -> float:
        """What the run cost. Raises EnergyUnavailable also where no counter saw the work, which is not 0 J."""
        report = self.report()
        if report.joules is None:
            raise EnergyUnavailable(report.why_unknown())
        return report.joules

    @property
    def requests(self) -> list[RequestEnergy]:
        return list(self.report().requests)

    @property
    def by_step(self) -> dict[str, float | None]:
        """Joules of each step, None for a step whose work no counter saw."""
        return dict(self.report().by_step)

    @property
    def quality(self) -> str | None:
        """How the joules are known: "attributed", "estimated" or "emulated"; None where they are not."""
        return self.report().quality

    @property
    def final(self) -> bool:
        """Whether the run has ended and its figures will not change any more."""
        return self.report().final

    def _key(self) -> str | None:
        return self._authorization or self._traffic.authorization

    def _leave(self) -> None:
        self._traffic.ended = True
        assert self._token is not None
        # Frameworks may leave in another context than they entered in; there the scope was never set.
        with contextlib.suppress(ValueError):
            current.reset(self._token)

    def _close(self) -> None:
        try:
            self._gateway.close_run(self.id, self._key(), CLOSE_TIMEOUT_S)
        # Whatever it is: the app's work is done, or has failed, and what became of metering must not hide that.
        except Exception as error:
            if self._gateway.url not in _unreachable:
                _unreachable.add(self._gateway.url)
                log.warning("could not tell the gateway that run %s has ended: %s", self.id, error)

    def _why_unknown(self) -> str:
        traffic, url = self._traffic, self._gateway.url
        if traffic.tagged:
            return (
                f"{url} does not know run {self.id}: its calls may have been made with another key than the one "
                "given as key= or JOULEGATE_KEY, or the gateway refused them all"
            )
        if traffic.elsewhere is not None:
            return (
                f"no call of run {self.id} went to the gateway at {url}, but some went to {traffic.elsewhere}: "
                "point the client's base_url at the gateway, or url= or JOULEGATE_URL at where it listens"
            )
        return f"run {self.id} made no call that {url} knows of, through openai, httpx or with the run's `headers`"


def run(
    workflow: str,
    *,
    id: str | None = None,
    step: str | None = None,
    url: str | None = None,
    key: str | None = None,
    budget_j: float | None = None,
) -> Run:
    """A run of `workflow`, to be used as `with joulegate.run("search") as r:` (or `async with`).

    Calls that openai, httpx, httpx2 or LangChain clients make inside it to the gateway carry the run's headers, also
    from threads and tasks that are started inside. Headers that the caller set are kept; other hosts see nothing.

    `id` names the run (default: a new one), `step` is the step of calls outside any `step(...)`. `url` is the gateway's
    (default: JOULEGATE_URL, then http://127.0.0.1:8080); `key` reads the figures (default: JOULEGATE_KEY, then the one
    that the client's own calls carried). `budget_j` is how many joules the run may spend: then the gateway refuses its
    calls (429, `run_budget_spent`). Raises ValueError for what cannot be a header, a URL or a budget.
    """
    return Run(
        workflow,
        uuid.uuid4().hex if id is None else id,
        step,
        Gateway.at(url or os.environ.get("JOULEGATE_URL") or DEFAULT_URL),
        key or os.environ.get("JOULEGATE_KEY"),
        budget_j,
    )


@contextlib.contextmanager
def step(name: str, *, node: str | None = None, parents: Sequence[str] = ()) -> Iterator[None]:
    """`Run.step` of the run that is current here. Outside any run it does nothing: a function may name its step
    without knowing who calls it."""
    scope = current.get()
    with inside(scope.at_step(name, node, parents)) if scope else contextlib.nullcontext():
        yield
