"""The data plane: an ASGI endpoint that forwards a request to an engine and the engine's bytes back as they come.

The way of a request, top to bottom: read it, say whose it is, wait for the nodes that it names, choose engines, wait at
the gate, relay, close the receipt. `client` is its one end, `relay` the other.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from proxy import clock
from proxy.affinity import Trait
from proxy.bounds import is_deeper
from proxy.budget import Standing
from proxy.client import Broken, Client, Receive, Scope, Send
from proxy.config import Config
from proxy.control.arrivals import Arrivals
from proxy.draw import Draw, asked_uj
from proxy.energy.attribution import Attribution
from proxy.energy.receipts import Attempt, Book, Receipt
from proxy.energy.record import Recorder
from proxy.energy.records import Outcome, Quality
from proxy.energy.work import Progress
from proxy.engines.interface import schedules_nodes
from proxy.gate import QueueFull, Ticket
from proxy.identify import BadIdentity, Identity, identify
from proxy.keys import ANYONE, Caller, Keys
from proxy.nodes.answer import Answer
from proxy.nodes.ask import Ask, ask, with_needs
from proxy.nodes.hold import Call, NodeCall, Nodes, RunKey
from proxy.quota import Quota
from proxy.refusal import Refusal
from proxy.relay import Relay, upstream_headers
from proxy.route import AllOut, Lane, Router, UnknownModel
from proxy.spending import Spending
from proxy.telemetry.metrics import Metrics
from proxy.wordless import wordless

log = logging.getLogger("joulegate.forward")

CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
METERED = {CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS}
PLAIN = {"/tokenize", "/detokenize"}  # no work for the accelerator: no gate, no receipt
MODELS = "/v1/models"

_GONE = 499  # the client went away before there was a status
_BUDGET_LEFT = b"x-joulegate-budget-left"
_HELD = b"x-joulegate-held"  # seconds at the gate
_HELD_S = 0.005  # less is not worth a header
_HELD_FOR_NODES = b"x-joulegate-held-for-nodes"  # seconds until the nodes that it names had answered
_MAX_TOKENS_KEYS = {RESPONSES: ("max_output_tokens",), CHAT: ("max_completion_tokens", "max_tokens")}

Parts = Mapping[str, Quality]  # component -> the quality of a request's share of it


class Busy(Broken):
    """The gate's queue is full."""


class Forward:
    """Everything that one exchange needs of the gateway.

    `max_tokens` and `priority` hold what the policy says by workflow, `arrivals` sees requests for a policy that acts;
    `parts` says which components of an engine are metered; `recorder`, where there is one, is told of every
    attempt.
    """

    def __init__(
        self,
        config: Config,
        router: Router,
        keys: Keys,
        book: Book,
        attribution: Attribution,
        metrics: Metrics,
        spending: Spending,
        parts: Callable[[str], Parts] = lambda _: {},
        nodes: Nodes | None = None,
    ) -> None:
        self.router, self.keys, self.spending = router, keys, spending
        self.book, self.attribution, self.metrics, self.parts = book, attribution, metrics, parts
        self.max_tokens: Mapping[str, int] = {}
        self.priority: Mapping[str, int] = {}
        self.arrivals: Arrivals | None = None
        self.recorder: Recorder | None = None
        self.nodes = Nodes(config.limits) if nodes is None else nodes
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take another configuration: for requests that come from now on."""
        self.config = config
        self.nodes.configure(config.limits)
        self.paths = METERED | PLAIN | set(config.limits.paths)
        self.take_priority = {engine.name for engine in config.engines if engine.priority}

    def takes(self, path: str) -> bool:
        """Whether a path is the data plane's, if only to refuse it."""
        return path.startswith("/v1/") or path in self.paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _Exchange(self, Client(scope, receive, send)).run()


