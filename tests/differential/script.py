"""What is sent to both engines: scripts of requests, as data. Prompts are token ids wherever a count is compared."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from servers import BLOCK, MAX_MODEL_LEN, MODEL

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
NONCE = random.randrange(10_000)  # an engine that played the scripts before must not know the prompts


@dataclass(frozen=True)
class Request:
    """One HTTP request. With `read` the client leaves its stream after so many frames; with `held`, once all requests
    of its script have arrived."""

    path: str
    body: Mapping[str, Any] | bytes | None = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    read: int | None = None
    held: bool = False

    @property
    def exact(self) -> bool:
        """Whether the number of its prompt's tokens does not depend on a tokenizer."""
        prompt = self.body.get("prompt") if isinstance(self.body, Mapping) else None
        return isinstance(prompt, list)

    @property
    def single(self) -> bool:
        """Whether it is one sequence to the engine."""
        body = self.body if isinstance(self.body, Mapping) else {}
        prompt = body.get("prompt")
        return body.get("n", 1) == 1 and not (isinstance(prompt, list) and prompt and isinstance(prompt[0], list))


@dataclass(frozen=True)
class Script:
    """Requests sent `in turn`, each after the answer to the one before; or so that they `pile up`, each once the one
    before is seen to run or wait; or `at once`.


    With `not_emulated` the emulator refuses, and says so, what a model would do.
    """

    name: str
    requests: Sequence[Request]
    sent: Literal["in turn", "pile up", "at once"] = "in turn"
    not_emulated: bool = False


def ids(seed: int, count: int) -> list[int]:
    """A prompt that no other seed shares a block with; within the vocabulary of every model."""
    return [1000 + (NONCE + seed) % 25_000, *(1000 + (seed * 4099 + n * 37) % 25_000 for n in range(1, count))][:count]


def chat(content: Any = "How many joules is that?", **body: Any) -> Request:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 4}
    return Request(CHAT, {**asked, "ignore_eos": True, **body})


def text(prompt: Any, read: int | None = None, **body: Any) -> Request:
    asked = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 4, "ignore_eos": True}
    return Request(TEXT, {**asked, **body}, read=read)


def one(name: str, request: Request, **how: Any) -> Script:
    return Script(name, [request], **how)


def get(path: str) -> Request:
    return Request(path, method="GET")


USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CONTINUOUS = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}

ANSWERS = [
    one("models", get("/v1/models")),
    one("one model", get(f"/v1/models/{MODEL}")),
    one("no such model", get("/v1/models/other")),
    one("health", get("/health")),
    one("ping", get("/ping")),
    one("version", get("/version")),
    one("chat", chat()),
    one("chat without a model", Request(CHAT, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1})),
    one("chat in parts", chat([{"type": "text", "text": "how many"}, {"type": "text", "text": "joules"}])),
    one("chat, max_completion_tokens", chat(max_tokens=None, max_completion_tokens=3)),
    one("two choices, but greedy", chat(n=2)),
    one("chat, two choices", chat(n=2, temperature=0.8)),
    one("chat, streamed", chat(stream=True)),
    one("chat, streamed with usage", chat(**USAGE)),
    one("chat, streamed with usage in every frame", chat(**CONTINUOUS)),
    one("chat, streamed, one token", chat(**USAGE, max_tokens=1)),
    one("chat, streamed, two choices", chat(**USAGE, n=2, temperature=0.8, seed=1)),
    one("chat, token ids returned", chat(return_token_ids=True), not_emulated=True),
    one("chat, request id", Request(CHAT, chat().body, headers={"x-request-id": "own-id-1"})),
    one("chat, tools without a parser", chat(tools=[TOOL])),
    one("chat, tool choice none", chat(tools=[TOOL], tool_choice="none")),
    one("chat, logprobs", chat(logprobs=True, top_logprobs=2), not_emulated=True),
    one("text, ids", text(ids(1, 10))),
    one("text, words", text("How many joules is that")),
    one("text, two prompts", text([ids(2, 10), ids(3, 20)])),
    one("text, two choices", text(ids(4, 10), n=2, temperature=0.8)),
    one("text, streamed", text(ids(5, 10), stream=True)),
    one("text, streamed with usage", text(ids(6, 10), **USAGE)),
    one("text, streamed with usage in every frame", text(ids(7, 10), **CONTINUOUS)),
    one("text, streamed, two prompts", text([ids(8, 10), ids(9, 20)], **USAGE)),
    one("text, echo", text(ids(10, 10), echo=True)),
    one("text, echo, streamed", text(ids(15, 10), echo=True, stream=True)),
    one("text, truncated", text(ids(16, 100), truncate_prompt_tokens=40)),
    one("text, no limit but the context", text(ids(17, MAX_MODEL_LEN - 5), max_tokens=None)),
    one("text, default length", Request(TEXT, {"model": MODEL, "prompt": ids(11, 10), "ignore_eos": True})),
    one("text, fills the context", text(ids(12, MAX_MODEL_LEN - 8), max_tokens=8)),
    one("text, token ids returned", text(ids(13, 10), return_token_ids=True), not_emulated=True),
    one("tokenize words", Request("/tokenize", {"model": MODEL, "prompt": "How many joules"})),
    one("tokenize a chat", Request("/tokenize", {"model": MODEL, "messages": [{"role": "user", "content": "a"}]})),
    one("detokenize nothing", Request("/detokenize", {"model": MODEL, "tokens": []})),
    one("detokenize", Request("/detokenize", {"model": MODEL, "tokens": ids(14, 5)})),
]

