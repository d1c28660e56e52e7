"""A client of one ServeCore, over the gateway's own HTTP client: it sends a body with every method, as Parrot needs."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from proxy.parrot import wire
from proxy.parrot.wire import CoreFault, Forgotten, Session, Text, Var
from proxy.upstream import Upstream

_HEADERS = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
_NO_VAR = "none"


class ServeCore:
    """Raises CoreFault, or what `Upstream.send` raises; a call that is cancelled ends its connection."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    async def open_session(self) -> Session:
        return wire.session_of(await self._ask("a new session", b"POST", "/session", {}))

    async def close_session(self, session: Session) -> None:
        await self._ask("the end of a session", b"DELETE", f"/session/{session.id}", wire.in_session(session))

    async def submit(
        self,
        session: Session,
        inputs: Sequence[Text | Var],
        sampling: Mapping[str, Any],
        model_type: str = "text",
        models: Sequence[str] = (),
    ) -> tuple[int, Var]:
        """Make a call known; nothing runs yet. Returns its number in the session and its output."""
        body = wire.call(session, inputs, sampling, model_type, models)
        return wire.output_of(await self._ask("a semantic call", b"POST", "/semantic_call", body))

    async def content(self, session: Session, var: Var) -> str:
        """What a call has made: this is what lets it run, and it may take as long as it likes."""
        body = wire.in_session(session, criteria=wire.CRITERIA)
        reply = await self._ask("a semantic variable", b"GET", f"/semantic_var/{var.id}", body)
        content = reply.get("content")
        if not isinstance(content, str):
            raise CoreFault("ServeCore gave a semantic variable without content")
        return content

    async def knows(self, session: Session) -> bool:
        """Whether the session is there, which counts as a use of it: it lives on."""
        body = wire.in_session(session, criteria=wire.CRITERIA)
        status, answer = await self._exchange(b"GET", f"/semantic_var/{_NO_VAR}", body)
        if wire.is_unknown_variable(status, answer):
            return True
        try:
            wire.read("a semantic variable", status, answer)
        except Forgotten:
            return False
        return True

    async def _ask(self, what: str, method: bytes, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return wire.read(what, *await self._exchange(method, path, body))

    async def _exchange(self, method: bytes, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        reply = await self.upstream.send(method, f"/v1{path}".encode(), _HEADERS, orjson.dumps(body))
        try:
            return reply.status, await reply.rest()
        finally:
            self.upstream.release(reply)
