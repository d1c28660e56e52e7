"""One call over HTTP: what is asked of an OpenAI endpoint, and what came back with its times."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from loadgen import prompt
from loadgen.answer import AnswerError, StreamedAnswer, Usage, model_ids, refusal, whole_answer
from loadgen.lengths import Lengths
from loadgen.prompt import Message, Outputs
from loadgen.wire import Reply, Server, WireError
from loadgen.workload import Call

TEMPERATURE, TOP_P = 0.7, 1.0  # the paper's
MODES = ("calls", "pasted", "nodes")
Mode = Literal["calls", "pasted", "nodes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is loaded, and how it is asked.

    `exact` asks for prompts as token ids of exact length and for answers of exactly `max_tokens`; it needs an
    endpoint with `/tokenize`, `/v1/completions` and `ignore_eos`, as vLLM has them. `body` are further fields of every
    request. Without a `model` it is the first that the endpoint lists. `run_name` stands in for the workload's name.

    `mode` says who puts answers into later prompts. `calls`: the client, cut to what the plan says. `nodes`: the
    gateway; all calls of a run are sent at once, with placeholders. It puts whole answers there, and ids cannot hold a
    placeholder: `exact` prompts are then texts (`/detokenize` is needed), as exact as texts can be. `pasted`: the
    client, with the very same texts and whole answers: what `nodes` is to be held against. A plan never allows an
    answer to be longer than what is quoted of it, so lengths are the plan's in each.
    """

    url: str = "http://127.0.0.1:8080"
    model: str = ""
    key: str | None = field(default=None, repr=False)
    stream: bool = True
    exact: bool = False
    mode: Mode = "calls"
    run_name: str = ""
    cache_salt: str | None = None
    temperature: float = TEMPERATURE
    top_p: float = TOP_P
    timeout_s: float = 600.0
    body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")

    def manner(self) -> dict[str, Any]:
        """How it is asked, for the record: neither where nor with which key."""
        fields = ("stream", "exact", "mode", "run_name", "temperature", "top_p", "timeout_s")
        return {name: getattr(self, name) for name in fields} | {"body": dict(self.body)}


@dataclass(slots=True)
class Answered:
    """One call as it went; times are the clock's. `error` is null where the answer is whole."""

    started_s: float
    ended_s: float = 0.0
    first_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    text: str = ""
    usage: Usage = field(default_factory=Usage)
    id: str | None = None
    error: str | None = None