class _Exchange:
    """The state of one request and its reply."""

    outside: tuple[RunKey, str] | None = None  # a named call that has not entered its run's graph yet
    call: Call | None = None
    native: NodeCall | None = None  # the same, where its engines see to it that it waits for what it names

    def __init__(self, forward: Forward, client: Client) -> None:
        self.forward, self.client = forward, client
        self.limits = forward.config.limits
        # The time comes first: the ledger appends to its indices, where random ids would land all over them.
        self.id = f"req_{time.time_ns() // 1_000_000:012x}{random.getrandbits(80):020x}"
        client.extra.append((b"x-joulegate-request-id", self.id.encode()))
        self.caller = ANYONE
        self.entered: Quota | None = None
        self.receipt: Receipt | None = None
        self.relay: Relay | None = None
        self.hide_usage = False
        self.report = False
        self.prefix = 0
        self.draw: Draw | None = None
        self.stopped: Refusal | None = None
        self.task = _current_task()
        self.loop = self.task.get_loop()
        self.ends = self.loop.time() + self.limits.total_seconds

    async def run(self) -> None:
        client = self.client
        code, outcome = 500, Outcome.REFUSED
        try:
            caller = self.caller = self.forward.keys.caller(client.headers)
            if client.method != "POST" and _is_models(client.path):
                await self._models()
                return
            self._check_path()
            if caller.quota is not None:
                caller.quota.enter(clock.now())
                self.entered = caller.quota
            raw = await client.body(self.limits.body_bytes)
            unwatch = client.watch(self.task)
            try:
                code, outcome = await self._serve(caller, raw)
            finally:
                # From here on nothing is spent, and only words are owed.
                unwatch()
                if self.draw is not None:
                    self.draw.stop = None
        except Refusal as refusal:
            code, outcome = refusal.status, Outcome.REFUSED
            await client.answer(refusal.status, refusal.body(), refusal.headers())
        except Broken as broken:
            code, outcome = broken.status, Outcome.FAILED
            await client.tell(broken)
        except asyncio.CancelledError:
            if self.relay is not None and self.relay.result is not None:
                code, outcome = self.relay.result
            elif client.gone:
                code, outcome = _GONE, Outcome.CANCELLED
            elif self.stopped is not None:
                code, outcome = self.stopped.status, Outcome.REFUSED
                await client.refuse(self.stopped)
            else:  # the gateway ends and waits no longer; this task ends here, so nobody need know of it
                code, outcome = 503, Outcome.FAILED
                await client.tell(Broken("the gateway is shutting down", "shutting_down", 503))
        except Exception as error:
            # The edge of the data plane: a fault of ours ends one request, not the gateway.
            log.error("request %s failed inside the gateway\n%s", self.id, wordless(error))
            await client.tell(Broken("the gateway failed; its log has the reason", "gateway_error", 500))
        finally:
            if self.entered is not None:
                self.entered.leave(self._tokens(), clock.now())
            if self.draw is not None:
                self.forward.spending.leave(self.draw)
            if self.call is not None:
                self.forward.nodes.leave(self.call, code, outcome)
            elif self.outside is not None:
                self.forward.nodes.refuse(*self.outside, code)
            if self.receipt is not None:
                self._close(self.receipt, code, outcome)

    def _check_path(self) -> None:
        method, path = self.client.method, self.client.path
        if path not in self.forward.paths:
            if _is_models(path):
                raise Refusal(405, f"{path} takes GET, not {method}", "method_not_allowed", allow="GET, HEAD")
            known = ", ".join(sorted(METERED | {MODELS}))
            raise Refusal(404, f"{path} is not forwarded; paths: {known}", "unknown_path")
        if method != "POST":
            raise Refusal(405, f"{path} takes POST, not {method}", "method_not_allowed", allow="POST")

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
        identity = self._identify(body)
        if self.client.path in METERED:
            asked = None
            if identity.node is not None:
                self.outside = (caller.tenant, identity.run), identity.node
                asked = ask(identity, body)
                if asked is None:
                    self.outside = None
                else:
                    identity = with_needs(identity, asked)
            budget_uj = asked_uj(self.client.headers)
            if budget_uj is not None or self.forward.spending.may_hold(
                caller.tenant, caller.budget, identity.run, identity.workflow
            ):
                await self._draw(caller, identity, budget_uj)
            known = self.forward.config.workflows.get(identity.workflow)
            quiet_s = known.quiet if known else 60.0
            self.receipt = self.forward.book.open(
                identity, caller.tenant, self.id, self.client.path, quiet_s, clock.now()
            )
            self.receipt.stream = body.get("stream") is True
            if self.draw is not None:
                self.draw.joins(self.receipt.run)
            if asked is not None:
                raw = await self._named(self.receipt, asked, raw, body, model)
            if self.forward.arrivals is not None:
                self.prefix = self.forward.arrivals.prefix(self.receipt, body)
        affinity = self.forward.router.affinity
        trait = affinity.trait(caller.tenant, identity.run, body)
        lanes = self._candidates(model, trait)
        if self.receipt is not None:
            self.receipt.model = model or next(iter(lanes[0].models), "")
        self.report = caller.report or self.client.headers.get(b"x-energy-report") == b"1"
        raw = self._amend(raw, body, lanes)
        failure: Broken | None = None
        for lane in lanes:
            affinity.went(trait, lane.name)
            try:
                return await self._try(lane, raw, last=lane is lanes[-1])
            except Broken as broken:
                if self.client.began or self.loop.time() >= self.ends:
                    raise
                failure = broken
        if isinstance(failure, Busy):
            raise Refusal(429, failure.what, failure.code, retry_after_s=1)
        if not any(lane.up for lane in lanes):
            raise Refusal(503, f"no engine is up ({failure})", "no_engine", retry_after_s=2)
        if failure is not None and failure.code == "no_engine":  # taken out while the request stood in its queue
            retry_s = min(lane.breaker.retry_after_s(clock.now()) for lane in lanes)
            raise Refusal(503, failure.what, failure.code, retry_after_s=retry_s)
        raise failure or Broken("no engine answered", "engine_failed")

    def _identify(self, body: Mapping[str, Any]) -> Identity:
        try:
            identity = identify(self.client.headers, body, self.id)
        except BadIdentity as error:
            raise Refusal(400, str(error), "invalid_workflow_header") from None
        if identity.ignored:
            self.forward.metrics.ids_ignored(identity.ignored)
        return identity

    async def _draw(self, caller: Caller, identity: Identity, asked: int | None) -> None:
        """Take hold of the budgets that the request draws on. Raises Refusal where one is spent."""
        spending = self.forward.spending
        if asked is not None and not any(self.forward.parts(lane.name) for lane in self.forward.router.lanes):
            what = "X-Workflow-Budget: a budget needs a counter, and the joules of no engine here are known"
            raise Refusal(400, what, "budget_not_possible")
        self.draw = draw = await spending.enter(
            caller.tenant, caller.budget, identity.run, identity.workflow, identity.alone, asked
        )
        if draw is not None:
            self._check_budget(draw)

            def stop(standing: Standing) -> None:
                self.stopped = draw.refusal(standing, clock.now())
                self.task.cancel()

            draw.stop = stop

    async def _named(self, receipt: Receipt, asked: Ask, raw: bytes, body: dict[str, Any], model: str | None) -> bytes:
        """Enter a named call, and wait for the nodes that it names; returns the request with their outputs in place.

        Where its engines see to that themselves it waits until they have these nodes, and the request is as it came.
        """
        nodes = self.forward.nodes
        holds = not all(schedules_nodes(lane.engine) for lane in self._candidates(model, ()))
        self.outside = None
        call = self.call = nodes.enter(receipt.run, asked, self.ends, holds)
        native = self.native = None if holds else NodeCall(nodes, call)
        outputs: Mapping[str, str] = {}
        if asked.needs:
            try:
                if native is None:
                    outputs = await nodes.inputs(call)
                else:  # at the gate it could take the place of one that it waits for
                    await native.taken()
            finally:
                receipt.held_s = clock.now() - receipt.received
                self.client.extra.append((_HELD_FOR_NODES, b"%.3f" % receipt.held_s))
        if native is not None:
            return raw
        if asked.needs and self.forward.arrivals is not None:
            self.forward.arrivals.released(receipt)
        return asked.filled(raw, body, outputs, self.limits.body_bytes)

    def _check_budget(self, draw: Draw) -> None:
        """Say what is left. Raises Refusal where nothing is."""
        extra = self.client.extra
        extra[:] = [header for header in extra if header[0] != _BUDGET_LEFT]
        try:
            left_uj = draw.check(clock.now())
        except Refusal:
            extra.append((_BUDGET_LEFT, b"0"))
            raise
        if left_uj is not None:
            extra.append((_BUDGET_LEFT, b"%.3f" % (left_uj / 1e6)))

    def _candidates(self, model: str | None, trait: Trait) -> list[Lane]:
        try:
            return self.forward.router.candidates(model, clock.now(), trait)
        except AllOut as error:
            out = ", ".join(error.engines)
            raise Refusal(
                503, f"out of service after failures: {out}", "no_engine", retry_after_s=error.retry_after_s
            ) from None
        except UnknownModel as error:
            served = ", ".join(filter(self.caller.may_use, error.known)) or "none yet: no engine is up"
            what = f"The model {error.model!r} does not exist; served: {served}"
            raise Refusal(404, what, "model_not_found", param="model") from None

    def _amend(self, raw: bytes, body: dict[str, Any], lanes: list[Lane]) -> bytes:
        """The body as the engine gets it: with usage asked for, under the policy's ceiling and the budget's, with the
        policy's priority where every engine that may get it honours one.

        Untouched otherwise.
        """
        # A name given twice is read by us as the last one; what an engine makes of it must not get round `models`.
        amended, path = self.caller.models is not None, self.client.path
        if body.get("stream") is True and path in (CHAT, COMPLETIONS):
            options = body.get("stream_options")
            if not isinstance(options, dict) or not options.get("include_usage"):
                body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
                self.hide_usage = amended = True
        forward = self.forward
        bounded = self.draw is not None or forward.max_tokens or forward.priority
        if bounded and self.receipt is not None and path != EMBEDDINGS:
            keys = _MAX_TOKENS_KEYS.get(path, ("max_tokens",))
            key = next((key for key in keys if body.get(key) is not None), keys[-1])
            asked = body.get(key) if isinstance(body.get(key), int | float) else None
            policys = forward.max_tokens.get(self.receipt.run.label)
            budgets = self._affordable(lanes[0], len(raw) // 4, body, asked)
            most = min((most for most in (policys, budgets) if most is not None), default=None)
            if most is not None and (asked is None or asked > most):
                body[key] = most
                amended = True
                self.client.extra.append((b"x-joulegate-max-tokens", b"%d" % most))
                if self.draw is not None and most == budgets:
                    self.draw.capped(clock.now())
            priority = forward.priority.get(self.receipt.run.label)
            if priority is not None and forward.take_priority.issuperset(lane.name for lane in lanes):
                body["priority"] = priority
                amended = True
        return orjson.dumps(body) if amended else raw

    def _affordable(self, lane: Lane, prompt_tokens: int, body: Mapping[str, Any], asked: float | None) -> int | None:
        """The output tokens that the request's budgets pay for, at the prices of the engine that is asked first."""
        if self.draw is None:
            return None
        serving, in_flight = self.forward.attribution.serving(lane.works_for or lane.name), lane.gate.total + 1
        choices = max([1, *(n for name in ("n", "best_of") if isinstance(n := body.get(name), int))])
        return self.draw.most_tokens(serving, in_flight, prompt_tokens, choices, asked, clock.now())

    async def _try(self, lane: Lane, raw: bytes, last: bool) -> tuple[int, Outcome]:
        """One attempt: through the gate, to the engine, back. Raises Broken when another engine may try."""
        if self.receipt is None:
            return await self._relay(lane, raw, None, last)
        receipt, forward = self.receipt, self.forward
        attempt = Attempt(len(receipt.attempts) + 1, lane.name, clock.now())
        receipt.attempts.append(attempt)
        ticket = (
            Ticket(receipt.run.label, receipt.step)
            if forward.arrivals is None
            else forward.arrivals.ticket(receipt, self.prefix, attempt.queued)
        )
        if self.call is not None:
            ticket.node = self.call.node
        attempt.outcome = Outcome.CANCELLED
        try:
            await self._admit(lane, ticket, attempt)
            dispatched = clock.now()
            if dispatched - attempt.queued > _HELD_S:
                self._say_held(dispatched - attempt.queued)
            forward.metrics.queue_wait(receipt.run.label, lane.name, dispatched - attempt.queued)
            forward.metrics.born(receipt.run.tenant, receipt.run.label, receipt.step, lane.name, forward.parts)
            # Four bytes a token is the usual rule of thumb; it stands in only until the engine has counted.
            worker = lane.works_for or lane.name
            progress = Progress(receipt.id, attempt.n, worker, dispatched, len(raw) // 4, receipt.stream)
            attempt.progress = progress
            if forward.recorder is not None and forward.recorder.recording:
                progress.ticks = []
            if lane.bind is None:
                forward.attribution.start(progress)
            attempt.code, attempt.outcome = await self._relay(lane, raw, progress, last)
            return attempt.code, attempt.outcome
        except Broken as broken:
            if self.native is not None:
                self.native.withdrawn()
            if not isinstance(broken, Busy):
                attempt.code, attempt.outcome = broken.status, Outcome.FAILED
            raise
        except Refusal:
            attempt.outcome = Outcome.REFUSED
            raise
        except asyncio.CancelledError:
            if self.relay is not None and self.relay.result is not None:
                attempt.code, attempt.outcome = self.relay.result
            elif self.stopped is not None and not self.client.gone:
                attempt.code, attempt.outcome = self.stopped.status, Outcome.REFUSED
            raise
        finally:
            lane.leave(ticket)
            attempt.ended = clock.now()
            if attempt.progress is not None:
                attempt.progress.ended = attempt.ended
                attempt.first = attempt.progress.first
                if forward.recorder is not None:
                    forward.recorder.attempt(attempt.progress, receipt.run.label)

    def _say_held(self, held_s: float) -> None:
        extra = self.client.extra
        extra[:] = [header for header in extra if header[0] != _HELD]
        extra.append((_HELD, b"%.3f" % held_s))

    async def _admit(self, lane: Lane, ticket: Ticket, attempt: Attempt) -> None:
        wait_s = min(self.limits.queue_seconds, self.ends - self.loop.time())
        try:
            await lane.admit(ticket, wait_s)
        except QueueFull:
            attempt.outcome = Outcome.REFUSED
            raise Busy(f"the queue of engine {lane.name} is full", "queue_full", 429) from None
        except TimeoutError:
            raise Refusal(504, f"waited {wait_s:.3g} s in the queue", "queue_timeout") from None
        if self.draw is not None:
            self._check_budget(self.draw)  # it may have waited long

    async def _relay(self, lane: Lane, raw: bytes, progress: Progress | None, last: bool) -> tuple[int, Outcome]:
        report = self._energy if self.report and progress is not None else None
        relay = self.relay = Relay(self.client, lane, self.limits, progress, last, self.hide_usage, report)
        if lane.bind is not None:
            relay.upstream = lane.bind(self.receipt, progress)
        if self.call is not None:
            relay.answer = self.call.answer = Answer()
            relay.native = self.native
        headers = upstream_headers(self.client.headers, lane.engine.headers, bool(self.forward.keys), self.id)
        try:
            return await relay.run(raw, headers, self.task, self.ends)
        finally:
            if self.receipt is not None and progress is not None:
                if relay.itl is not None:
                    self.forward.metrics.itl_flush(self.receipt.run.label, lane.name, relay.itl)
                if relay.usage is not None:
                    self.receipt.prompt_tokens, self.receipt.output_tokens = relay.usage.prompt, relay.usage.output
                    self.receipt.cached_tokens, self.receipt.usage = relay.usage.cached, relay.usage_by
                elif progress.frames:
                    self.receipt.output_tokens, self.receipt.usage = progress.frames, "frames"

    async def _models(self) -> None:
        if self.client.method not in ("GET", "HEAD"):
            self._check_path()
        listing = [entry for entry in self.forward.router.listing() if self.caller.may_use(str(entry.get("id")))]
        wanted = self.client.path.removeprefix(MODELS).strip("/")
        if not wanted:
            body = {"object": "list", "data": listing}
        else:
            found = [entry for entry in listing if entry.get("id") == wanted]
            if not found:
                raise Refusal(404, f"The model {wanted[:200]!r} does not exist", "model_not_found", param="model")
            body = found[0]
        await self.client.answer(200, orjson.dumps(body))

    def _energy(self) -> dict[str, Any]:
        """What the request cost so far, predicted; the settled figure comes a second or two later."""
        assert self.receipt is not None
        now = clock.now()
        running = [attempt for attempt in self.receipt.attempts if attempt.progress is not None]
        qualities = {quality for attempt in running for quality in self.forward.parts(attempt.engine).values()}
        energy: dict[str, Any] = {"joules": None, "quality": None, "provisional": True, "request_id": self.id}
        if qualities:
            open_uj = sum(self.forward.attribution.provisional_uj(a.progress, now) for a in running if a.progress)
            energy["joules"] = (self.receipt.uj + open_uj) / 1e6
            energy["quality"] = max(qualities, key=list(Quality).index)
        return energy

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
        # Waiting for others of its run is nothing that a queue or an engine did.
        received = receipt.received + receipt.held_s
        metrics.request_done(receipt.run.tenant, label, engine, receipt.model, code, outcome, now - received)
        if receipt.attempts and receipt.attempts[-1].first is not None:
            metrics.ttft(label, engine, receipt.attempts[-1].first - received)


def _is_models(path: str) -> bool:
    return path == MODELS or path.startswith(f"{MODELS}/")


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
