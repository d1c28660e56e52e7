"""Whether a Parrot is well. Its core answers also without an engine, so a call of ours is sent all the way through.

The call ends at the egress, which knows it: it costs the engine behind it nothing. One is out at a time, and none
where real ones pass. The engine behind the egress is asked by its own probes; the two are one unit.
"""

import asyncio
from collections.abc import Callable

from proxy.parrot.calls import Calls
from proxy.parrot.core import ServeCore
from proxy.parrot.wire import Session, Text
from proxy.route import Lane

_FRESH_S = 5.0  # a call that came through so lately says that they do
_PATIENCE_S = 3.0
_STUCK_S = 30.0
_LOOKS = 100  # in one session: ServeCore keeps all calls of a session until it ends


class Watch:
    """`behind` is the engine that the egress calls; None where Parrot's own engine computes."""

    def __init__(self, core: ServeCore, calls: Calls, behind: Callable[[], Lane | None] | None) -> None:
        self._core, self._calls, self._behind = core, calls, behind
        self._look: asyncio.Task[bool] | None = None
        self._since = 0.0  # when the look that is out was begun
        self._passed = float("-inf")
        self._session: Session | None = None
        self._looks = 0

    def passed(self) -> None:
        """A call came all the way through."""
        self._passed = asyncio.get_running_loop().time()

    async def is_well(self) -> bool:
        """Whether a request that came now would be served."""
        if self._behind is not None and ((lane := self._behind()) is None or not lane.up):
            return False
        now = asyncio.get_running_loop().time()
        if now - max(self._passed, self._calls.heard) <= _FRESH_S:
            return True
        if self._look is None or self._look.done():
            self._look, self._since = asyncio.create_task(self._go()), now
        done, _ = await asyncio.wait([self._look], timeout=_PATIENCE_S)
        return bool(done) and self._look.result()

    def is_stuck(self) -> bool:
        """Whether nothing has passed for so long, ours included, that nothing will."""
        now = asyncio.get_running_loop().time()
        out = self._look is not None and not self._look.done() and now - self._since > _STUCK_S
        return out and now - max(self._passed, self._calls.heard) > _STUCK_S

    async def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
            await asyncio.wait([self._look])
        await self._end_session()

    async def _go(self) -> bool:
        try:
            if self._session is None or self._looks >= _LOOKS:
                await self._end_session()
                self._session, self._looks = await self._core.open_session(), 0
            self._looks += 1
            if self._behind is None:
                return await self._core.knows(self._session)
            id_ = self._calls.look()
            _, var = await self._core.submit(self._session, [Text("are you well?")], {"stop_str": [id_]})
            self._calls.owe(id_)
            try:
                await self._core.content(self._session, var)
            except OSError:
                self._calls.lost(id_)
                raise
        except OSError:
            self._session = None
            return False
        self.passed()
        return True

    async def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                await self._core.close_session(session)
            except OSError:
                return
