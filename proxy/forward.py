"""The data plane: an ASGI endpoint that forwards a request to an engine and the engine's bytes back as they come.

The way of a request, top to bottom: read it, say whose it is, choose engines, wait at the gate, relay, close the
receipt.
"""

import asyncio
import logging
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import orjson

from proxy import clock
from proxy.bounds import is_deeper
from proxy.config import Config
from proxy.deadline import Deadline, Overdue
from proxy.energy.attribution import Attribution
from proxy.energy.receipts import Attempt, Book, Receipt
from proxy.energy.records import Outcome
from proxy.energy.work import Progress
from proxy.frames import Frames, Usage, read_usage
from proxy.gate import QueueFull, Ticket
from proxy.identify import BadIdentity, identify
from proxy.keys import ANYONE, Caller, Keys
from proxy.quota import Quota
from proxy.refusal import Refusal, error_object
from proxy.route import AllOut, Lane, Router, UnknownModel
from proxy.telemetry.metrics import Itl, Metrics
from proxy.upstream import Reply, Unreachable

log = logging.getLogger("joulegate.forward")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
METERED = {CHAT, COMPLETIONS, RESPONSES, "/v1/embeddings"}
PLAIN = {"/tokenize", "/detokenize"}  # no work for the accelerator: no gate, no receipt
MODELS = "/v1/models"

_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
}  # fmt: skip
_NOT_UPSTREAM = _HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect"}
_NOT_UPSTREAM_WITH_KEYS = _NOT_UPSTREAM | {b"authorization", b"x-api-key"}
_NOT_DOWNSTREAM = _HOP_BY_HOP | {b"content-length", b"date", b"server"}
_RETRY_STATUS = {429, 500, 502, 503, 504}
_TELL_S = 5.0
_GONE = 499  # the client went away before there was a status
_MAX_TOKENS_KEYS = {RESPONSES: ("max_output_tokens",), CHAT: ("max_completion_tokens", "max_tokens")}


class Broken(Exception):
    """The engine could not be reached or broke off; `what` is for the client."""

    def __init__(self, what: str, code: str, status: int = 502) -> None:
        super().__init__(what)
        self.what, self.code, self.status = what, code, status


class Forward:
    """Everything that one exchange needs of the gateway; `max_tokens` holds the policy's ceilings by workflow."""

    def __init__(
        self, config: Config, router: Router, keys: Keys, book: Book, attribution: Attribution, metrics: Metrics
    ) -> None:
        self.router, self.keys = router, keys
        self.book, self.attribution, self.metrics = book, attribution, metrics
        self.max_tokens: Mapping[str, int] = {}
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take another configuration: for requests that come from now on."""
        self.config = config
        self.paths = METERED | PLAIN | set(config.limits.paths)

    def takes(self, path: str) -> bool:
        """Whether a path is the data plane's, if only to refuse it."""
        return path.startswith("/v1/") or path in self.paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _Exchange(self, scope, receive, send).run()


