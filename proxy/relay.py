"""One attempt's bytes: the request to an engine, its reply to the client, and what passed."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson

from proxy import clock
from proxy.client import HOP_BY_HOP, Broken, Client, Header
from proxy.config import Limits
from proxy.deadline import Deadline, Overdue
from proxy.energy.records import Outcome
from proxy.energy.work import Progress
from proxy.frames import Frames, Usage, read_usage
from proxy.nodes.answer import Answer, HeardFrames
from proxy.nodes.hold import NodeCall, NodeUpstream
from proxy.route import Lane
from proxy.telemetry.metrics import Itl
from proxy.upstream import Answering, Dropped, Serving, Unreachable

_NOT_UPSTREAM = HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect"}
_NO_SECRETS = _NOT_UPSTREAM | {b"authorization", b"x-api-key"}
_NO_BODY = (204, 304)  # nor the length of one
_RETRY_STATUS = {429, 500, 502, 503, 504}
_ENDS_WITH_A_REASON = ("/v1/chat/completions", "/v1/completions", "/v1/responses")

Report = Callable[[], dict[str, Any]]


class Relay:
    """Sends `raw` to one engine and its reply to the client.

    `last`: no other engine is left, so a refusal is passed on. `report` says what the request cost so far, where the
    client asked. While it runs, `progress` is kept up to date; `result` is what the client has got, once it has it all.
    """

    answer: Answer | None = None  # of a named call: collects the text
    native: NodeCall | None = None  # of one whose engine itself waits for what it needs

    def __init__(
        self,
        client: Client,
        lane: Lane,
        limits: Limits,
        progress: Progress | None,
        last: bool,
        hide_usage: bool,
        report: Report | None,
    ) -> None:
        self.client, self.lane, self.limits, self.progress = client, lane, limits, progress
        self.last, self.hide_usage, self.report = last, hide_usage, report
        self.upstream: Serving = lane.upstream
        self.usage: Usage | None = None
        self.usage_by = "engine"
        self.itl: Itl | None = None  # of a stream
        self.result: tuple[int, Outcome] | None = None
        self._well: bool | None = None  # what the engine has shown of itself

    async def run(self, raw: bytes, headers: list[Header], task: asyncio.Task[Any], ends: float) -> tuple[int, Outcome]:
        """The status that the client got and how it ended; `ends` is when its time is up. Raises Broken.

        `task` is the one in which this runs.
        """
        lane, loop = self.lane, task.get_loop()
        permit = None if self.upstream.closed else lane.breaker.enter(clock.now())
        if permit is None:  # since it was chosen: the request stood in a queue, or tried other engines
            raise Broken(f"engine {lane.name} is out of service", "no_engine", 503)
        reply: Answering | None = None
        try:
            with Deadline(task, self.limits.first_byte_seconds, ends, lane.deadlines) as deadline:
                if self.native is None:
                    reply = await self.upstream.send(b"POST", self._target(), headers, raw)
                else:
                    upstream = cast(NodeUpstream, self.upstream)
                    reply = await upstream.send_node(self.native, b"POST", self._target(), headers, raw)
                streamed = _is_stream(reply.headers)
                first = await (reply.next() if streamed else reply.rest())
                self._well = _speaks_well(reply.status)
                if reply.status in _RETRY_STATUS and not self.last:
                    raise Broken(f"engine {lane.name} answered {reply.status}", "engine_failed")
                if streamed:
                    self.result = await self._stream(reply, first, deadline, permit)
                else:
                    deadline.stop()
                    self.result = await self._whole(reply, first)
            return self.result
        except Overdue as error:
            # Where the request's own time is up, the queue may have used most of it: no fault of the engine's.
            self._well = None if loop.time() >= ends else False
            raise Broken(f"engine {lane.name}: {error.what}", "engine_timeout", 504) from None
        except Unreachable as error:
            self._well = False
            status, code = (502, "engine_failed") if error.in_time else (504, "connect_timeout")
            raise Broken(f"engine {lane.name} cannot be reached: {error}", code, status) from None
        except OSError as error:
            self._well = False
            raise Broken(f"engine {lane.name} failed: {error or type(error).__name__}", "engine_failed") from None
        finally:
            known = self.result is not None or self._well is False
            lane.judge(permit, self._well if known else None, clock.now())
            # A connection that was not read to its end is closed, which is how the engine learns to stop.
            if reply is not None:
                self.upstream.release(reply)

    async def _whole(self, reply: Answering, body: bytes) -> tuple[int, Outcome]:
        """A reply that is not a stream."""
        if self.progress is not None:
            parsed = try_parse(body)
            self._count(read_usage(parsed))
            self.usage_by = reply.usage_by
            if self.answer is not None:
                self.answer.whole(parsed)
            if self.report is not None and isinstance(parsed, dict) and reply.status < 400:
                body = _with_energy(parsed, self.report(), body)
        length = None if not body and reply.status in _NO_BODY else len(body)
        await self.client.start(reply.status, reply.headers, length)
        await self.client.send(body)
        return reply.status, Outcome.OK if reply.status < 400 else Outcome.ERROR

    async def _stream(self, reply: Answering, chunk: bytes, deadline: Deadline, permit: int) -> tuple[int, Outcome]:
        """A stream: frames as they come. Raises Broken for a refusal before the first byte, and for a broken end."""
        name, client, progress = self.lane.name, self.client, None if reply.counted else self.progress
        comment = self._comment if self.report is not None else None
        answer, hide_usage = self.answer, self.hide_usage
        frames = Frames(hide_usage, comment) if answer is None else HeardFrames(hide_usage, comment, answer)
        out = frames.feed(chunk)
        # A refusal may come in pieces: while another engine could be asked, nothing is promised on a part of a frame.
        while not self.last and not (frames.started or frames.done):
            chunk = await reply.next()
            if not chunk:
                raise Broken(f"engine {name} ended its stream before it began", "engine_failed")
            out += frames.feed(chunk)
        if frames.error is not None:
            self._well = _speaks_well(_code_in(frames.error))
            if not self.last:
                raise Broken(f"engine {name} refused inside its stream", "engine_refused")
        elif self._well:
            self.lane.breaker.answered(permit)
        deadline.first_byte(self.limits.idle_seconds)
        await client.start(reply.status, reply.headers, None)
        itl = self.itl = Itl()
        before, last_at = 0, 0.0
        try:
            while chunk:
                seen = frames.content
                if seen != before and progress is not None:
                    now = clock.now()
                    progress.frames = seen
                    if progress.ticks is not None:
                        progress.ticks += [now] * (seen - before)
                    if progress.first is None:
                        progress.first = now
                    else:
                        itl.observe(now - last_at)
                    before, last_at = seen, now
                if frames.done:
                    # A client that leaves now has everything.
                    self.result = reply.status, Outcome.OK if frames.error is None else Outcome.FAILED
                if out:
                    await client.send(out, more=True)
                deadline.wait()
                try:
                    chunk = await reply.next()
                except Dropped:
                    if not frames.done:
                        raise
                    chunk = b""  # all is said, if not to the letter of HTTP
                deadline.heard()
                out = frames.feed(chunk) if chunk else b""
            out = frames.finish()
        finally:
            if progress is not None:
                progress.frames = frames.content
            self._count(frames.usage)
            self.usage_by = reply.usage_by
        if frames.error is None and client.path in _ENDS_WITH_A_REASON and not frames.complete:
            if out:
                await client.send(out, more=True)
            self._well = False
            raise Broken(f"engine {name} ended its stream before its answer was complete", "engine_failed")
        await client.send(out)
        return reply.status, Outcome.OK if frames.error is None else Outcome.FAILED

    def _count(self, usage: Usage | None) -> None:
        self.usage = usage
        if usage is not None and self.progress is not None:
            self.progress.prompt_tokens, self.progress.output_tokens = usage.prompt, usage.output
            self.progress.cached_tokens = usage.cached

    def _target(self) -> bytes:
        """The path, which is one of those that we forward, with the query as it came."""
        path, query = self.client.path.encode(), self.client.query
        return path + b"?" + query if query else path

    def _comment(self) -> bytes:
        return b": energy " + orjson.dumps(self.report() if self.report is not None else {}) + b"\n\n"


def upstream_headers(
    given: Mapping[bytes, bytes], own: Mapping[str, str], keyed: bool, request_id: str
) -> list[Header]:
    """The client's headers as an engine gets them; `keyed`: the client's key is for the gateway alone."""
    dropped = _NO_SECRETS if keyed or "Authorization" in own else _NOT_UPSTREAM
    if named := given.get(b"connection"):
        dropped = dropped | {part.strip().lower() for part in named.split(b",")}
    headers = [header for header in given.items() if header[0] not in dropped]
    headers.append((b"accept-encoding", b"identity"))
    if b"x-request-id" not in given:
        headers.append((b"x-request-id", request_id.encode()))
    headers += [(name.lower().encode(), value.encode()) for name, value in own.items()]
    return headers


def _is_stream(headers: list[Header]) -> bool:
    kinds = [value for name, value in headers if name == b"content-type"]
    return bool(kinds) and kinds[0].startswith(b"text/event-stream")


def try_parse(body: bytes) -> Any:
    """The JSON in `body`, None where there is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _with_energy(reply: dict[str, Any], energy: dict[str, Any], body: bytes) -> bytes:
    if isinstance(reply.get("usage"), dict) and energy["joules"] is not None:
        reply["usage"]["energy_mj"] = round(energy["joules"] * 1000)
    reply["energy"] = energy
    try:
        return orjson.dumps(reply)
    except TypeError:  # deeper than it writes: as the engine wrote it, then
        return body


def _speaks_well(status: int | None) -> bool | None:
    """What a status says of the engine's health: 429 and the unknown say nothing."""
    return None if status is None or status == 429 else status < 500


def _code_in(error: bytes) -> int | None:
    """The status in an error object that came as a frame."""
    reply = try_parse(error)
    found = reply.get("error") if isinstance(reply, dict) else None
    code = found.get("code") if isinstance(found, dict) else None
    return code if isinstance(code, int) else None
