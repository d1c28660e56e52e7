"""One request under way: its sequences, its frames, and a client that may go at any time."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from emulator.server import frames
from emulator.server.frames import Choice, Frames, Usage
from emulator.server.refusal import Refusal, dead
from emulator.server.requests import Sampled
from emulator.server.shell import EngineShell, Feed
from emulator.server.shell import Sequence as EngineSequence

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = [(b"content-type", b"application/json")]
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


class Exchange:
    """The answer to one request: `sequences` in the order of their choices, submitted and followed to their end.

    `prompt_tokens` counts every prompt once, however many choices it has. `reset`, where it is given, drops the
    connection: the stream is to be lost midway.
    """

    def __init__(
        self,
        engine: EngineShell,
        request: Sampled,
        said: Frames,
        sequences: Sequence[EngineSequence],
        feed: Feed,
        prompt_tokens: int,
        block_size: int | None,
        cached_told: bool,
        reset: Callable[[], None] | None,
    ) -> None:
        self._engine, self._request, self._said = engine, request, said
        self._sequences, self._feed = sequences, feed
        self._prompt_tokens, self._block_size, self._cached_told = prompt_tokens, block_size, cached_told
        self._reset = reset
        self._gone = False

    async def stream(self, receive: Receive, send: Send, late: Refusal | None) -> None:
        """Answer frame by frame; `late` is what the engine refuses when the stream has begun already."""
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        try:
            if late is not None:
                raise late
            self._submit()
        except Refusal as refusal:
            await send({"type": "http.response.body", "body": frames.error(refusal) + frames.DONE})
            return
        watching = asyncio.create_task(self._watch(receive))
        try:
            await self._stream(send)
        finally:
            watching.cancel()
            self._withdraw()

    async def whole(self, receive: Receive, send: Send, late: Refusal | None) -> None:
        """Answer when everything is there. Raises Refusal."""
        if late is not None:
            raise late
        self._submit()
        watching = asyncio.create_task(self._watch(receive))
        try:
            while not all(sequence.done for sequence in self._sequences):
                await self._feed.news()
                self._engine.check_alive()
                if self._gone:
                    return
            choices = [self._choice(sequence) for sequence in self._sequences]
            body = self._said.whole(choices, self._usage(whole=True))
            headers = [*JSON, (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:
            watching.cancel()
            self._withdraw()

    async def _stream(self, send: Send) -> None:
        said, always = self._said, self._request.wants_usage_always
        told = [0] * len(self._sequences)
        opened = False
        while True:
            await self._feed.news()
            if self._gone:
                return
            if self._engine.failed is not None:
                await send({"type": "http.response.body", "body": frames.error(dead()) + frames.DONE})
                return
            parts: list[bytes] = []
            for index, sequence in enumerate(self._sequences):
                produced = sequence.produced
                if produced == told[index]:
                    continue
                if not opened:
                    opened = True
                    usage = Usage(len(sequence.prompt), 0) if always else None
                    parts += [said.opening(choice, usage) for choice in range(len(self._sequences))]
                for count in range(told[index] + 1, produced + 1):
                    usage = Usage(len(sequence.prompt), count) if always else None
                    if count < sequence.answer.tokens:
                        parts.append(said.delta(index, sequence.answer.take(count), usage))
                    else:
                        sealed = not self._request.wants_usage
                        parts.append(said.last(index, self._choice(sequence), usage, sealed))
                told[index] = produced
            if self._reset is not None and 2 * sum(told) >= sum(each.answer.tokens for each in self._sequences):
                await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
                await asyncio.sleep(0)  # uvloop writes at the end of its turn
                self._reset()
                while not self._gone:
                    await self._feed.news()
                return
            if all(sequence.done for sequence in self._sequences):
                if self._request.wants_usage:
                    parts.append(said.usage(self._usage(whole=False)))
                await send({"type": "http.response.body", "body": b"".join((*parts, frames.DONE))})
                return
            if parts:
                await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})

    def _submit(self) -> None:
        try:
            for sequence in self._sequences:
                self._engine.submit(sequence)
        except Refusal:
            self._withdraw()
            raise

    def _withdraw(self) -> None:
        for sequence in self._sequences:
            self._engine.cancel(sequence)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._withdraw()
        self._feed.wake()

    def _choice(self, sequence: EngineSequence) -> Choice:
        answer = sequence.answer
        return Choice(answer.take(answer.tokens), answer.finish_reason, answer.stop_reason)

    def _usage(self, whole: bool) -> Usage:
        """vLLM's: of several prompts a whole answer tells what the last one found in the cache, a stream the first."""
        completion = sum(sequence.produced for sequence in self._sequences)
        if not self._cached_told:
            return Usage(self._prompt_tokens, completion)
        sequence = self._sequences[-1 if whole else 0]
        cached, created = sequence.cached_tokens, None
        if self._block_size is not None:
            full = len(sequence.prompt) // self._block_size * self._block_size
            created = max(0, full - cached)
        return Usage(self._prompt_tokens, completion, cached, created)