class _Exchange:
    """The state of one request and its reply."""

    def __init__(self, forward: Forward, scope: Scope, receive: Receive, send: Send) -> None:
        self.forward, self.receive, self.send = forward, receive, send
        self.limits = forward.config.limits
        self.scope = scope
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            self.headers.setdefault(name, value)
        self.id = f"req_{uuid.uuid4().hex}"
        self.caller = ANYONE
        self.entered: Quota | None = None
        self.receipt: Receipt | None = None
        self.attempt: Attempt | None = None
        self.began = False  # the client has seen a status
        self.gone = False  # the client has left
        self.extra: list[tuple[bytes, bytes]] = [(b"x-joulegate-request-id", self.id.encode())]
        self.hide_usage = False
        self.report = False
        self.loop = asyncio.get_running_loop()
        self.ends = self.loop.time() + self.limits.total_seconds
        self.well: bool | None = None  # what the attempt under way has shown of its engine

    async def run(self) -> None:
        watcher: asyncio.Task[None] | None = None
        code, outcome = 500, Outcome.REFUSED
        try:
            caller = self.caller = self.forward.keys.caller(self.headers)
            if self.path.startswith(MODELS) and self.scope["method"] == "GET":
                await self._models()
                return
            self._check_path()
            if caller.quota is not None:
                caller.quota.enter(clock.now())
                self.entered = caller.quota
            body = await self._read_body()
            watcher = asyncio.create_task(self._watch(_current_task()))
            code, outcome = await self._serve(caller, body)
        except Refusal as refusal:
            code, outcome = refusal.status, Outcome.REFUSED
            await self._reply(refusal.status, refusal.headers(), refusal.body())
        except Broken as broken:
            code, outcome = broken.status, Outcome.FAILED
            await self._break(broken)
        except asyncio.CancelledError:
            code, outcome = _GONE, Outcome.CANCELLED
            if not self.gone:  # the gateway ends and waits no longer; this task ends here, so nobody need know of it
                code, outcome = 503, Outcome.FAILED
                await self._break(Broken("the gateway is shutting down", "shutting_down", 503))
        except Exception as error:
            # The edge of the data plane: a fault of ours ends one request, not the gateway. An exception's own words
            # may hold what it stumbled over, a prompt say; where and of which kind it was is logged, no more.
            where = "".join(traceback.format_tb(error.__traceback__))
            kind = type(error).__name__
            log.error("request %s failed inside the gateway\nTraceback:\n%s%s", self.id, where, kind)
            await self._break(Broken("the gateway failed; its log has the reason", "gateway_error", 500))
        finally:
            if watcher is not None:
                watcher.cancel()
            if self.entered is not None:
                self.entered.leave(self._tokens(), clock.now())
            if self.receipt is not None:
                self._close(self.receipt, code, outcome)

    # Before the gate ------------------------------------------------------------------------------------------------

    def _check_path(self) -> None:
        method, path = self.scope["method"], self.path
        if path not in self.forward.paths:
            known = ", ".join(sorted(METERED | {MODELS}))
            raise Refusal(404, f"{path} is not forwarded; paths: {known}", "unknown_path")
        if method != "POST":
            raise Refusal(405, f"{path} takes POST, not {method}", "method_not_allowed")

    async def _read_body(self) -> bytes:
        """The whole body. Raises Refusal (413) as soon as it is too large."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise asyncio.CancelledError
            part = message.get("body", b"")
            size += len(part)
            if size > self.limits.body_bytes:
                raise Refusal(413, f"the body is larger than {self.limits.body_bytes} bytes", "body_too_large")
            parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _watch(self, exchange: asyncio.Task[Any]) -> None:
        """Cancel the exchange when the client goes, wherever it is."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        exchange.cancel()

    async def _serve(self, caller: Caller, raw: bytes) -> tuple[int, Outcome]:
        """Identify, route, and try engines in turn; returns the status the client got and how it ended."""
        body = _parse(raw, self.limits.json_depth)
        model = _model(body)
        if not (caller.models is None or model in caller.models):
            named = "no model" if model is None else f"the model {model!r}"
            allowed = ", ".join(sorted(caller.models))
            raise Refusal(
                403, f"{named} is not for this key; it may use: {allowed}", "model_not_allowed", param="model"
            )
        try:
            identity = identify(self.headers, body, self.id)
        except BadIdentity as error:
            raise Refusal(400, str(error), "invalid_workflow_header") from None
        known = self.forward.config.workflows.get(identity.workflow)
        if self.path in METERED:
            self.receipt = self.forward.book.open(
                identity, caller.tenant, self.id, self.path, known.quiet if known else 60.0, clock.now()
            )
            self.receipt.stream = body.get("stream") is True
        router = self.forward.router
        trait = router.affinity.trait(caller.tenant, identity.run, body)
        try:
            lanes = router.candidates(model, clock.now(), trait)
        except AllOut as error:
            engines = ", ".join(error.engines)
            raise Refusal(
                503, f"out of service after failures: {engines}", "no_engine", retry_after_s=error.retry_after_s
            ) from None
        except UnknownModel as error:
            served = ", ".join(filter(caller.may_use, error.known)) or "none yet: no engine is up"
            raise Refusal(
                404,
                f"The model {error.model[:200]!r} does not exist; served: {served}",
                "model_not_found",
                param="model",
            ) from None
        if self.receipt is not None:
            self.receipt.model = model or next(iter(lanes[0].models), "")
        self.report = caller.report or self.headers.get(b"x-energy-report") == b"1"
        raw = self._amend(raw, body)
        failure: Broken | None = None
        for lane in lanes:
            router.affinity.went(trait, lane.name)
            try:
                return await self._try(lane, raw, last=lane is lanes[-1])
            except Broken as broken:
                if self.began or self.loop.time() >= self.ends:
                    raise
                failure = broken
        if not any(lane.up for lane in lanes):
            raise Refusal(503, f"no engine is up ({failure})", "no_engine", retry_after_s=2)
        raise failure or Broken("no engine answered", "engine_failed")

    def _amend(self, raw: bytes, body: dict[str, Any]) -> bytes:
        """The body as the engine gets it: with usage asked for, and under the policy's ceiling. Untouched otherwise."""
        # A name given twice is read by us as the last one; what an engine makes of it must not get round `models`.
        amended = self.caller.models is not None
        if body.get("stream") is True and self.path in (CHAT, COMPLETIONS):
            options = body.get("stream_options")
            if not isinstance(options, Mapping) or not options.get("include_usage"):
                body["stream_options"] = {**(options if isinstance(options, Mapping) else {}), "include_usage": True}
                self.hide_usage = amended = True
        workflow = self.receipt.run.label if self.receipt else ""
        ceiling = self.forward.max_tokens.get(workflow)
        if ceiling is not None and self.path != "/v1/embeddings":
            keys = _MAX_TOKENS_KEYS.get(self.path, ("max_tokens",))
            key = next((key for key in keys if body.get(key) is not None), keys[-1])
            asked = body.get(key)
            if not isinstance(asked, int) or asked > ceiling:
                body[key] = ceiling
                amended = True
                self.extra.append((b"x-joulegate-max-tokens", str(ceiling).encode()))
        return orjson.dumps(body) if amended else raw

    # One attempt ----------------------------------------------------------------------------------------------------

    async def _try(self, lane: Lane, raw: bytes, last: bool) -> tuple[int, Outcome]:
        """One attempt: through the gate, to the engine, back. Raises Broken when another engine may try."""
        if self.receipt is None:
            return await self._relay(lane, raw, None, last)
        receipt, forward = self.receipt, self.forward
        attempt = self.attempt = Attempt(len(receipt.attempts) + 1, lane.name, clock.now())
        receipt.attempts.append(attempt)
        ticket = Ticket(receipt.run.label)
        attempt.outcome = Outcome.CANCELLED
        try:
            wait_s = min(self.limits.queue_seconds, self.ends - self.loop.time())
            try:
                await lane.admit(ticket, wait_s)
            except QueueFull:
                attempt.outcome = Outcome.REFUSED
                raise Refusal(429, f"the queue of engine {lane.name} is full", "queue_full", retry_after_s=1) from None
            except TimeoutError:
                attempt.outcome = Outcome.REFUSED
                raise Refusal(504, f"waited {wait_s:.3g} s in the queue", "queue_timeout") from None
            dispatched = clock.now()
            forward.metrics.queue_wait(receipt.run.label, lane.name, dispatched - attempt.queued)
            # Four bytes a token is the usual rule of thumb; it stands in only until the engine has counted.
            progress = Progress(receipt.id, attempt.n, lane.name, dispatched, len(raw) // 4, receipt.stream)
            attempt.progress = progress
            forward.attribution.start(progress)
            attempt.code, attempt.outcome = await self._relay(lane, raw, progress, last)
            return attempt.code, attempt.outcome
        except Broken as broken:
            attempt.code, attempt.outcome = broken.status, Outcome.FAILED
            raise
        finally:
            lane.leave(ticket)
            attempt.ended = clock.now()
            if attempt.progress is not None:
                attempt.progress.ended = attempt.ended
                attempt.first = attempt.progress.first

    async def _relay(self, lane: Lane, raw: bytes, progress: Progress | None, last: bool) -> tuple[int, Outcome]:
        """Send the request to one engine and its reply to the client. Raises Broken."""
        permit = None if lane.upstream.closed else lane.breaker.enter(clock.now())
        if permit is None:  # since it was chosen: the request stood in a queue, or tried other engines
            raise Broken(f"engine {lane.name} is out of service", "no_engine", 503)
        reply: Reply | None = None
        done, self.well = False, None
        try:
            with Deadline(self.loop, self.limits.first_byte_seconds, self.ends) as deadline:
                reply = await lane.upstream.send(b"POST", self._target(), self._upstream_headers(lane), raw)
                streamed = any(n == b"content-type" and v.startswith(b"text/event-stream") for n, v in reply.headers)
                first = await (reply.next() if streamed else reply.rest())
                self.well = _speaks_well(reply.status)
                if reply.status in _RETRY_STATUS and not last:
                    raise Broken(f"engine {lane.name} answered {reply.status}", "engine_failed")
                if streamed:
                    result = await self._stream(reply, first, progress, lane, last, deadline, permit)
                else:
                    deadline.stop()
                    result = await self._whole(reply, first, progress)
            done = True
            return result
        except Broken:
            raise
        except Overdue as error:
            # Where the request's own time is up, the queue may have used most of it: no fault of the engine's.
            self.well = None if self.loop.time() >= self.ends else False
            raise Broken(f"engine {lane.name}: {error.what}", "engine_timeout", 504) from None
        except Unreachable as error:
            self.well = False
            status, code = (502, "engine_failed") if error.in_time else (504, "connect_timeout")
            raise Broken(f"engine {lane.name} cannot be reached: {error}", code, status) from None
        except OSError as error:
            self.well = False
            raise Broken(f"engine {lane.name} failed: {_reason(error)}", "engine_failed") from None
        finally:
            lane.judge(permit, self.well if done or self.well is False else None, clock.now())
            # A connection that was not read to its end is closed, which is how the engine learns to stop.
            if reply is not None:
                lane.upstream.release(reply)

    async def _whole(self, response: Reply, body: bytes, progress: Progress | None) -> tuple[int, Outcome]:
        """A reply that is not a stream."""
        if progress is not None and self.receipt is not None:
            reply = _try_parse(body)
            usage = read_usage(reply)
            self._count(progress, usage, frames=0)
            if self.report and isinstance(reply, dict) and response.status < 400:
                body = self._with_energy(reply, body)
        await self._start(response.status, response.headers, len(body))
        await self.send({"type": "http.response.body", "body": body})
        return response.status, Outcome.OK if response.status < 400 else Outcome.ERROR

    async def _stream(
        self,
        response: Reply,
        chunk: bytes,
        progress: Progress | None,
        lane: Lane,
        last: bool,
        deadline: Deadline,
        permit: int,
    ) -> tuple[int, Outcome]:
        """A stream: frames as they come. Raises Broken, before the first byte, for a refusal inside the stream."""
        frames = Frames(self.hide_usage, self._comment if self.report else None)
        itl = Itl()
        out = frames.feed(chunk)
        # A refusal may come in pieces: while another engine could be asked, nothing is promised on a part of a frame.
        while not last and not (frames.started or frames.done):
            chunk = await response.next()
            if not chunk:
                raise Broken(f"engine {lane.name} ended its stream before it began", "engine_failed")
            out += frames.feed(chunk)
        if frames.error is not None:
            self.well = _speaks_well(_code_in(frames.error))
            if not last:
                raise Broken(f"engine {lane.name} refused inside its stream", "engine_refused")
        elif self.well:
            lane.breaker.answered(permit)
        deadline.first_byte(self.limits.idle_seconds)
        await self._start(response.status, response.headers, None)
        before = seen = 0
        last_at = 0.0
        try:
            while chunk:
                seen = frames.content
                if seen != before and progress is not None:
                    now = clock.now()
                    progress.frames = seen
                    if progress.first is None:
                        progress.first = now
                    else:
                        itl.observe(now - last_at)
                    before, last_at = seen, now
                if out:
                    await self.send({"type": "http.response.body", "body": out, "more_body": True})
                deadline.wait()
                chunk = await response.next()
                deadline.heard()
                out = frames.feed(chunk) if chunk else b""
            out = frames.finish()
        finally:
            if progress is not None:
                progress.frames = frames.content
                self._count(progress, frames.usage, frames.content)
                label = self.receipt.run.label if self.receipt else ""
                self.forward.metrics.itl_flush(label, lane.name, itl)
        await self.send({"type": "http.response.body", "body": out})
        return response.status, Outcome.OK if frames.error is None else Outcome.FAILED

    def _count(self, progress: Progress, usage: Usage | None, frames: int) -> None:
        """Put the tokens on the attempt and the receipt, and say who counted."""
        receipt = self.receipt
        if receipt is None:
            return
        if usage is not None:
            progress.prompt_tokens, progress.output_tokens = usage.prompt, usage.output
            progress.cached_tokens = usage.cached
            receipt.prompt_tokens, receipt.output_tokens = usage.prompt, usage.output
            receipt.cached_tokens, receipt.usage = usage.cached, "engine"
        elif frames:
            receipt.output_tokens, receipt.usage = frames, "frames"

    # Towards the client ---------------------------------------------------------------------------------------------

    async def _start(self, status: int, raw_headers: Any, length: int | None) -> None:
        self.began = True
        headers = [(name.lower(), value) for name, value in raw_headers if name.lower() not in _NOT_DOWNSTREAM]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers + self.extra})

    async def _reply(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """An answer of the gateway's own, where there is still a client and none was begun."""
        if self.gone or self.began:
            return
        self.began = True
        base = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": base + headers + self.extra})
        await self.send({"type": "http.response.body", "body": body})

    async def _break(self, broken: Broken) -> None:
        """Tell the client of a failure: as a reply, or as the last frame of a stream that has begun."""
        error = error_object(broken.status, broken.what, broken.code)
        with suppress(TimeoutError):  # a client that reads nothing is not told; the books are closed all the same
            async with asyncio.timeout(_TELL_S):
                if self.began and not self.gone:
                    await self.send({"type": "http.response.body", "body": b"data: " + error + b"\n\n"})
                else:
                    await self._reply(broken.status, [], error)

    async def _models(self) -> None:
        listing = [entry for entry in self.forward.router.listing() if self.caller.may_use(str(entry.get("id")))]
        wanted = self.path.removeprefix(MODELS).strip("/")
        if not wanted:
            body = {"object": "list", "data": listing}
        else:
            found = [entry for entry in listing if entry.get("id") == wanted]
            if not found:
                raise Refusal(404, f"The model {wanted[:200]!r} does not exist", "model_not_found", param="model")
            body = found[0]
        await self._reply(200, [], orjson.dumps(body))

    def _target(self) -> bytes:
        """The path as it came, with its query."""
        query = self.scope.get("query_string", b"")
        path = self.path.encode()  # one of those that we forward
        return path + b"?" + query if query else path

    def _upstream_headers(self, lane: Lane) -> list[tuple[bytes, bytes]]:
        given, own = self.headers, lane.engine.headers
        dropped = _NOT_UPSTREAM
        if self.forward.keys or "Authorization" in own:
            dropped = _NOT_UPSTREAM_WITH_KEYS
        if named := given.get(b"connection"):
            dropped = dropped | {part.strip().lower() for part in named.split(b",")}
        headers = [header for header in given.items() if header[0] not in dropped]
        headers.append((b"accept-encoding", b"identity"))
        if b"x-request-id" not in given:
            headers.append((b"x-request-id", self.id.encode()))
        headers += [(name.lower().encode(), value.encode()) for name, value in own.items()]
        return headers

    # Energy in the reply --------------------------------------------------------------------------------------------

    def _energy(self) -> dict[str, Any]:
        """What the request cost so far, predicted; the settled figure comes a second or two later."""
        uj = 0
        if self.receipt is not None:
            now = clock.now()
            running = [a.progress for a in self.receipt.attempts if a.progress is not None]
            uj = self.receipt.uj + sum(self.forward.attribution.provisional_uj(p, now) for p in running)
        return {"joules": uj / 1e6, "provisional": True, "request_id": self.id}

    def _comment(self) -> bytes:
        return b": energy " + orjson.dumps(self._energy()) + b"\n\n"

    def _with_energy(self, reply: dict[str, Any], body: bytes) -> bytes:
        energy = self._energy()
        if isinstance(reply.get("usage"), dict):
            reply["usage"]["energy_mj"] = round(energy["joules"] * 1000)
        reply["energy"] = energy
        try:
            return orjson.dumps(reply)
        except TypeError:  # deeper than it writes: as the engine wrote it, then
            return body

    # The end --------------------------------------------------------------------------------------------------------

    def _tokens(self) -> int:
        """What the request counts for its key: as the engine counted, else what we know better than nothing."""
        receipt = self.receipt
        if receipt is None or not receipt.attempts or (progress := receipt.attempts[-1].progress) is None:
            return 0
        prompt = progress.prompt_guess if receipt.prompt_tokens is None else receipt.prompt_tokens
        return prompt + (receipt.output_tokens or 0)

    def _close(self, receipt: Receipt, code: int, outcome: Outcome) -> None:
        now = clock.now()
        metrics, label = self.forward.metrics, receipt.run.label
        engine = receipt.attempts[-1].engine if receipt.attempts else ""
        self.forward.book.close(receipt, code, outcome, now)
        metrics.request_done(receipt.run.tenant, label, engine, receipt.model, code, outcome, now - receipt.received)
        if receipt.attempts and receipt.attempts[-1].first is not None:
            metrics.ttft(label, engine, receipt.attempts[-1].first - receipt.received)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "an ASGI application runs in a task"
    return task


def _parse(raw: bytes, depth: int) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"the body is not JSON: {error}", "invalid_json") from None
    if not isinstance(body, dict):
        raise Refusal(400, "the body must be a JSON object", "invalid_json")
    if is_deeper(raw, body, depth):
        raise Refusal(400, f"the body's JSON is nested deeper than {depth} levels", "invalid_json")
    return body


def _model(body: Mapping[str, Any]) -> str | None:
    """The model that is asked for. Its name goes on into labels and the ledger, so not everything is one."""
    model = body.get("model")
    if model is None:
        return None
    if not isinstance(model, str):
        raise Refusal(400, "model must be a string", "invalid_type", param="model")
    if len(model) > 200 or not model.isprintable():
        raise Refusal(400, "model must be at most 200 printable characters", "invalid_value", param="model")
    return model


def _try_parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _speaks_well(status: int | None) -> bool | None:
    """What a status says of the engine's health: 429 and the unknown say nothing."""
    return None if status is None or status == 429 else status < 500


def _code_in(error: bytes) -> int | None:
    """The status in an error object that came as a frame."""
    reply = _try_parse(error)
    found = reply.get("error") if isinstance(reply, dict) else None
    code = found.get("code") if isinstance(found, dict) else None
    return code if isinstance(code, int) else None
