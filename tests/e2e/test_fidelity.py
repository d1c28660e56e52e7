"""A client gets the bytes of the engine's stream, all of them, minus the usage that only the gateway asked for.

`recorded/` holds what real engines sent to requests that asked for usage: vLLM 0.32.0 and llama.cpp (xllamacpp
2026.10.11549), both with SmolLM2-135M-Instruct. The others are written by hand, in the ways of hosted services and of
what stands in front of them. Every one is replayed over real sockets, cut anywhere: within a frame, a character, a
line's end, or the HTTP chunk around it.
"""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage import Gateway, running

RECORDED = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "recorded").glob("*.sse"))}
DONE = b"data: [DONE]\n\n"
FRAME = re.compile(rb".+?(?:\r\n\r\n|\n\n|\r\r|\Z)", re.DOTALL)


def event(*choices: dict[str, Any], **more: Any) -> bytes:
    """A frame as OpenAI sends it."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunk = json.dumps({**head, "choices": choices, **more}, separators=(",", ":"), ensure_ascii=False)
    return b"data: " + chunk.encode() + b"\n\n"


def choice(finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def usage(prompt: int, output: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def call(**call: Any) -> list[dict[str, Any]]:
    return [{"index": 0, **call}]


LOOKALIKE = 'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
OPENED = event(choice(role="assistant", content="", refusal=None), usage=None, obfuscation="nXq")
SPOKEN = [event(choice(content=text), usage=None, obfuscation="p") for text in ("Grüße", " 中文", " 👩‍🚀\n\n")]
CLOSED = event(choice("stop"), usage=None, obfuscation="k")
USAGE = event(usage=usage(9, 3))
OPENAI = b"".join([OPENED, *SPOKEN, CLOSED, USAGE, DONE])
LINED = json.dumps({"choices": [choice(content="Hi")], "usage": None}, indent=1).replace("\n", "\ndata: ").encode()

WRITTEN = {
    "openai": OPENAI,
    "openai tools": b"".join(
        [
            event(choice(role="assistant", content=None), usage=None),
            event(
                choice(tool_calls=call(id="c", type="function", function={"name": "f", "arguments": ""})), usage=None
            ),
            event(choice(tool_calls=call(function={"arguments": '{"usage":'})), usage=None),
            event(choice(tool_calls=call(function={"arguments": '{"a":1}}'})), usage=None),
            event(choice("tool_calls"), usage=None),
            USAGE,
            DONE,
        ]
    ),
    "azure": event(prompt_filter_results=[{"prompt_index": 0}], usage=None) + OPENAI,
    "usage in the last chunk": OPENED + SPOKEN[0] + event(choice("stop", content="!"), usage=usage(9, 2)) + DONE,
    "two choices": b"".join(
        [
            *(event(choice(index=n, role="assistant", content=""), usage=None) for n in (0, 1)),
            *(event(choice(index=n, content="é"), usage=None) for n in (1, 0, 1)),
            *(event(choice("stop", index=n), usage=None) for n in (0, 1)),
            USAGE,
            DONE,
        ]
    ),
    "\\r\\n": OPENAI.replace(b"\n", b"\r\n"),
    "\\r": OPENAI.replace(b"\n", b"\r"),
    "comments": b"".join(
        [
            b": PROCESSING\n\n: PROCESSING\n\n",
            OPENED,
            b":\n\n",
            b"retry: 1000\n\n",
            b": with a frame\nid: 7\n" + SPOKEN[0],
            b"event: ping\ndata: {}\n\n",
            CLOSED,
            b": keep-alive\n\n",
            USAGE,
            b"\n\n: keep-alive\n\n",
            DONE,
        ]
    ),
    "several lines": OPENED + b"data: " + LINED + b"\n\n" + CLOSED + USAGE + DONE,
    "no space": OPENAI.replace(b"data: ", b"data:"),
    "no [DONE]": OPENAI.removesuffix(DONE),
    "no [DONE], no end of the last frame": OPENAI.removesuffix(b"\n\n" + DONE),
    "no usage, no [DONE], no end": b"".join([OPENED, *SPOKEN, CLOSED]).strip(),
    "more after [DONE]": OPENAI + b": bye\n\n",
    "a text like usage": OPENED + event(choice(content=LOOKALIKE), usage=None) + CLOSED + USAGE + DONE,
    "a long frame": OPENED + event(choice(content="é\n" * 100_000), usage=None) + CLOSED + USAGE + DONE,
}
STREAMS = {**RECORDED, **WRITTEN}
TOKENS = {  # of the prompt and of the output, as the engine counted
    "vllm_chat": (36, 8),
    "vllm_logprobs": (36, 3),
    "vllm_choices": (36, 6),
    "vllm_continuous": (36, 3),
    "vllm_tools": (36, 24),
    "vllm_unicode": (36, 14),
    "vllm_completion": (2, 3),
    "vllm_responses": (36, 4),
    "llamacpp_chat": (36, 8),
    "llamacpp_logprobs": (36, 4),
    "llamacpp_choices": (36, 6),
    "llamacpp_completion": (2, 3),
    "llamacpp_responses": (36, 4),
    "usage in the last chunk": (9, 2),
    "no usage, no [DONE], no end": (None, 3),
}


def path_of(name: str) -> str:
    endings = {"_completion": "/v1/completions", "_responses": "/v1/responses"}
    return next((path for ending, path in endings.items() if name.endswith(ending)), "/v1/chat/completions")


def without_usage(stream: bytes) -> bytes:
    """The stream without frames that hold usage and nothing else."""
    return b"".join(frame for frame in FRAME.findall(stream) if not holds_usage_alone(frame))


def holds_usage_alone(frame: bytes) -> bool:
    try:
        said = json.loads(b"".join(line[5:] for line in frame.splitlines() if line.startswith(b"data:")))
    except ValueError:
        return False
    return said.get("choices") == [] and isinstance(said.get("usage"), dict)


def cut(data: bytes, at: list[float]) -> list[bytes]:
    """The pieces between these places, each a share of the whole."""
    places = sorted({0, len(data), *(int(share * len(data)) for share in at)})
    return [data[begin:end] for begin, end in pairwise(places)]


def reply(pieces: list[bytes], framing: str) -> bytes:
    """The HTTP around a stream."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    if framing == "chunked":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
    length = f"Content-Length: {sum(map(len, pieces))}\r\n" if framing == "length" else "Connection: close\r\n"
    return f"{head}{length}\r\n".encode() + b"".join(pieces)


