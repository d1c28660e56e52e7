"""Plays a script on an engine and tells what was seen, as JSON that can be recorded and compared."""

import asyncio
import json
import time
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from script import Request, Script
from shape import shape

PLAIN_HEADERS = {"date", "server", "content-length", "transfer-encoding", "connection", "content-type", "vary"}
WITHIN_S = 60.0
Moved = dict[str, float]


class Player:
    """Plays scripts on one engine that nobody else uses."""

    def __init__(self, url: str, every_s: float = 0.05) -> None:
        """`every_s`: how often the engine is asked whether it has come to rest."""
        self._url, self._every_s = url, every_s
        self._moved: Moved | None = None  # where its counters stood after the last script

    def play(self, script: Script) -> dict[str, Any]:
        """Every reply (or kind of reply to a burst), the order of the ends of what piled up, how far counters moved."""
        return asyncio.run(self._play(script))

    async def _play(self, script: Script) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=self._url, timeout=WITHIN_S, verify=False) as client:
            before = self._moved or await _settled(client, self._every_s)
            ended: list[int] = []
            tasks: list[asyncio.Task[dict[str, Any]]] = []
            all_there = asyncio.Event()
            for n, request in enumerate(script.requests):
                tasks.append(asyncio.create_task(_reply(client, request, all_there)))
                tasks[-1].add_done_callback(lambda _, n=n: ended.append(n))
                if script.sent != "at once":
                    await (_arrived(client, tasks) if script.sent == "pile up" else tasks[-1])
            all_there.set()
            replies = [await task for task in tasks]
            after = self._moved = await _settled(client, self._every_s)
        left_open = _left_open(script)
        moved = {name: value - before.get(name, 0) for name, value in sorted(after.items())}
        told = {name: by for name, by in moved.items() if by and not any(word in name for word in left_open)}
        if script.sent == "at once":
            return {"kinds": _kinds(replies), "moved": told}
        return {"replies": replies, "moved": told, **({"order": ended} if script.sent == "pile up" else {})}

    def metrics(self) -> str:
        return httpx.get(f"{self._url}/metrics").text

    def families(self) -> dict[str, Any]:
        """The engine's metrics: type, label names, and a histogram's bounds."""
        return families(self.metrics())

    def exported(self) -> frozenset[str]:
        """The names of all samples, without the counters' and histograms' dates of creation."""
        return frozenset(sample.name for family in _families(self.metrics()) for sample in family.samples)


