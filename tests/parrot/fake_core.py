"""A ServeCore of our own, with an engine: the fields, the laziness, the order, the quirks and the deaths of Parrot's.

`python fake_core.py PORT BASE_URL KEY` serves until it is killed or dies. BASE_URL is what its `openai` engine calls;
without one its `builtin` engine says so many words as it was given. `tests/parrot` holds it against the real one.
"""

import asyncio
import json
import re
import sys
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientError, ClientSession, web

PLACEHOLDER = re.compile(r"\{\{([a-zA-Z_][a-zA-Z0-9_]*)\}\}")
SAMPLING = {
    *("temperature", "top_p", "max_gen_length", "ignore_tokenizer_eos", "stop_token_ids", "stop_str", "n", "best_of"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "repetition_penalty", "length_penalty"),
}
PARAMETER = {"name", "is_output", "var_id", "value", "sampling_config"}
LATENCY_BOUND = 4  # calls of the `latency` criteria that run at a time
TRIES = 3  # of its engine's client


class UserError(Exception):
    """Told as JSON with status 500; anything else that goes wrong is a 500 in plain text."""


@dataclass(eq=False)
class Variable:
    id: str
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    content: str | None = None
    producer: "Semantic | None" = None


@dataclass(eq=False)
class Semantic:
    """A semantic call: it runs once, and only when somebody asks for what it makes."""

    session: int
    inputs: list[Variable]
    out: Variable
    sampling: dict[str, Any]
    model_type: str
    models: list[str]
    payload: dict[str, Any]
    criteria: str | None = None


@dataclass(eq=False)
class Kept:
    """A session as ServeCore keeps it."""

    variables: dict[str, Variable] = field(default_factory=dict)
    requests: int = 0
    touched: float = 0.0
    bad: bool = False


