"""Parrot in the place of an engine's HTTP connections: what goes in is OpenAI's, and so is what comes out.

The data plane sends a request and reads a reply, as with any engine; between the two lies a semantic call. Timeouts,
retries, the breaker and the client's leaving are the data plane's, and mean here what they mean everywhere.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from proxy.energy.receipts import Receipt
from proxy.energy.work import Progress
from proxy.nodes.hold import NodeCall
from proxy.parrot import translate
from proxy.parrot.answer import ESTIMATED, JSON, STREAM, Said, estimate
from proxy.parrot.calls import Answer, Call, Calls, own_headers
from proxy.parrot.core import ServeCore
from proxy.parrot.needs import Handle, Needs
from proxy.parrot.sessions import Run, Sessions, Use
from proxy.parrot.translate import CHAT, Unspeakable
from proxy.parrot.watch import Watch
from proxy.parrot.wire import CoreFault, Forgotten, Session, Var
from proxy.refusal import error_object
from proxy.route import Lane
from proxy.upstream import Dropped, Header, Unreachable

log = logging.getLogger("joulegate.parrot")

_TOKENIZERS = ("/tokenize", "/detokenize")
_LOOK_EVERY_S = 15.0  # while an answer is waited for: whether its session still is


class Whole:
    """A reply that is all there."""

    def __init__(self, status: int, headers: list[Header], body: bytes, usage_by: str = "engine") -> None:
        self.status, self.headers, self.usage_by = status, headers, usage_by
        self.counted = True  # its stream, where it is one, was counted as it came from the engine
        self._body = body

    async def next(self) -> bytes:
        body, self._body = self._body, b""
        return body

    async def rest(self) -> bytes:
        return await self.next()


@dataclass(slots=True, eq=False)
class Names:
    """The names under which Parrot serves the models of the engine behind it."""

    parrot: str
    configured: tuple[str, ...]
    behind: Callable[[], Lane | None]

    def listing(self) -> list[dict[str, Any]]:
        """As its `/v1/models` would list them: `parrot/m` for the engine's `m`, or the configured ones."""
        if self.configured:
            return [{"id": name, "object": "model", "created": 0, "owned_by": "parrot"} for name in self.configured]
        return [{**entry, "id": f"{self.parrot}/{name}"} for name, entry in self._known().items()]

    def of_engine(self, name: str) -> str:
        """The engine's own name of a model. Raises Unspeakable for one that is none of ours."""
        known, prefix = self._known(), f"{self.parrot}/"
        if name.startswith(prefix) and name.removeprefix(prefix) in known:
            return name.removeprefix(prefix)
        if name in self.configured and (name in known or len(known) == 1):
            return name if name in known else next(iter(known))
        served = ", ".join(known) or "none yet"
        raise Unspeakable(f"{name[:200]!r} is no model of the engine behind Parrot; it serves: {served}", "model")

    def _known(self) -> dict[str, dict[str, Any]]:
        lane = self.behind()
        if lane is None:
            return {}
        return lane.models or {name: {"id": name, "object": "model"} for name in lane.engine.models}


class ParrotUpstream:
    """Everything of one Parrot that requests share. Without an egress (`behind` None) its own engine computes."""

    def __init__(
        self, core: ServeCore, sessions: Sessions, calls: Calls, watch: Watch, names: Names, egress: bool
    ) -> None:
        self.core, self.sessions, self.calls, self.watch, self.names = core, sessions, calls, watch, names
        self.egress = egress
        self.closed = False

    @property
    def connect_s(self) -> float:
        return self.core.upstream.connect_s

    @connect_s.setter
    def connect_s(self, seconds: float) -> None:
        self.core.upstream.connect_s = seconds

    def bind(self, receipt: Receipt | None, progress: Progress | None) -> "Bound":
        """The same for one attempt of one request."""
        return Bound(self, receipt.run if receipt is not None else None, progress, self.closed)

    async def send(self, method: bytes, target: bytes, headers: list[Header], body: bytes) -> Whole:
        """What the gateway asks for itself: whether Parrot is well, and which models it serves."""
        path = target.partition(b"?")[0]
        if (method, path) == (b"GET", b"/health"):
            return Whole(200 if await self.watch.is_well() and self.names.listing() else 503, [], b"")
        if (method, path) == (b"GET", b"/v1/models"):
            return Whole(200, list(JSON), orjson.dumps({"object": "list", "data": self.names.listing()}))
        return _refused(Unspeakable(f"{path.decode('latin-1')[:200]} cannot pass Parrot", None))

    def release(self, reply: object) -> None:
        """A reply is all there; nothing is kept of it."""

    def close(self) -> None:
        """No further request is taken; what remains of the others is the engine's to end."""
        self.closed = True


