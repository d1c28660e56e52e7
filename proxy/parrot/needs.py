"""What a named call takes from others of its run, on Parrot: their outputs as semantic variables, which Parrot feeds.

The egress has to put the texts themselves into the client's request, for the engine gets that and not Parrot's
rendering; by then Parrot has run the producers, so their texts are known here.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.nodes.hold import NodeCall
from proxy.nodes.placeholders import Named, fill, named, pieces
from proxy.parrot.sessions import Use
from proxy.parrot.wire import Text, Var
from proxy.refusal import Refusal


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """A call that Parrot has taken. `text` is what it made once that is known, None for nothing."""

    use: Use
    var: Var
    text: "asyncio.Future[str | None]"


class Needs:
    """The nodes that one named call names; without a call, none."""

    def __init__(self, call: NodeCall | None) -> None:
        self._call = call
        self._names = frozenset(call.needs) if call is not None else frozenset()
        self._handles: dict[str, Handle] = {}
        self._texts: dict[str, str] = {}

    async def inputs(self, texts: Sequence[str], use: Use) -> list[Text | Var]:
        """A prompt's parts, for a call in this session: another session's variables are taken as texts.

        Raises Refusal where a producer is none.
        """
        if self._call is not None:
            for name in self._call.needs:
                handle, text = await self._call.producer(name, lambda one: isinstance(one, Handle) and one.use is use)
                if handle is None:
                    self._handles.pop(name, None)
                    self._texts[name] = text or ""
                else:
                    self._handles[name] = handle
        parts: list[Text | Var] = []
        for text in texts:
            for piece in pieces(text, self._names) if self._call is not None else [text]:
                handle = self._handles.get(piece.name) if isinstance(piece, Named) else None
                said = self._texts.get(piece.name, "") if isinstance(piece, Named) else piece
                if handle is not None:
                    parts.append(handle.var)
                elif said:
                    parts.append(Text(said))
        return parts or [Text(" ")]  # nothing at all is more than Parrot can take

    def fill(self, body: Mapping[str, Any]) -> bool:
        """Put the outputs into the client's request. False where one is missing, for its producer failed.

        Raises Refusal (413) where that makes it larger than a request may be.
        """
        if self._call is None:
            return True
        outputs = dict(self._texts)
        for name, handle in self._handles.items():
            text = handle.text.result() if handle.text.done() else None
            if text is None:
                return False
            outputs[name] = text
        more = sum(times * len(outputs[name].encode()) for name, times in named(body, self._names).items())
        most_bytes = self._call.nodes.limits.body_bytes
        if len(orjson.dumps(body)) + more > most_bytes:
            what = f"with the outputs of its nodes the body is larger than {most_bytes} bytes"
            raise Refusal(413, what, "body_too_large")
        fill(body, outputs, self._names)
        return True
