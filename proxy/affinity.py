"""Which engine already knows what a request brings: the run it belongs to, or the beginning of its prompt.

Pure and bounded: what was used longest ago is forgotten first. Forgetting costs a cache miss on an engine, no more.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import orjson

BLOCK_CHARS = 256
MOST_BLOCKS = 256  # 64 Ki characters: prompts that agree for so long are told apart by nothing that matters here

Trait = Sequence[int]  # what a request can be recognised by: hashes, the longest beginning last


class Affinity(Protocol):
    """Remembers where requests went; engines are known by their names."""

    def trait(self, tenant: str, run: str, body: Mapping[str, Any]) -> Trait:
        """What this request will be recognised by."""
        ...

    def known(self, trait: Trait) -> Mapping[str, int]:
        """How much of the trait each engine knows: more is better, none is left out."""
        ...

    def went(self, trait: Trait, engine: str) -> None:
        """A request with this trait went to an engine."""
        ...


class NoAffinity:
    """Every engine is as good as any other."""

    def trait(self, tenant: str, run: str, body: Mapping[str, Any]) -> Trait:
        return ()

    def known(self, trait: Trait) -> Mapping[str, int]:
        return {}

    def went(self, trait: Trait, engine: str) -> None:
        pass


class SessionAffinity:
    """A run stays where it was: the later calls of a session share most of their prompt with the earlier ones."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._engine: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._engine)

    def trait(self, tenant: str, run: str, body: Mapping[str, Any]) -> Trait:
        return (hash((tenant, run)),)

    def known(self, trait: Trait) -> Mapping[str, int]:
        engine = self._engine.get(trait[0]) if trait else None
        return {} if engine is None else {engine: 1}

    def went(self, trait: Trait, engine: str) -> None:
        for session in trait:
            self._engine[session] = engine
            self._engine.move_to_end(session)
        while len(self._engine) > self._entries:
            self._engine.popitem(last=False)


class PrefixAffinity:
    """The longest beginning of a prompt that an engine has seen. Tenants do not share: their prompts hash apart."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._engines: OrderedDict[int, tuple[str, ...]] = OrderedDict()  # the latest last, `_COPIES` at most

    def __len__(self) -> int:
        return len(self._engines)

    def trait(self, tenant: str, run: str, body: Mapping[str, Any]) -> Trait:
        """A hash for each beginning of the prompt that is a whole number of blocks long, the shortest first."""
        chain = hash((tenant, str(body.get("model"))))
        hashes: list[int] = []
        for block in _blocks(prompt_text(body)):
            chain = hash((chain, block))
            hashes.append(chain)
        return hashes

    def known(self, trait: Trait) -> Mapping[str, int]:
        """The number of leading blocks that each engine has seen."""
        seen: dict[str, int] = {}
        for length in range(len(trait), 0, -1):
            for engine in self._engines.get(trait[length - 1], ()):
                seen.setdefault(engine, length)
        return seen

    def went(self, trait: Trait, engine: str) -> None:
        # The longest first, so that a beginning never is forgotten before what continues it.
        for beginning in reversed(trait):
            others = tuple(name for name in self._engines.get(beginning, ()) if name != engine)
            self._engines[beginning] = (*others[1 - _COPIES :], engine)
            self._engines.move_to_end(beginning)
        while len(self._engines) > self._entries:
            self._engines.popitem(last=False)


_COPIES = 4  # engines remembered for one beginning


def affinity(kind: str, entries: int) -> Affinity:
    """The configured one: `none`, `session` or `prefix`."""
    if kind == "session":
        return SessionAffinity(entries)
    return PrefixAffinity(entries) if kind == "prefix" else NoAffinity()


def prompt_text(body: Mapping[str, Any]) -> str:
    """The text of a prompt in the order in which a model's template lays it out; never raises, whatever the body is."""
    parts: list[str] = []
    if body.get("tools"):
        parts.append(_as_text(body["tools"]))
    for name in ("instructions", "messages", "input", "prompt"):
        given = body.get(name)
        if isinstance(given, list):
            parts += map(_as_text, given)
        elif given is not None:
            parts.append(_as_text(given))
    return "\n".join(parts)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return f"{value.get('role')}:{value['content']}"
    return orjson.dumps(value).decode()


def _blocks(text: str) -> Iterator[str]:
    """Whole blocks alone: a rest would never be met again as it is."""
    for begin in range(0, min(len(text) - BLOCK_CHARS + 1, BLOCK_CHARS * MOST_BLOCKS), BLOCK_CHARS):
        yield text[begin : begin + BLOCK_CHARS]