REFUSALS = [
    one("unknown model", chat(model="other")),
    one("unknown model, streamed", chat(model="other", stream=True)),
    one("unknown model, text", text(ids(20, 5), model="other")),
    one("not JSON", Request(CHAT, b'{"model": "smol", "messages": [', headers={"content-type": "application/json"})),
    one("a JSON list", Request(CHAT, b"[]", headers={"content-type": "application/json"})),
    one("no body", Request(CHAT, b"", headers={"content-type": "application/json"})),
    one("not said to be JSON", Request(CHAT, json.dumps(chat().body).encode(), headers={"content-type": "text/plain"})),
    one("no messages", Request(CHAT, {"model": MODEL, "max_tokens": 1})),
    one("empty messages", Request(CHAT, {"model": MODEL, "messages": [], "max_tokens": 1})),
    one("messages of a wrong type", Request(CHAT, {"model": MODEL, "messages": "hello", "max_tokens": 1})),
    one("a message without a role", Request(CHAT, {"model": MODEL, "messages": [{"content": "a"}], "max_tokens": 1})),
    one("an unknown field", chat(no_such_field=1)),
    one("no prompt", Request(TEXT, {"model": MODEL, "max_tokens": 1})),
    one("empty prompt", text("")),
    one("empty prompt of ids", text([])),
    one("one prompt of no ids", text([[]])),
    one("one prompt of no ids, streamed", text([[]], stream=True)),
    one("an id outside the vocabulary", text([2**40])),
    one("an id outside the vocabulary, streamed", text([2**40], stream=True)),
    one("empty prompt of ids, streamed", text([], stream=True)),
    one("a negative id", text([-1])),
    one("too long", text(ids(21, MAX_MODEL_LEN + 1))),
    one("as long as the context", text(ids(22, MAX_MODEL_LEN))),
    one("too long with its output", text(ids(23, MAX_MODEL_LEN - 8), max_tokens=9)),
    one("too long, streamed", text(ids(24, MAX_MODEL_LEN + 1), stream=True)),
    one("too long a chat", chat("joules " * (MAX_MODEL_LEN + 1))),
    one("negative temperature", chat(temperature=-1)),
    one("temperature of words", chat(temperature="hot")),
    one("temperature over two", chat(temperature=2.5)),
    one("top_p of zero", chat(top_p=0)),
    one("top_p over one", chat(top_p=1.5)),
    one("top_k below", chat(top_k=-2)),
    one("no choices", chat(n=0)),
    one("no choices, text", text(ids(25, 5), n=0)),
    one("negative choices", chat(n=-1)),
    one("no tokens, chat", chat(max_tokens=0)),
    one("no tokens, text", text(ids(26, 5), max_tokens=0)),
    one("negative tokens", chat(max_tokens=-1)),
    one("negative tokens, text", text(ids(27, 5), max_tokens=-1)),
    one("tokens of words", chat(max_tokens="many")),
    one("more tokens than the context", chat(max_tokens=MAX_MODEL_LEN + 1)),
    one("presence penalty", chat(presence_penalty=3)),
    one("stream options without a stream", chat(stream_options={"include_usage": True})),
    one("suffix", text(ids(28, 5), suffix="end")),
    one("a seed too large", chat(seed=2**64)),
    one("stream of words", chat(stream="maybe")),
    one("min_tokens over max_tokens", chat(min_tokens=9, max_tokens=4)),
    one("empty cache salt", chat(cache_salt="")),
    one("priority under fcfs", chat(priority=1)),
    one("too many logprobs", chat(logprobs=True, top_logprobs=1000)),
    one("wrong method", get(CHAT)),
    one("embeddings of a model that has none", Request("/v1/embeddings", {"model": MODEL, "input": "a"})),
    one("no such path", Request("/v1/nothing", {})),
]