@dataclass(slots=True, eq=False)
class Bound:
    """Parrot for one attempt; `run` is None for what has no receipt and cannot pass."""

    parrot: ParrotUpstream
    run: Run | None
    progress: Progress | None
    closed: bool

    async def send(self, method: bytes, target: bytes, headers: list[Header], body: bytes) -> Whole:
        """The whole of a semantic call. Raises what `Upstream.send` raises, and CoreFault, which is an OSError too."""
        return await self._send(None, target, headers, body)

    async def send_node(
        self, call: NodeCall, method: bytes, target: bytes, headers: list[Header], body: bytes
    ) -> Whole:
        """The same for a call that others of its run may name, and that may name others. Raises Refusal, too."""
        return await self._send(call, target, headers, body)

    async def _send(self, node: NodeCall | None, target: bytes, headers: list[Header], body: bytes) -> Whole:
        path = target.partition(b"?")[0].decode("latin-1")
        try:
            asked = orjson.loads(body)
            if path in _TOKENIZERS and self.parrot.egress:
                return await self._past_parrot(target, asked, headers)
            translate.check(path, asked, builtin=not self.parrot.egress)
            said = translate.texts(path, asked, builtin=not self.parrot.egress)
            assert self.run is not None, "what passes has a receipt"
            if self.parrot.egress:
                return await self._through_egress(self.run, node, path, asked, said, headers)
            return await self._builtin(self.run, node, path, asked, said)
        except Unspeakable as no:
            return _refused(no)

    def release(self, reply: object) -> None:
        """A reply is all there; nothing is kept of it."""

    async def _past_parrot(self, target: bytes, asked: dict[str, Any], headers: list[Header]) -> Whole:
        """What only the engine behind can tell, and costs it nothing."""
        lane = self.parrot.names.behind()
        if lane is None:
            raise Unreachable("the engine behind it has left")
        if isinstance(asked.get("model"), str):
            asked["model"] = self.parrot.names.of_engine(asked["model"])
        reply = await lane.upstream.send(b"POST", target, own_headers(headers, lane), orjson.dumps(asked))
        try:
            return Whole(reply.status, reply.headers, await reply.rest())
        finally:
            lane.upstream.release(reply)

    async def _through_egress(
        self,
        run: Run,
        node: NodeCall | None,
        path: str,
        asked: dict[str, Any],
        said: list[str],
        headers: list[Header],
    ) -> Whole:
        parrot = self.parrot
        if not parrot.names.listing():
            raise Unreachable("the engine behind it has not said what it serves")
        if isinstance(asked.get("model"), str):
            asked["model"] = parrot.names.of_engine(asked["model"])
        answer: Answer | None = None
        while answer is None:  # a second time at most: what it needs is text by then
            answer = await self._semantic_call(run, node, path, asked, said, headers)
        return Whole(answer.status, answer.headers, answer.body)

    async def _semantic_call(
        self,
        run: Run,
        node: NodeCall | None,
        path: str,
        asked: dict[str, Any],
        said: list[str],
        headers: list[Header],
    ) -> Answer | None:
        """What the engine said; None where it was not asked: what the call needs failed on Parrot and is there now."""
        parrot, needs = self.parrot, Needs(node)
        call = parrot.calls.open(path, asked, headers, self.progress, needs.fill)
        try:
            sampling = translate.sampling(asked, stop=[call.id])
            use, session, var = await parrot.sessions.submit(run, partial(needs.inputs, said), sampling)
            if node is not None:
                text = asyncio.get_running_loop().create_future()
                call.answer.add_done_callback(partial(_tell, text))
                node.submitted(Handle(use, var, text))
            return await self._answered(use, session, var, call, node)
        finally:
            parrot.calls.close(call)

    async def _answered(self, use: Use, session: Session, var: Var, call: Call, node: NodeCall | None) -> Answer | None:
        """What the engine said, once Parrot has it too: or at once, where that is a failure. None where not asked."""
        parrot = self.parrot
        poll = asyncio.create_task(parrot.core.content(session, var))
        lost = asyncio.create_task(node.lost()) if node is not None and node.needs else None
        waited: list[asyncio.Future[Any]] = [call.answer, poll, *([lost] if lost is not None else ())]
        parrot.calls.owe(call.id)
        try:
            while not any(one.done() for one in waited):
                done, _ = await asyncio.wait(waited, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                if not done and not call.began.is_set():
                    await self._look(session)
            if not call.answer.done():
                if lost is not None and lost.done():
                    raise lost.result()
                if node is not None and call.hopeless:
                    node.withdrawn()
                    await node.answered()  # by another engine, where a call that this one names failed on Parrot
                    return None
                await poll  # which has failed, or else was answered by somebody else
                raise CoreFault("Parrot's engine does not go through the gateway; its base_url must be the egress's")
            answer = call.answer.result()
            if answer.status < 400:
                await poll
            parrot.watch.passed()
            return answer
        except OSError as error:
            parrot.calls.lost(call.id)
            if isinstance(error, Forgotten):
                parrot.sessions.forget(use)
            raise
        finally:
            parrot.sessions.done(use)
            poll.cancel()
            if lost is not None:
                lost.cancel()

    async def _look(self, session: Session) -> None:
        """Whether the answer can still come: a session that went bad leaves who waits for it waiting for good."""
        if not await self.parrot.core.knows(session):
            raise Forgotten("ServeCore has dropped the run's session")
        if self.parrot.watch.is_stuck():
            raise Dropped("Parrot passes nothing on; is an engine registered with it?")

    async def _builtin(
        self, run: Run, node: NodeCall | None, path: str, asked: dict[str, Any], said: list[str]
    ) -> Whole:
        parrot, models, stop = self.parrot, self.parrot.names.configured, translate.stop_of(asked)
        sampling = translate.builtin_sampling(asked)
        only = [asked["model"]] if len(models) > 1 and isinstance(asked.get("model"), str) else []
        parts = partial(Needs(node).inputs, said)
        use, session, var = await parrot.sessions.submit(run, parts, sampling, model_type="token_id", models=only)
        poll = asyncio.create_task(parrot.core.content(session, var))
        lost = asyncio.create_task(node.lost()) if node is not None and node.needs else None
        if node is not None and not stop.strings:  # else Parrot would feed others what is cut here
            made = asyncio.get_running_loop().create_future()
            poll.add_done_callback(partial(_tell_made, made))
            node.submitted(Handle(use, var, made))
        try:
            await asyncio.wait([poll] if lost is None else [poll, lost], return_when=asyncio.FIRST_COMPLETED)
            if lost is not None and not poll.done():
                raise lost.result()
            text = stop.cut(await poll)
        finally:
            parrot.sessions.done(use)
            poll.cancel()
            if lost is not None:
                lost.cancel()
        parrot.watch.passed()
        usage = estimate("".join(said), text, sampling["max_gen_length"])
        kind = "chatcmpl" if path == CHAT else "cmpl"
        model = str(asked.get("model") or next(iter(models), ""))
        answer = Said(f"{kind}-{secrets.token_hex(12)}", model, int(time.time()), text, usage=usage)
        if asked.get("stream") is True:
            return Whole(200, [*STREAM, ESTIMATED], answer.stream(path), "estimated")
        return Whole(200, [*JSON, ESTIMATED], orjson.dumps(answer.whole(path)), "estimated")


def _tell(text: "asyncio.Future[str | None]", answer: asyncio.Future[Answer]) -> None:
    """Say to those that need it what a call made."""
    failed = answer.cancelled() or answer.exception() is not None
    if not text.done():
        text.set_result(None if failed else answer.result().text)


def _tell_made(text: "asyncio.Future[str | None]", poll: asyncio.Future[str]) -> None:
    failed = poll.cancelled() or poll.exception() is not None
    if not text.done():
        text.set_result(None if failed else poll.result())


def _refused(no: Unspeakable) -> Whole:
    return Whole(400, list(JSON), error_object(400, str(no), no.code, no.param))
