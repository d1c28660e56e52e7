"""`make bench-cancel`: how soon the engine's connection is closed once a client is gone, wherever its request was.

The engine is here, in this process, and does no work: it answers as each case needs and notes when its connection ends.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import cast

import httpx
import orjson
import typer
import uvloop
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.processes import StartError
from benchmarks.targets import MODEL, Target, start

BAR_MS = 250.0
ROUNDS = 40
WAIT_S = 5.0
_CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
_ANSWER = b'{"choices":[{"index":0,"message":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_ANSWER), _ANSWER)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection: a request for one token is answered, a stream that wants `begin` begun, any other never."""

    asked: asyncio.Queue["Engine"]  # one that will wait for ever has arrived

    def __init__(self) -> None:
        self.ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._seen = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, _, body = self._seen.partition(b"\r\n\r\n")
        if head.startswith(b"GET "):
            self._seen = b""
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        elif body.endswith(b"}"):
            self._seen, asked = b"", orjson.loads(body)
            if asked.get("max_tokens") == 1:
                self._transport.write(_WHOLE)
                return
            if asked.get("user") == "begin":
                self._transport.write(_HEAD + b"%x\r\n%b\r\n" % (len(_CHUNK), _CHUNK))
            self.asked.put_nowait(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(time.perf_counter())


async def _client(port: int, **body: object) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], **body})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    if body.get("user") == "begin":
        await reader.readuntil(b"data: ")
    return writer


async def _upstream_ms(port: int, **body: object) -> float:
    """From the client's end to the engine's, in milliseconds."""
    writer = await _client(port, **body)
    engine = await asyncio.wait_for(Engine.asked.get(), WAIT_S)
    gone = time.perf_counter()
    writer.transport.abort()
    return (await asyncio.wait_for(engine.ended, WAIT_S) - gone) * 1e3


async def _queued_ms(port: int) -> float:
    """From the end of a client that queues behind another one until its place is free, in milliseconds."""
    first = await _client(port)
    engine = await asyncio.wait_for(Engine.asked.get(), WAIT_S)
    second = await _client(port)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:

        async def queued(wanted: int) -> None:
            while (await http.get("/energy/engines")).json()["engines"][0]["queued"] != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

        await asyncio.wait_for(queued(1), WAIT_S)
        gone = time.perf_counter()
        second.transport.abort()
        await asyncio.wait_for(queued(0), WAIT_S)
        took_ms = (time.perf_counter() - gone) * 1e3
    first.transport.abort()
    await asyncio.wait_for(engine.ended, WAIT_S)
    return took_ms


async def _measure(folder: Path) -> dict[str, list[float]]:
    Engine.asked = asyncio.Queue()
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
    gateway = await asyncio.to_thread(start, _GATEWAY, server.sockets[0].getsockname()[1], folder)
    try:
        port = gateway.port
        return {
            "queued": [await _queued_ms(port) for _ in range(ROUNDS)],
            "before the first token": [await _upstream_ms(port, stream=True) for _ in range(ROUNDS)],
            "mid-stream": [await _upstream_ms(port, stream=True, user="begin") for _ in range(ROUNDS)],
            "not streamed": [await _upstream_ms(port) for _ in range(ROUNDS)],
        }
    finally:
        await asyncio.to_thread(gateway.stop)
        server.close()


def _command(port: int, engine_port: int, folder: Path) -> list[str]:
    config = {
        "listen": {"host": "127.0.0.1", "port": port},
        "engines": [{"name": "e1", "kind": "openai", "url": f"http://127.0.0.1:{engine_port}", "models": [MODEL]}],
        "ledger": {"path": str(folder / "ledger.sqlite")},
        "limits": {"in_flight": 1},
    }
    file = folder / "joulegate.yaml"
    file.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "joulegate", "serve", "-c", str(file)]


_GATEWAY = Target("joulegate", _command, lambda: "")


def main() -> None:
    """Let clients go in every state of a request, and see how long the engine works on for nobody."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="joulegate-bench-") as folder:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                seen = runner.run(_measure(Path(folder)))
        except (StartError, TimeoutError) as error:
            console.print(f"bench-cancel: {error or 'no end was seen'}", style="red", markup=False)
            raise typer.Exit(1) from None
    table = Table("where the request was", "p50 ms", "most ms", f"bar {BAR_MS:g} ms", title=f"{ROUNDS} clients each")
    for where, ms in seen.items():
        table.add_row(where, f"{median(ms):.2f}", f"{max(ms):.2f}", "met" if max(ms) <= BAR_MS else "missed")
    console.print(table)
    if any(max(ms) > BAR_MS for ms in seen.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        typer.run(main)