LONG = ids(40, 640)
CACHE = [
    Script("a prompt again", [text(LONG), text(LONG), text([*LONG, *ids(41, 10)])]),
    Script("a prompt again, streamed", [text(ids(42, 640), **USAGE), text(ids(42, 640), **USAGE)]),
    Script("whole blocks alone", [text(ids(43, 100)), text(ids(43, 100)), text(ids(43, 70))]),
    Script("less than a block", [text(ids(44, BLOCK - 1)), text(ids(44, BLOCK - 1))]),
    Script("exactly a block", [text(ids(45, BLOCK)), text(ids(45, BLOCK)), text([*ids(45, BLOCK), 5000])]),
    Script("a salt apart", [text(ids(46, 128), cache_salt=salt) for salt in ("a", "b", "a")]),
    Script("twice in one request", [text([ids(48, 96), ids(48, 96)]), text([ids(48, 96), ids(48, 96)])]),
]

CANCELLED = [
    Script("left while streaming", [text(ids(60, 64), read=3, **USAGE, max_tokens=1500)]),
]


def held(seed: int) -> Request:
    """What an engine of one sequence is busy with until everybody else is there."""
    return Request(TEXT, text(ids(seed, 16), max_tokens=1900, stream=True).body, held=True)


def header(seed: int, priority: str) -> Request:
    return Request(TEXT, text(ids(seed, 16)).body, headers={"x-vllm-priority": priority})


# With one sequence at a time, at most four requests, and priority scheduling.
QUEUED = [
    Script("in the order of arrival", [held(70), *(text(ids(70 + n, 16)) for n in (1, 2, 3))], sent="pile up"),
    Script(
        "in the order of priority",
        [held(80), *(text(ids(80 + n, 16), priority=priority) for n, priority in enumerate((5, 1, 3), 1))],
        sent="pile up",
    ),
    Script(
        "in the order of the headers' priority",
        [held(85), *(header(85 + n, priority) for n, priority in enumerate(("5", "1", "3"), 1))],
        sent="pile up",
    ),
    Script(
        "one more than may wait",
        [
            held(90),
            *(text(ids(90 + n, 16)) for n in (1, 2, 3)),
            *(text(ids(94, 16)), text(ids(95, 16), stream=True), chat(), chat(stream=True)),
        ],
        sent="pile up",
    ),
    Script(
        "a burst of streams", [text(ids(100 + n, 16), max_tokens=8, stream=True) for n in range(12)], sent="at once"
    ),
    Script("more choices than may wait", [text(ids(96, 16), n=5, temperature=0.8)]),
    Script("not a priority", [text(ids(97, 5), priority="high")]),
]

SCRIPTS = {"usual": [*ANSWERS, *REFUSALS, *CACHE, *CANCELLED], "queued": QUEUED}
