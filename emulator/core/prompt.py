"""What a prompt is to the KV cache: a chain of block hashes.

Two blocks are the same if they hold the same tokens after the same tokens, so a block's hash covers its parent's, its
own content, and, through the first one's parent, the cache salt (vLLM: `hash_block_tokens` in `kv_cache_utils.py`).
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple, cast


class Text(NamedTuple):
    """`tokens` tokens known by name only: equal keys are equal tokens, from the first one on."""

    key: Hashable
    tokens: int


# Token ids, or texts one after the other: a head of 3000 tokens that many prompts share, then 40 of this one alone.
Prompt = Sequence[int] | Sequence[Text]


def output_of(request_id: str, tokens: int) -> Text:
    """The first tokens that a request generated, to be part of a later prompt."""
    return Text(("output", request_id), tokens)


class Chain:
    """The hashes of a text's full blocks, and what is in the block that is not yet full. Never changed."""

    __slots__ = ("block_size", "hashes", "root", "tail", "tokens")

    def __init__(self, block_size: int, root: int, hashes: tuple[int, ...] = (), tokens: int = 0, tail: tuple = ()):
        self.block_size = block_size
        self.root = root
        self.hashes = hashes
        self.tokens = tokens
        self.tail = tail

    def then(self, more: Text | Sequence[int], start: int = 0) -> "Chain":
        """The chain with the tokens of `more` appended, those before `start` left out."""
        hashes, tail = self.beyond(more, start)
        length = more.tokens if isinstance(more, Text) else len(more)
        return Chain(self.block_size, self.root, self.hashes + tuple(hashes), self.tokens + length - start, tail)

    def beyond(self, more: Text | Sequence[int], start: int = 0) -> tuple[list[int], tuple]:
        """The hashes of the blocks that `then` would add, and its tail."""
        parent = self.hashes[-1] if self.hashes else self.root
        size, tail, hashes = self.block_size, self.tail, []
        stop = start + size - self.tokens % size  # of the first block that gets full
        if isinstance(more, Text):
            key, length = more
            if tail and isinstance(tail[-1], tuple) and tail[-1][::2] == (key, start):  # one piece, however it came
                start, tail = tail[-1][1], tail[:-1]
            while stop <= length:
                parent = hash((parent, (*tail, (key, start, stop))))
                hashes.append(parent)
                start, stop, tail = stop, stop + size, ()
            return hashes, (*tail, (key, start, length)) if start < length else tail
        while stop <= len(more):
            parent = hash((parent, (*tail, *more[start:stop])))
            hashes.append(parent)
            start, stop, tail = stop, stop + size, ()
        return hashes, (*tail, *more[start:])


def chain(prompt: Prompt, block_size: int, salt: str | None = None) -> Chain:
    """The chain of a prompt. Raises ValueError for an empty one."""
    if not prompt:
        raise ValueError("a prompt has at least one token")
    if isinstance(prompt[0], Text):
        texts = cast(Sequence[Text], prompt)
        whole = _head(texts[0], block_size, salt)
        for text in texts[1:]:
            whole = whole.then(text)
        return whole
    return _root(block_size, salt).then(cast(Sequence[int], prompt))


def _root(block_size: int, salt: str | None) -> Chain:
    return Chain(block_size, hash((salt,)))


@lru_cache(maxsize=256)  # a head that many prompts share is hashed once
def _head(text: Text, block_size: int, salt: str | None) -> Chain:
    if text.tokens < 1:
        raise ValueError(f"a text has at least one token, {text.key!r} has {text.tokens}")
    return _root(block_size, salt).then(text)