class Client:
    """Asks one target. `clock` gives seconds and never goes back."""

    def __init__(self, target: Target, clock: Callable[[], float]) -> None:
        self.target = target
        self.server = Server(target.url, target.timeout_s)
        self.headers = {"Accept-Encoding": "identity"}
        if target.key:
            self.headers["Authorization"] = f"Bearer {target.key}"
        self.model = target.model
        self.inexact: str | None = None  # what is not exact about lengths though it should be
        self._clock = clock
        self._lengths = Lengths(self._tokenize, self._detokenize) if target.exact else None

    def prepare(self) -> None:
        """Find the model, and whether lengths can be exact. Raises AnswerError when there is no model to ask."""
        if not self.model:
            try:
                status, body = self.server.get("/v1/models", self.headers)
            except WireError as error:
                raise AnswerError(f"no list of models: {error}") from None
            if status != 200:
                raise refusal(status, body)
            if not (models := model_ids(body)):
                raise AnswerError("no model is listed")
            self.model = models[0]
        if self._lengths is not None:
            asked = "/tokenize"
            try:
                ids = self._tokenize("a few words")
                if self.target.mode != "calls":
                    asked = "/detokenize"
                    self._detokenize(ids)
            except AnswerError as error:
                self.inexact, self._lengths = f"no exact lengths: {asked} says {error}", None
            else:
                if self.target.mode != "calls":
                    self.inexact = "prompts are texts: exact piece by piece, and not where two pieces meet"

    @property
    def exact(self) -> bool:
        """Whether prompts are token ids."""
        return self._lengths is not None and self.target.mode == "calls"

    def learn(self, text: str) -> None:
        """Make ready an answer that later prompts will quote."""
        if self._lengths is not None and self.target.mode == "calls" and text:
            with suppress(AnswerError):  # the call that needs it will say so
                self._lengths.learn(text)

    def ask(self, call: Call, tags: Mapping[str, str], outputs: Outputs) -> Answered:
        """Send one call and read its answer to the end; what goes wrong stands in `error`."""
        try:
            path, body = self._request(call, outputs)
            answered = Answered(self._clock())
        except AnswerError as error:
            now = self._clock()
            return Answered(now, now, error=str(error))
        headers = {**self.headers, **tags, "Content-Type": "application/json"}
        try:
            with self.server.send("POST", path, headers, body) as reply:
                answered.id = reply.headers.get(b"x-request-id", b"").decode("latin-1") or None
                if reply.status != 200:
                    raise refusal(reply.status, reply.read())
                if self.target.stream:
                    self._read_stream(reply, answered)
                else:
                    answered.text, answered.usage = whole_answer(reply.read())
        except (AnswerError, WireError) as error:
            answered.error = str(error)
        answered.ended_s = self._clock()
        return answered

    def _read_stream(self, reply: Reply, answered: Answered) -> None:
        stream, pieces, last_s = StreamedAnswer(), 0, 0.0
        for data in reply:
            stream.feed(data)
            came = len(stream.pieces) - pieces
            if not came:
                continue
            now = self._clock()
            if answered.first_s is None:
                answered.first_s = last_s = now
                came -= 1
            if came:  # what comes together has no time between
                answered.gaps_s += (now - last_s, *(0.0,) * (came - 1))
            pieces, last_s = len(stream.pieces), now
        answered.text, answered.usage = stream.close(), stream.usage

    def _request(self, call: Call, outputs: Outputs) -> tuple[str, bytes]:
        target = self.target
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": call.max_tokens,
            "temperature": target.temperature,
            "top_p": target.top_p,
            "stream": target.stream,
        }
        if target.stream:
            body["stream_options"] = {"include_usage": True}
        if target.cache_salt is not None:
            body["cache_salt"] = target.cache_salt
        if self._lengths is not None:
            body["ignore_eos"] = True
        if self._lengths is not None and target.mode == "calls":
            path, body["prompt"] = "/v1/completions", self._lengths.prompt(call, outputs)
        else:
            path, body["messages"] = "/v1/chat/completions", self._messages(call, outputs)
        return path, orjson.dumps({**body, **target.body})

    def _messages(self, call: Call, outputs: Outputs) -> list[Message]:
        text_of = prompt.about if self._lengths is None else self._lengths.text
        match self.target.mode:
            case "calls":
                return call.messages(outputs)
            case "pasted":
                return prompt.whole_messages(call.prompt, outputs, text_of)
            case "nodes":
                return prompt.named_messages(call.prompt, text_of)

    def _tokenize(self, text: str) -> list[int]:
        """As vLLM is asked, and llama.cpp, which wants the text as `content`."""
        fields = {"prompt": text, "content": text, "add_special_tokens": False}
        ids = self._of_tokenizer("/tokenize", fields).get("tokens")
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise AnswerError("an answer without tokens")
        return ids

    def _detokenize(self, ids: list[int]) -> str:
        """As vLLM says it, and llama.cpp, which says `content`."""
        said = self._of_tokenizer("/detokenize", {"tokens": ids})
        text = said.get("prompt", said.get("content"))
        if not isinstance(text, str):
            raise AnswerError("an answer without a text")
        return text

    def _of_tokenizer(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        try:
            status, answer = self.server.post(path, self.headers, orjson.dumps({"model": self.model, **fields}))
        except WireError as error:
            raise AnswerError(str(error)) from None
        if status != 200:
            raise refusal(status, answer)
        try:
            return dict(orjson.loads(answer))
        except (ValueError, TypeError):
            raise AnswerError("an answer of a tokenizer that is no object") from None
