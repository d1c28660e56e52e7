"""The client's end of one exchange: what it sent, whether it is still there, and what it has been told."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

from proxy.refusal import Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]
TellWhenGone = Callable[[Callable[[], None]], Callable[[], None]]

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
_NOT_DOWNSTREAM = HOP_BY_HOP | {b"content-length", b"date", b"server", b"x-joulegate-request-id"}
_LISTS = frozenset(b"accept baggage forwarded tracestate via x-forwarded-for x-workflow-parent".split())
_TELL_S = 5.0
_FRAME_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
# What our server adds to a scope: `tell_when_gone(tell)` calls `tell` should the connection end before the function
# that it returned is called. It saves a task a request; elsewhere a task waits on `receive`.
TELL_WHEN_GONE = "joulegate.tell_when_gone"


class Broken(Exception):
    """The engine could not be reached or broke off; `what` is for the client."""

    def __init__(self, what: str, code: str, status: int = 502) -> None:
        super().__init__(what)
        self.what, self.code, self.status = what, code, status


class Client:
    """One request's client. `began`: it saw a status; `gone`: it has left. `extra` goes into every reply's head."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._tell_when_gone: TellWhenGone | None = scope.get("extensions", {}).get(TELL_WHEN_GONE)
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        if len(self.headers) != len(scope["headers"]):  # of a name that came twice the first counts, or all
            self.headers = {}
            for name, value in scope["headers"]:
                before = self.headers.setdefault(name, value)
                if before is not value and name in _LISTS:
                    self.headers[name] = before + b", " + value
        self.extra: list[Header] = []
        self.began = False
        self.gone = False
        self._said = b""  # last, of a reply's body

    async def body(self, most_bytes: int) -> bytes:
        """The whole body. Raises Refusal (413) as soon as it is too large."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise asyncio.CancelledError
            part = message.get("body", b"")
            size += len(part)
            if size > most_bytes:
                raise Refusal(413, f"the body is larger than {most_bytes} bytes", "body_too_large")
            parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def watch(self, exchange: asyncio.Task[Any]) -> Callable[[], object]:
        """Cancel the exchange when the client goes, wherever it is; to be called once the body is here.

        Returns what ends the watch.
        """

        def leave() -> None:
            self.gone = True
            exchange.cancel()

        if self._tell_when_gone is not None:
            return self._tell_when_gone(leave)
        return asyncio.create_task(self._until_gone(leave)).cancel

    async def _until_gone(self, leave: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        leave()

    async def start(self, status: int, headers: Iterable[Header], length: int | None) -> None:
        """Begin the reply with the engine's own head; without a length it is a stream."""
        self.began = True
        head = [header for header in headers if header[0] not in _NOT_DOWNSTREAM]
        if length is not None:
            head.append((b"content-length", b"%d" % length))
        head += self.extra
        await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def send(self, data: bytes, more: bool = False) -> None:
        self._said = data
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        """A reply of the gateway's own, where there is still a client and none was begun."""
        if self.gone or self.began:
            return
        await self.start(status, [(b"content-type", b"application/json"), *headers], len(body))
        await self.send(body)

    async def tell(self, broken: Broken) -> None:
        """Tell of a failure: as a reply, or as the last frame of a stream that has begun."""
        await self.refuse(Refusal(broken.status, broken.what, broken.code))

    async def refuse(self, refusal: Refusal) -> None:
        """Say no, in the same way."""
        # A client that reads nothing is not told, nor one whose reply has a length, and no room for words: the server
        # refuses those. The books are closed all the same.
        with suppress(TimeoutError, RuntimeError):
            async with asyncio.timeout(_TELL_S):
                if self.began and not self.gone:
                    # Where the engine broke off inside a frame, ours must not read as the rest of it.
                    apart = b"" if self._said.endswith(_FRAME_ENDS) else b"\n\n"
                    await self.send(apart + b"data: " + refusal.body() + b"\n\n")
                else:
                    await self.answer(refusal.status, refusal.body(), refusal.headers())
