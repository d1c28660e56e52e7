"""One ServeCore session for each run: opened with its first call, ended when the run has closed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxy.parrot.core import ServeCore
from proxy.parrot.wire import CoreFault, Forgotten, Session, Text, Var

log = logging.getLogger("joulegate.parrot")

_SWEEP_EVERY_S = 1.0
_GOODBYE_S = 3.0
_TRIES = 3  # a session that is not ours is no reason to fail a request; that ServeCore never keeps one is


class Run(Protocol):
    """What is asked of a run (`receipts.Run`)."""

    uid: str
    state: str


@dataclass(slots=True, eq=False)
class Numbers:
    """The numbers that ServeCore gave to a session's calls: 0, 1, 2, as long as nobody else uses the session.

    After a restart it gives its first sessions' ids out again, so a session that we still hold may be another run's.
    """

    asked: int = 0
    seen: set[int] = field(default_factory=set)

    def fit(self, number: int) -> bool:
        """Whether a call that was just submitted can have this number."""
        if number in self.seen or number >= self.asked:
            return False
        self.seen.add(number)
        return True


@dataclass(slots=True, eq=False)
class Use:
    """A run's session as long as somebody needs it. `calls` are those that wait for an answer."""

    run: Run
    opening: asyncio.Task[Session]
    numbers: Numbers = field(default_factory=Numbers)
    calls: int = 0


Inputs = Callable[[Use], Awaitable[Sequence[Text | Var]]]  # the parts of a prompt, as they are said in a session


class Sessions:
    """The sessions of all runs, by the run's uid; `sweep_forever` ends those that are no longer needed."""

    def __init__(self, core: ServeCore) -> None:
        self.core = core
        self._uses: dict[str, Use] = {}
        self._leaving: list[Use] = []

    def __len__(self) -> int:
        return len(self._uses) + len(self._leaving)

    async def submit(
        self,
        run: Run,
        inputs: Inputs,
        sampling: Mapping[str, Any],
        model_type: str = "text",
        models: Sequence[str] = (),
    ) -> tuple[Use, Session, Var]:
        """Make a call known in its run's session; `done` must follow. Where ServeCore has forgotten the session the
        call goes into a new one. Raises CoreFault, or what `Upstream.send` and `inputs` raise."""
        for again in range(_TRIES):
            use = self._of(run)
            use.calls += 1
            try:
                session = await asyncio.shield(use.opening)
                parts = await inputs(use)
                use.numbers.asked += 1
                number, var = await self._submitted(session, parts, sampling, model_type, models)
                if use.numbers.fit(number):
                    return use, session, var
                raise Forgotten("ServeCore gave the session to another run")
            except BaseException as error:
                self.done(use)
                failed = use.opening.done() and (use.opening.cancelled() or use.opening.exception() is not None)
                if failed or isinstance(error, Forgotten):
                    self.forget(use)
                if not isinstance(error, Forgotten) or again == _TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    async def _submitted(
        self,
        session: Session,
        parts: Sequence[Text | Var],
        sampling: Mapping[str, Any],
        model_type: str,
        models: Sequence[str],
    ) -> tuple[int, Var]:
        try:
            return await self.core.submit(session, parts, sampling, model_type, models)
        except CoreFault:
            # In a session that is another's by now our variables are unknown, which an error tells that says nothing.
            if any(isinstance(part, Var) for part in parts):
                raise Forgotten("ServeCore does not know the run's variables") from None
            raise

    def done(self, use: Use) -> None:
        """A call has its answer, or nobody waits for it any more."""
        use.calls -= 1

    def forget(self, use: Use) -> None:
        """ServeCore does not know the session: the run's next call opens another. It is not ended, for its id may be
        somebody else's by now."""
        if self._uses.get(use.run.uid) is use:
            del self._uses[use.run.uid]

    async def sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            await self.sweep()

    async def sweep(self) -> None:
        """End the sessions of runs that have closed."""
        over = [use for use in self._uses.values() if use.run.state != "open" and not use.calls]
        for use in over:
            del self._uses[use.run.uid]
        self._leaving += over
        await self._end()

    async def close(self) -> None:
        """End all of them."""
        self._leaving += self._uses.values()
        self._uses.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self._end()

    async def _end(self) -> None:
        while self._leaving:
            use = self._leaving[0]
            try:
                async with asyncio.timeout(_GOODBYE_S):
                    session = await use.opening
                    if session.id not in self._ids():  # else ServeCore was restarted, and the id is a later run's
                        await self.core.close_session(session)
            except CoreFault:
                log.debug("a session could not be ended: ServeCore does not know it")
            except OSError:  # TimeoutError is one
                self._leaving.clear()  # a core that cannot be reached, or is silent, keeps none of them for long
                return
            self._leaving.remove(use)

    def _ids(self) -> set[int]:
        opened = [use.opening for use in self._uses.values() if use.opening.done() and not use.opening.cancelled()]
        return {opening.result().id for opening in opened if opening.exception() is None}

    def _of(self, run: Run) -> Use:
        use = self._uses.get(run.uid)
        if use is None:
            use = self._uses[run.uid] = Use(run, asyncio.ensure_future(self.core.open_session()))
        return use