def _kinds(replies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The different replies to a burst, but for refusals before a stream began: those are as any other's."""
    kinds = {json.dumps(reply, sort_keys=True): reply for reply in replies if reply["status"] == 200}
    return [kinds[key] for key in sorted(kinds)]


def _left_open(script: Script) -> list[str]:
    """Words in the names of counters that this script does not determine."""
    words: list[str] = []
    if not all(request.exact for request in script.requests):  # its tokenizer decides
        words += ["prompt", "prefix", "prefill", "iteration_tokens_total_sum"]
    if script.sent != "in turn" or not all(
        request.single for request in script.requests
    ):  # which step one joins is chance
        words += ["iteration_tokens_total_count"]
    if any(request.held or request.read is not None for request in script.requests):  # how far it came is chance
        words += ["generation_tokens", "iteration_tokens", "inter_token"]
    return words


async def _arrived(client: httpx.AsyncClient, tasks: list[asyncio.Task[dict[str, Any]]]) -> None:
    """Wait until the engine has seen the last request: it answered, or all that are open run or wait."""
    deadline = time.monotonic() + WITHIN_S
    while not tasks[-1].done():
        present = sum(1 for task in tasks if not task.done())
        seen = await _gauges(client)
        if sum(seen.values()) >= present:
            return
        assert time.monotonic() < deadline, f"{present} requests are open, the engine says {seen}"
        await asyncio.sleep(0.02)


async def _reply(client: httpx.AsyncClient, request: Request, all_there: asyncio.Event) -> dict[str, Any]:
    content = request.body if isinstance(request.body, bytes) else None
    body = None if content is not None or request.body is None else request.body
    headers = dict(request.headers)
    async with client.stream(request.method, request.path, content=content, json=body, headers=headers) as reply:
        kind = reply.headers.get("content-type", "")
        said = {"status": reply.status_code, "type": kind}
        if more := sorted(set(reply.headers) - PLAIN_HEADERS):
            said["headers"] = more
        if kind.startswith("text/event-stream"):
            return said | {"frames": _shapes(await _frames(reply, request, all_there), request)}
        await reply.aread()
    if not reply.content:
        return said | {"body": ""}
    try:
        found = reply.json()
    except ValueError:
        return said | {"body": f"<text {reply.text[:40]}>"}
    if isinstance(found, dict) and isinstance(found.get("error"), dict):
        said["message"] = found["error"].get("message")
    return said | {"body": shape(found, request.exact)}


async def _frames(reply: httpx.Response, request: Request, all_there: asyncio.Event) -> list[Any]:
    """The JSON of each frame, or its text; what is no `data:` line is kept as text too."""
    text = ""
    async for part in reply.aiter_text():
        text += part
        if (request.read is not None and text.count("\n\n") >= request.read) or (request.held and all_there.is_set()):
            break
    out: list[Any] = []
    for frame in text.removesuffix("\n\n").split("\n\n")[: request.read]:
        try:
            out.append(json.loads(frame.removeprefix("data: ")))
        except ValueError:
            out.append(frame)
    return out


def _shapes(frames: list[Any], request: Request) -> list[Any]:
    """The shapes of frames in their order, equal neighbours once: how many tokens a frame holds is not promised.

    Frames of several choices come in any order, so there each choice's are put together.
    """
    if len({choice["index"] for frame in frames if isinstance(frame, dict) for choice in frame.get("choices", ())}) > 1:
        frames = sorted(frames, key=_index)
    shapes: list[Any] = []
    for frame in frames:
        running = isinstance(frame, dict) and frame.get("choices")
        seen = shape(frame, request.exact) if isinstance(frame, dict) else frame
        shapes.append(_uncounted(seen) if running else seen)
    return [key for key, _ in groupby(shapes)]


def _index(frame: Any) -> int:
    choices = frame.get("choices") if isinstance(frame, dict) else None
    return choices[0]["index"] if choices else 1_000_000


def _uncounted(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame's shape without the counts of a usage that is not the last one."""
    if not isinstance(frame.get("usage"), dict):
        return frame
    usage = {name: "<int>" if isinstance(value, int) else value for name, value in frame["usage"].items()}
    return frame | {"usage": usage}


# The engine's metrics ------------------------------------------------------------------------------------------------


async def _gauges(client: httpx.AsyncClient) -> dict[str, float]:
    """How many requests run and how many wait."""
    wanted = {"vllm:num_requests_running": "running", "vllm:num_requests_waiting": "waiting"}
    found = dict.fromkeys(wanted.values(), 0.0)
    for family in _families((await client.get("/metrics")).text):
        for sample in family.samples:
            if sample.name in wanted:
                found[wanted[sample.name]] += sample.value
    return found


async def _settled(client: httpx.AsyncClient, every_s: float) -> Moved:
    """The engine's counters, once it is idle and they have stopped to move."""
    deadline, last = time.monotonic() + WITHIN_S, {"": -1.0}
    while True:
        now = _counters((await client.get("/metrics")).text)
        if now == last and not any((await _gauges(client)).values()):
            return now
        assert time.monotonic() < deadline, "the engine does not come to rest"
        last = now
        await asyncio.sleep(every_s)


def _families(text: str) -> list[Metric]:
    return [family for family in text_string_to_metric_families(text) if family.name.startswith("vllm:")]


def _counters(text: str) -> Moved:
    """What only grows and does not depend on time: counters, numbers of observations, and sums of tokens."""
    found: Moved = {}
    for family in _families(text):
        for sample in family.samples:
            suffix = sample.name.removeprefix(family.name)
            whole = family.type == "histogram" and (
                suffix == "_count" or (suffix == "_sum" and "seconds" not in family.name)
            )
            if suffix == "_total" or whole:
                labels = {k: v for k, v in sample.labels.items() if k not in ("engine", "model_name")}
                name = sample.name + (json.dumps(labels, sort_keys=True) if labels else "")
                found[name] = found.get(name, 0.0) + sample.value
    return found


def families(text: str) -> dict[str, Mapping[str, Any]]:
    """The metrics of an engine: type, label names, and a histogram's bounds."""
    told: dict[str, Mapping[str, Any]] = {}
    for family in _families(text):
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        labels = sorted({label for sample in samples for label in sample.labels} - {"le"})
        bounds = list(dict.fromkeys(sample.labels["le"] for sample in samples if "le" in sample.labels))
        told[family.name] = {"type": family.type, "labels": labels, **({"bounds": bounds} if bounds else {})}
    return dict(sorted(told.items()))