class FakeCore:
    """`base_url` and `key` are those of the `openai` engine. `log` holds what ran, in its order."""

    def __init__(self, base_url: str = "", key: str = "", latency_env: str | None = "0") -> None:
        self.base_url, self.key, self.latency_env = base_url, key, latency_env
        self.life_span_s, self.capacity = 600.0, 256
        self.has_engine = True
        self.dead: str | None = None  # why it died
        self.died = asyncio.Event()
        self.activated = asyncio.Event()  # somebody asked for what a call makes
        self.submitted: list[Semantic] = []
        self.log: list[Semantic] = []
        self.deleted: list[int] = []
        self.url = ""
        self._forget()
        self._runner: web.AppRunner | None = None
        self._http: ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # Its life -------------------------------------------------------------------------------------------------------

    async def start(self, port: int = 0) -> str:
        app = web.Application()
        app.router.add_post("/v1/session", self._wrap(self._open))
        app.router.add_delete("/v1/session/{id}", self._wrap(self._close))
        app.router.add_post("/v1/semantic_call", self._wrap(self._submit))
        app.router.add_get("/v1/semantic_var/{id}", self._wrap(self._get))
        self._runner, self._http = web.AppRunner(app, shutdown_timeout=0.1), ClientSession()
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._tasks.add(asyncio.create_task(self._loop()))
        return self.url

    async def stop(self) -> None:
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if self._http:
            await self._http.close()
        if self._runner:
            await self._runner.cleanup()
        self._runner = None

    async def restart(self) -> None:
        """Another process in its place: it knows nothing, and gives its ids out anew."""
        port = int(self.url.rpartition(":")[2])
        await self.stop()
        self._forget()
        self.dead = None
        await self.start(port)

    async def die(self, why: str) -> None:
        """One error in a task of its own ends the process (`fail_fast`)."""
        self.dead = self.dead or why
        self.died.set()
        await self.stop()

    def advance(self, seconds: float) -> None:
        """Let so much time pass, in no time."""
        self._ahead_s += seconds

    def spoil(self, session: int) -> None:
        """The session's executor had an exception: it goes bad, and who waits in it waits for good."""
        self.sessions[session].bad = True

    def _forget(self) -> None:
        self.sessions: dict[int, Kept] = {}
        self._free: deque[int] = deque()
        self._next_id, self._ahead_s, self._running = 0, 0.0, 0
        self._queue: list[tuple[Semantic, asyncio.Event]] = []

    def _now(self) -> float:
        return asyncio.get_running_loop().time() + self._ahead_s

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(0.005)
            for id_, kept in list(self.sessions.items()):
                if kept.bad or self._now() - kept.touched > self.life_span_s:
                    self._remove(id_)
            self._schedule()
            stale = [s for s in self.submitted if s.payload.get("cache_prefix", True) and s.criteria is None]
            if stale and self._ahead_s > 600:
                return await self.die("a cached prefix expired whose call never ran")

    def _schedule(self) -> None:
        """Let those run that an engine can take; the others wait, for good if need be."""
        engine_type = "text" if self.base_url else "token_id"
        for call, scheduled in list(self._queue):
            bound = LATENCY_BOUND if call.criteria == "latency" else self.capacity
            if self.has_engine and call.model_type == engine_type and self._running < bound:
                self._queue.remove((call, scheduled))
                self._running += 1
                self.log.append(call)
                scheduled.set()

    # Its API --------------------------------------------------------------------------------------------------------

    def _wrap(self, handle: Any) -> Any:
        async def handler(request: web.Request) -> web.Response:
            try:
                payload = json.loads(await request.text())  # a body, with every method
                return web.json_response(await handle(request, payload))
            except UserError as error:
                said = f"ParrotError(type=<class 'RuntimeError'>, msg={error})"
                return web.json_response({"error": said, "traceback": "Traceback: ..."}, status=500)
            except Exception:
                reply = web.Response(text="Internal Server Error", status=500)
                reply.force_close()
                return reply

        return handler

    async def _open(self, _: web.Request, payload: dict[str, Any]) -> dict[str, Any]:
        if self._free:
            id_ = self._free.popleft()
        else:
            id_, self._next_id = self._next_id, self._next_id + 1
        self.sessions[id_] = Kept(touched=self._now())
        return {"session_id": id_, "session_auth": "1"}

    async def _close(self, request: web.Request, payload: dict[str, Any]) -> dict[str, Any]:
        id_ = int(request.match_info["id"])
        self._session(id_)
        self._remove(id_)
        self.deleted.append(id_)
        return {}

    async def _submit(self, _: web.Request, payload: dict[str, Any]) -> dict[str, Any]:
        assert self.latency_env is not None, "Please specify the environment variable SIMULATE_NETWORK_LATENCY_PRT"
        assert int(self.latency_env) in (0, 1)
        kept = self._session(payload["session_id"])
        kept.touched = self._now()
        number, kept.requests = kept.requests, kept.requests + 1
        parameters = {}
        for given in payload["parameters"]:
            if unknown := given.keys() - PARAMETER or (given.get("sampling_config") or {}).keys() - SAMPLING:
                raise UserError(f"__init__() got an unexpected keyword argument {sorted(unknown)[0]!r}")
            if not given["is_output"] and given.get("value") is None and given.get("var_id") is None:
                raise UserError("Input parameter should have either var_id or value.")
            assert given["name"] not in parameters
            parameters[given["name"]] = given
        inputs: list[Variable] = []
        out: Variable | None = None
        sampling: dict[str, Any] = {}
        info = []
        for name, text in self._chunks(payload["template"]):
            given = parameters[name] if name else {"is_output": False, "value": text}
            assert out is None, "two outputs make it lose its way"
            if given["is_output"]:
                assert inputs, "Gen node should have a prev node."
                out, sampling = self._variable(kept), given.get("sampling_config") or {}
                made = out
            elif given.get("var_id") is not None:
                made = kept.variables[given["var_id"]]
                inputs.append(made)
            else:
                made = self._variable(kept)
                made.content = given["value"]
                made.ready.set()
                inputs.append(made)
            if name:
                info.append(
                    {"parameter_name": name, "is_output": given["is_output"], "var_name": name, "var_id": made.id}
                )
        assert out is not None
        model_type, models = payload.get("model_type", "token_id"), payload.get("models", [])
        call = Semantic(payload["session_id"], inputs, out, sampling, model_type, models, payload)
        out.producer = call
        self.submitted.append(call)
        return {"request_id": number, "param_info": info}

    async def _get(self, request: web.Request, payload: dict[str, Any]) -> dict[str, Any]:
        kept = self._session(payload["session_id"])
        criteria = payload["criteria"]
        kept.touched = self._now()
        variable = kept.variables.get(request.match_info["id"])
        if variable is None:
            raise UserError(f"Unknown Semantic Variable ID: {request.match_info['id']}")
        if variable.producer is not None and variable.producer.criteria is None:
            assert criteria in ("latency", "throughput")
            self._activate(variable.producer, criteria)
        await variable.ready.wait()
        return {"content": variable.content}

    # Its work -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _chunks(template: str) -> Iterator[tuple[str, str]]:
        """(placeholder, "") or ("", text); text after the last placeholder is dropped."""
        last = 0
        for found in PLACEHOLDER.finditer(template):
            if found.start() > last:
                yield "", template[last : found.start()]
            yield found[1], ""
            last = found.end()

    def _session(self, id_: int) -> Kept:
        if id_ not in self.sessions:
            raise UserError(f"Session (session_id={id_}) not found.")
        if self.sessions[id_].bad:
            raise UserError(f"Session (session_id={id_}) is not valid.")
        return self.sessions[id_]

    def _remove(self, id_: int) -> None:
        del self.sessions[id_]
        self._free.append(id_)

    @staticmethod
    def _variable(kept: Kept) -> Variable:
        made = Variable(str(uuid.uuid4()))
        kept.variables[made.id] = made
        return made

    def _activate(self, call: Semantic, criteria: str) -> None:
        for variable in call.inputs:
            if variable.producer is not None and variable.producer.criteria is None:
                self._activate(variable.producer, criteria)
        call.criteria = criteria
        self.activated.set()
        self._tasks.add(asyncio.create_task(self._execute(call)))

    async def _execute(self, call: Semantic) -> None:
        for variable in call.inputs:
            await variable.ready.wait()
        scheduled = asyncio.Event()
        self._queue.append((call, scheduled))
        await scheduled.wait()
        try:
            prompt = "".join(variable.content or "" for variable in call.inputs)
            text = await self._generate(call, prompt)
        finally:
            self._running -= 1
        if isinstance(text, str):
            call.out.content = text
            call.out.ready.set()
        else:
            await self.die("its engine had no text, or failed")

    async def _generate(self, call: Semantic, prompt: str) -> Any:
        if not self.base_url:
            return "word " * min(call.sampling.get("max_gen_length", 512), 50)
        assert self._http
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "model": "whatever",
            "temperature": call.sampling.get("temperature", 1.0),
            "max_tokens": call.sampling.get("max_gen_length", 512),
            "stop": call.sampling.get("stop_str"),
        }
        for _ in range(TRIES):
            try:
                async with self._http.post(
                    f"{self.base_url}/chat/completions", json=body, headers={"Authorization": f"Bearer {self.key}"}
                ) as reply:
                    if reply.status == 200:
                        return (await reply.json())["choices"][0]["message"]["content"]
            except ClientError:
                await asyncio.sleep(0.05)
        return None


async def serve(port: int, base_url: str, key: str) -> None:
    core = FakeCore(base_url, key)
    print(await core.start(port), flush=True)
    await core.died.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
