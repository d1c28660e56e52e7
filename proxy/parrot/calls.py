"""The calls that clients wait for, and what becomes of each at the engine behind the egress.

A call has an opaque id that nobody can guess. It goes through Parrot in the list of stop strings, comes back on the
egress, and there finds the client's own request again: roles, parameters, headers and all. The engine is asked once a
call, however often Parrot's client asks for it, and by nobody once the client has left.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy import clock
from proxy.energy.work import Progress
from proxy.nodes.answer import Answer as Heard
from proxy.parrot.answer import JSON, STREAM
from proxy.parrot.gather import Gather
from proxy.route import Lane
from proxy.upstream import Dropped, Header, Unreachable

_PREFIX = "joulegate-"
_OWED_S = 600.0  # Parrot may have lost what nobody waits for: a session that nobody uses lives no longer there
_PASSED_ON = range(400, 500)  # the engine's own word on the request, which is the client's to read


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine said, as the client gets it; `text` is what Parrot gets of it, None where there is none."""

    status: int
    headers: list[Header]
    body: bytes
    text: str | None = None


@dataclass(slots=True, eq=False)
class Call:
    """One request on its way through Parrot. `answer` is set by the engine, or by whoever gives up on it.

    `path` and `body` are the engine's: the model's name is the one that it knows. `fill` puts into the body what other
    calls made, and is false where one of them failed: the call is then `hopeless`, and the engine is not asked.
    """

    id: str
    path: str
    body: dict[str, Any]
    headers: list[Header]
    progress: Progress | None
    answer: asyncio.Future[Answer]
    fill: Callable[[Mapping[str, Any]], bool]
    hopeless: bool = False
    began: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    def leave(self) -> None:
        """Nobody waits any more: the engine stops, if it has begun, and is not asked otherwise."""
        self.answer.cancel()
        if self.task is not None:
            self.task.cancel()


class Calls:
    """The calls of one Parrot. `start` makes attribution know an attempt once the engine works on it."""

    def __init__(self, start: Callable[[Progress], None]) -> None:
        self._start = start
        self._calls: dict[str, Call] = {}
        self.heard = float("-inf")  # when Parrot last brought one, on the loop's clock
        self._owed: set[str] = set()  # ids that Parrot will bring yet, whether or not a client still waits
        self.none_owed = asyncio.Event()
        self.none_owed.set()

    def __len__(self) -> int:
        return len(self._calls)

    def look(self) -> str:
        """The id of a call that is nobody's: the way to the egress and back is all that it is for."""
        return _PREFIX + secrets.token_hex(16)

    def owe(self, id_: str) -> None:
        """From now on Parrot may bring the call of this id, even if nobody waits for it any more."""
        self._owed.add(id_)
        self.none_owed.clear()

    def lost(self, id_: str) -> None:
        """It will not."""
        self._owed.discard(id_)
        if not self._owed:
            self.none_owed.set()

    def open(
        self,
        path: str,
        body: dict[str, Any],
        headers: list[Header],
        progress: Progress | None,
        fill: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    ) -> Call:
        answer = asyncio.get_running_loop().create_future()
        call = Call(_PREFIX + secrets.token_hex(16), path, body, headers, progress, answer, fill)
        self._calls[call.id] = call
        return call

    def close(self, call: Call) -> None:
        call.leave()
        del self._calls[call.id]
        if call.id in self._owed:
            asyncio.get_running_loop().call_later(_OWED_S, self.lost, call.id)

    def find(self, stop: Any) -> Call | None:
        """The call whose id is in a list of stop strings, as Parrot brings it."""
        ids = [one for one in stop if isinstance(one, str)] if isinstance(stop, list) else []
        for one in ids:
            self.lost(one)
        return next((self._calls[one] for one in ids if one in self._calls), None)

    async def text(self, call: Call, lane: Lane | None) -> str:
        """What Parrot is told of a call that it has brought: the engine's text, empty where there is none."""
        self.heard = asyncio.get_running_loop().time()
        if call.task is None and not call.answer.done():
            call.began.set()
            call.task = asyncio.create_task(self._ask(call, lane))
        if call.task is not None:
            await asyncio.wait([call.task])
        failed = not call.answer.done() or call.answer.cancelled() or call.answer.exception() is not None
        return "" if failed else call.answer.result().text or ""

    async def _ask(self, call: Call, lane: Lane | None) -> None:
        """Let the engine answer. Its failures are the call's, whoever waits for that."""
        try:
            if not call.fill(call.body):
                call.hopeless = True
                return
            if lane is None:
                raise Unreachable("the engine behind it has left")
            if call.progress is not None:
                call.progress.dispatched = clock.now()
                self._start(call.progress)
            answer = await _exchange(call, lane)
        except Exception as error:  # a fault of ours, too, is the client's to hear of, and `forward`'s to log
            if not call.answer.done():
                call.answer.set_exception(error)
                call.answer.exception()  # looked at: a client that has left does not make it unheard
            return
        if not call.answer.done():
            call.answer.set_result(answer)


def own_headers(headers: list[Header], lane: Lane) -> list[Header]:
    """A client's headers as the engine gets them: with its own key, where it has one, in the place of the client's."""
    own = [(name.lower().encode(), value.encode()) for name, value in lane.engine.headers.items()]
    dropped = {name for name, _ in own} | ({b"x-api-key"} if own else set())
    return [header for header in headers if header[0] not in dropped] + own


async def _exchange(call: Call, lane: Lane) -> Answer:
    """The client's request to the engine. Raises what `Upstream.send` raises, also for an engine that fails."""
    reply = await lane.upstream.send(
        b"POST", call.path.encode(), own_headers(call.headers, lane), orjson.dumps(call.body)
    )
    try:
        if any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in reply.headers):
            return await _gathered(call, lane, reply)
        body = await reply.rest()
        if reply.status >= 500:
            raise Dropped(f"engine {lane.name} behind it answered {reply.status}")
        heard = Heard()
        if reply.status < 400:
            heard.whole(_parsed(body))
        return Answer(reply.status, reply.headers, body, heard.text if reply.status < 400 else None)
    finally:
        lane.upstream.release(reply)


async def _gathered(call: Call, lane: Lane, reply: Any) -> Answer:
    gather, progress = Gather(), call.progress
    while data := await reply.next():
        before = gather.frames.content
        gather.feed(data)
        if progress is not None and gather.frames.content != before:
            _count(progress, gather.frames.content, before)
    said = gather.finish()
    if gather.frames.error is not None:
        error = _parsed(gather.frames.error)
        code = error["error"].get("code") if isinstance(error, dict) and isinstance(error.get("error"), dict) else None
        if isinstance(code, int) and code in _PASSED_ON:
            return Answer(code, list(JSON), gather.frames.error)
        raise Dropped(f"engine {lane.name} behind it refused inside its stream")
    if said is None:
        raise Dropped(f"engine {lane.name} behind it ended its stream before its answer was complete")
    text = None if said.beside and not said.text else said.text
    return Answer(200, list(STREAM), said.stream(call.path), text)


def _count(progress: Progress, seen: int, before: int) -> None:
    now = clock.now()
    progress.frames = seen
    if progress.first is None:
        progress.first = now
    if progress.ticks is not None:
        progress.ticks += [now] * (seen - before)


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
