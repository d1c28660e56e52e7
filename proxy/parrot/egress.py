"""The way out of Parrot: an endpoint of the gateway's own that Parrot's `openai` engine takes for its model.

It is no part of the data plane: no receipt, no gate, no quota, and a listener of its own, which stays open while the
gateway drains. Whatever happens, Parrot is told 200: any other status, and any broken connection, ends its engine and
then its core. Its client gives up on a read after ten minutes, so an answer that takes long begins with blanks.
"""

import asyncio
import contextlib
import hmac
import logging
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import uvicorn

from proxy.client import Message, Receive, Scope, Send
from proxy.config import ConfigError
from proxy.parrot.answer import Said
from proxy.parrot.calls import Call, Calls
from proxy.route import Lane

log = logging.getLogger("joulegate.parrot")

BLANK_EVERY_S = 30.0
_TELL_EVERY_S = 60.0  # whoever reaches the port can knock, and the log is not theirs to fill
_MOST_BYTES = 64 * 2**20
_END_S = 2


@dataclass(frozen=True, slots=True, eq=False)
class Guest:
    """One Parrot at a door: its key, its calls, and the engine that they go to."""

    key: str
    calls: Calls
    behind: Callable[[], Lane | None]


class Door:
    """The ASGI application of one listener. Several guests share it while one configuration follows the other."""

    def __init__(self, blank_every_s: float = BLANK_EVERY_S) -> None:
        self.guests: list[Guest] = []
        self._blank_every_s = blank_every_s
        self._told = float("-inf")  # when the log last heard of somebody without the key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ").decode("latin-1")
        # All of them are compared, so that the time tells nothing.
        known = [guest for guest in self.guests if hmac.compare_digest(guest.key.encode(), given.encode())]
        if not known or scope["method"] != "POST":
            self._tell(asyncio.get_running_loop().time())
            await _answer(send, 401, b'{"error": {"message": "not for you", "type": "authentication_error"}}')
            return
        asked = await _body(receive)
        found = next(((guest, call) for guest in known if (call := guest.calls.find(asked.get("stop")))), None)
        if found is None:  # its client has left, or the gateway was restarted; nobody will read the answer
            await _answer(send, 200, _reply(asked, ""))
            return
        await self._serve(*found, asked, send)

    def _tell(self, now: float) -> None:
        if now - self._told >= _TELL_EVERY_S:
            self._told = now
            log.warning("somebody without the egress's key was at it; Parrot's engine needs it as its api_key")

    async def _serve(self, guest: Guest, call: Call, asked: dict[str, Any], send: Send) -> None:
        text = asyncio.ensure_future(guest.calls.text(call, guest.behind()))
        began = False
        while not (await asyncio.wait([text], timeout=self._blank_every_s))[0]:
            if not began:
                await send(_head(200))
                began = True
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
        body = _reply(asked, text.result())
        if not began:
            await _answer(send, 200, body)
        else:
            await send({"type": "http.response.body", "body": body})


class _Server(uvicorn.Server):
    """Without uvicorn's signals: the gateway has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Listener:
    def __init__(self, sock: socket.socket) -> None:
        self.door = Door()
        self._sock = sock
        settings = uvicorn.Config(self.door, ws="none", lifespan="off", log_config=None, log_level="warning")
        settings.access_log, settings.timeout_graceful_shutdown = False, _END_S
        self._server = _Server(settings)
        self._task = asyncio.create_task(self._server.serve([sock]))

    async def close(self) -> None:
        self._server.should_exit = True
        await asyncio.wait([self._task])
        self._sock.close()


_open: dict[tuple[str, int], _Listener] = {}  # the sockets of this process, by their addresses


async def enter(host: str, port: int, guest: Guest) -> None:
    """Let a Parrot's calls out at this address. Raises ConfigError where nobody can listen there."""
    listener = _open.get((host, port))
    if listener is None:
        listener = _open[host, port] = _Listener(_bind(host, port))
    listener.door.guests.append(guest)


async def leave(host: str, port: int, guest: Guest) -> None:
    """Harmless for a guest that never came; the last one closes the door."""
    listener = _open.get((host, port))
    if listener is None or guest not in listener.door.guests:
        return
    listener.door.guests.remove(guest)
    if not listener.door.guests:
        del _open[host, port]
        await listener.close()


def _bind(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        why = error.strerror or error
        raise ConfigError(f"egress: cannot listen on {host}:{port}: {why}; choose another port") from None
    return sock


async def _body(receive: Receive) -> dict[str, Any]:
    """What was asked; nothing where it is no JSON object, which Parrot never sends."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return {}
        size += len(message.get("body", b""))
        if size <= _MOST_BYTES:
            parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    try:
        asked = orjson.loads(b"".join(parts))
    except orjson.JSONDecodeError:
        return {}
    return asked if isinstance(asked, dict) else {}


def _reply(asked: dict[str, Any], text: str) -> bytes:
    """A chat completion with this text. It is a string in any case: a null would end Parrot's engine."""
    said = Said("chatcmpl-joulegate", str(asked.get("model", "")), int(time.time()), text)
    return orjson.dumps(said.whole("/v1/chat/completions"))


def _head(status: int) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}


async def _answer(send: Send, status: int, body: bytes) -> None:
    await send(_head(status))
    await send({"type": "http.response.body", "body": body})