class Replay:
    """An engine that writes to the socket what it is told to, as often as it is told to; it is always well."""

    writes: list[bytes]
    asked: list[dict[str, Any]]

    def __enter__(self) -> "Replay":
        self.writes, self.asked = [], []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = True
        try:
            while kept:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if not head.startswith(b"post"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    continue
                self.asked.append(json.loads(body))
                for piece in self.writes:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                kept = b"\r\nConnection: close\r\n" not in b"".join(self.writes)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway needs this connection no longer
        finally:
            writer.close()

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture(scope="module")
def engine() -> Iterator[Replay]:
    with Replay() as engine:
        yield engine


@pytest.fixture(scope="module")
def gateway(engine: Replay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that could ask a second engine, and so looks closely at how a stream begins."""
    engines = [{"name": name, "kind": "openai", "url": engine.url, "models": ["m"]} for name in ("e1", "e2")]
    with running(Gateway({"engines": engines}, tmp_path_factory.mktemp("fidelity"))) as gateway:
        yield gateway


def replayed(
    gateway: Gateway, engine: Replay, name: str, writes: list[bytes], wants_usage: bool, **headers: str
) -> bytes:
    """What the client gets of a stream."""
    engine.writes, before = writes, len(engine.asked)
    body: dict[str, Any] = {"model": "m", "stream": True}
    body |= {"stream_options": {"include_usage": True}} if wants_usage else {}
    got = gateway.http.post(
        path_of(name), json=body, headers={key.replace("_", "-"): of for key, of in headers.items()}
    )
    assert (got.status_code, got.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    (asked,) = engine.asked[before:]
    assert ("stream_options" in asked) == (wants_usage or not name.endswith("_responses"))
    return got.content


PLACES = st.lists(st.floats(0, 1), max_size=12)


@pytest.mark.parametrize("name", STREAMS)
@settings(max_examples=20, deadline=None, database=None, print_blob=True)
@given(
    chunks=PLACES, writes=PLACES, framing=st.sampled_from(["chunked", "chunked", "close", "length"]), asks=st.booleans()
)
def test_the_engines_bytes_however_they_are_cut(
    gateway: Gateway, engine: Replay, name: str, chunks: list[float], writes: list[float], framing: str, asks: bool
) -> None:
    stream = STREAMS[name]
    sent = cut(reply(cut(stream, chunks), framing), writes)
    assert replayed(gateway, engine, name, sent, asks) == (stream if asks else without_usage(stream))


@pytest.mark.parametrize("name", [name for name, stream in STREAMS.items() if len(stream) < 2500])
def test_byte_by_byte(gateway: Gateway, engine: Replay, name: str) -> None:
    stream = STREAMS[name]
    chunks = reply([stream[n : n + 1] for n in range(len(stream))], "chunked")
    head, _, body = chunks.partition(b"\r\n\r\n")
    writes = [head + b"\r\n\r\n", *(body[n : n + 6] for n in range(0, len(body), 6))]  # each a chunk of one byte
    assert replayed(gateway, engine, name, writes, wants_usage=False) == without_usage(stream)


@pytest.mark.parametrize("name", STREAMS)
def test_what_the_gateway_adds_is_a_comment(gateway: Gateway, engine: Replay, name: str) -> None:
    stream = STREAMS[name]
    got = replayed(gateway, engine, name, [reply([stream], "chunked")], False, x_energy_report="1")
    comment = re.findall(rb": energy {[^\n]*}\n\n", got)
    assert len(comment) == 1 and json.loads(comment[0].removeprefix(b": energy "))["provisional"] is True
    plain, whole = got.replace(comment[0], b""), without_usage(stream)
    assert plain == whole or plain == whole + b"\n\n", "an end for a frame that had none"


@pytest.fixture(scope="module")
def books(gateway: Gateway, engine: Replay) -> dict[str, dict[str, Any]]:
    """What the ledger has of each stream, by its name."""
    for number, name in enumerate(STREAMS):
        tags = {"x_workflow_id": "books", "x_workflow_node": f"stream-{number}"}
        replayed(gateway, engine, name, [reply([STREAMS[name]], "chunked")], False, **tags)
    of = {request["node"]: request for request in gateway.run("books")["requests"]}
    return {name: of[f"stream-{number}"] for number, name in enumerate(STREAMS)}


@pytest.mark.parametrize("name", STREAMS)
def test_the_books_have_the_engines_count(books: dict[str, dict[str, Any]], name: str) -> None:
    request = books[name]
    prompt, output = TOKENS.get(name, (9, 3))
    assert (request["prompt_tokens"], request["output_tokens"]) == (prompt, output)
    assert request["usage"] == ("frames" if prompt is None else "engine")
    assert (request["outcome"], request["attempts"]) == ("ok", 1)
