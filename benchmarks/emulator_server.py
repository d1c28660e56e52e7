"""What the emulated engine's HTTP server costs: CPU of its process while it streams to many clients.

The engine is slowed down until all streams together get the wanted tokens a second; 0 leaves it as fast as the
emulated card is. Clients run in this process, on the other cores.
"""

import asyncio
import os
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.load import Load, keep_asking
from benchmarks.processes import Process, StartError, free_port

TOKENS = 256  # of an answer
BAR_CORE = 0.6
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Streamed:
    """A stretch of streaming. `core` is the share of one core that the server took; `scraped` how often it was asked
    for its metrics meanwhile."""

    streams: int
    tokens_s: float
    core: float
    scraped: int
    rss_mib: float

    @property
    def us_token(self) -> float:
        """CPU microseconds a streamed token, requests and metrics included."""
        return self.core / self.tokens_s * 1e6


class Ask:
    """Requests for exactly TOKENS tokens, streamed, each with a prompt of its own."""

    streamed = True

    def __init__(self) -> None:
        self._number = 0

    def next(self) -> bytes:
        self._number += 1
        message = {"role": "user", "content": f"number {self._number} " + "word " * 200}
        body = {"messages": [message], "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        raw = orjson.dumps(body | {"stream_options": {"include_usage": True}})
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: b\r\ncontent-type: application/json\r\n"
        return head.encode() + b"content-length: %d\r\n\r\n" % len(raw) + raw


def measure(streams: int, tokens_s: float, seconds: float, scrapes_s: float = 10.0) -> Streamed:
    """Stream for so long, while /metrics is asked for as often as a gateway does. Raises StartError."""
    port, zeusd_port = free_port(), free_port()
    command = [sys.executable, "-m", "joulegate", "emulate", "--port", str(port), "--zeusd-port", str(zeusd_port)]
    with tempfile.TemporaryDirectory() as folder:
        server = Process("emulate", command, port, Path(folder) / "log", env=os.environ)
        try:
            _wait(server)
            return asyncio.run(_measure(server, streams, tokens_s, seconds, scrapes_s))
        finally:
            server.stop()


async def _measure(server: Process, streams: int, tokens_s: float, seconds: float, scrapes_s: float) -> Streamed:
    ask = Ask()
    warm = await _load(server, ask, streams, 3.0, 0)
    if tokens_s:
        factor = max(1.0, warm[0].frames / warm[0].wall_s / tokens_s)
        _post(server, {"fault": "slow", "factor": factor, "seconds": 3600})
        found = await _load(server, ask, streams, 3.0, 0)
        factor *= found[0].frames / found[0].wall_s / tokens_s  # what the server added to the first figure
        _post(server, {"fault": "slow", "factor": max(1.0, factor), "seconds": 3600})
    cpu_ns = server.cpu_ns()
    load, scraped = await _load(server, ask, streams, seconds, scrapes_s)
    core = (server.cpu_ns() - cpu_ns) / 1e9 / load.wall_s
    if load.failures:
        raise StartError(f"{len(load.failures)} requests failed: {load.failures[0]}")
    tokens = len(load.replies) * TOKENS
    return Streamed(streams, tokens / load.wall_s, core, scraped, server.rss_bytes() / 2**20)


async def _load(server: Process, ask: Ask, streams: int, seconds: float, scrapes_s: float) -> tuple[Load, int]:
    scraped = 0

    async def scrape() -> None:
        nonlocal scraped
        while True:
            await asyncio.to_thread(_get, server, "/metrics")
            scraped += 1
            await asyncio.sleep(1 / scrapes_s)

    scraping = asyncio.create_task(scrape()) if scrapes_s else None
    load = await keep_asking(server.port, ask, streams, 10**9, seconds)
    if scraping is not None:
        scraping.cancel()
    return load, scraped


def _wait(server: Process) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if not server.alive():
            raise StartError(server.last_words())
        try:
            _get(server, "/health")
            return
        except OSError:
            time.sleep(0.1)
    raise StartError(f"not ready after {START_S:g} s: {server.last_words()}")


def _get(server: Process, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as reply:
        return reply.read()


def _post(server: Process, body: object) -> None:
    url = f"http://127.0.0.1:{server.port}/emulator/faults"
    urllib.request.urlopen(urllib.request.Request(url, orjson.dumps(body)), timeout=10).close()
