"""The texts that ship with the workloads, and cutting them to a length.

Lengths are in *approximate* tokens: four characters of English each, whatever the model's own tokenizer makes of them.
(SmolLM2's makes about an eighth fewer of these texts: 4.6 characters a token.)
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

CHARS_PER_TOKEN = 4


@cache
def read(path: str) -> str:
    """A shipped text by its path under `texts/`."""
    return files("loadgen").joinpath("texts", path).read_text(encoding="utf-8").strip()


@cache
def read_json(path: str) -> Any:
    return json.loads(read(path))


def tokens(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text) // CHARS_PER_TOKEN)


def clip(text: str, max_tokens: int) -> str:
    """The beginning of a text, cut between words where it is longer than `max_tokens`."""
    limit = max_tokens * CHARS_PER_TOKEN
    if len(text) <= limit:
        return text
    head, space, _ = text[: limit + 1].rpartition(" ")
    return head.rstrip() if space else text[:limit]


@cache
def document_names() -> tuple[str, ...]:
    folder = files("loadgen").joinpath("texts", "documents")
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".txt")))


def document(index: int, length_tokens: int) -> list[str]:
    """The sentences of document number `index`, about `length_tokens` long.

    It is one of the shipped documents as it was written, as far as that reaches. What is missing is made up with
    paragraphs of all shipped documents in an order of this document's own, again and again: text of natural statistics
    and of any length, though no argument runs through it and a very long one repeats itself.
    """
    names = document_names()
    rng = Random(f"document {index}")
    limit = length_tokens * CHARS_PER_TOKEN
    taken: list[str] = []
    length = 0
    for paragraph in _endless(names[index % len(names)], rng):
        for sentence in sentences(paragraph):
            if length + len(sentence) > limit:
                return taken
            taken.append(sentence)
            length += len(sentence) + 1
    raise AssertionError("unreachable: paragraphs never end")


def passage(rng: Random, length_tokens: int) -> str:
    """Sentences of all documents as they come by chance, `length_tokens` long, hardly ever twice the same."""
    every = _every_sentence()
    limit, taken, length = length_tokens * CHARS_PER_TOKEN, [], -1
    while length < limit:
        taken.append(rng.choice(every))
        length += len(taken[-1]) + 1
    return clip(" ".join(taken), length_tokens)


@cache
def _every_sentence() -> tuple[str, ...]:
    paragraphs = (part for name in document_names() for part in read(f"documents/{name}").split("\n\n")[1:])
    return tuple(sentence for part in paragraphs for sentence in sentences(" ".join(part.split())))


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!])\s+", text)


def _endless(first: str, rng: Random) -> Iterator[str]:
    def paragraphs(name: str) -> list[str]:
        return [" ".join(part.split()) for part in read(f"documents/{name}").split("\n\n")]

    yield from paragraphs(first)
    everything = [paragraph for name in document_names() for paragraph in paragraphs(name)[1:]]  # [0] is the title
    while True:
        yield from rng.sample(everything, len(everything))


def chunks(whole: list[str], chunk_tokens: int) -> list[str]:
    """Whole sentences packed into chunks of at most `chunk_tokens`; a longer sentence is clipped to one chunk."""
    limit = chunk_tokens * CHARS_PER_TOKEN
    packed: list[str] = []
    for sentence in whole:
        piece = clip(sentence, chunk_tokens)
        if packed and len(packed[-1]) + 1 + len(piece) <= limit:
            packed[-1] = f"{packed[-1]} {piece}"
        else:
            packed.append(piece)
    return packed
