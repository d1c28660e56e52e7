r"""`{{node:NAME}}` in a request's text: which nodes it names, and the text with their outputs in place.

A backslash right before `{{node:` takes its meaning away, and goes: `\{{node:a}}` is the text `{{node:a}}`. What is
put in is never looked at again. A name is 1 to 200 characters of printable ASCII without braces; spaces around it do
not count, and what is no name stays as it is. Sans-I/O: parsed bodies in, parsed bodies out.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

OPENING = "{{node:"
_MARK = re.compile(r"\\\{\{node:|\{\{node:([ -z|~]{1,200})\}\}")
_TEXT_PARTS = ("text", "input_text", "output_text")

Listed = Collection[str] | None  # the nodes that may be named; None: any


class Named(NamedTuple):
    """A place in a text where a node's output belongs."""

    name: str


def pieces(text: str, listed: Listed = None) -> Iterator[str | Named]:
    """A text and the nodes that it names, in their order. A node that is not `listed` is mere text."""
    at = 0
    for mark in _MARK.finditer(text):
        if mark[1] is None:
            yield text[at : mark.start()]
            at = mark.start() + 1  # without the backslash
        elif (name := mark[1].strip()) and (listed is None or name in listed):
            yield text[at : mark.start()]
            yield Named(name)
            at = mark.end()
    yield text[at:]


def openings(body: Mapping[str, Any]) -> int:
    """How many marks a request's body may hold, escaped or not: quickly said, and never too few."""
    return sum(container[key].count(OPENING) for container, key in _texts(body))


def named(body: Mapping[str, Any], listed: Listed = None) -> Counter[str]:
    """How often a request's body names each node, in the order in which it first does."""
    return Counter(
        piece.name
        for container, key in _texts(body)
        if OPENING in container[key]
        for piece in pieces(container[key], listed)
        if isinstance(piece, Named)
    )


def fill(body: Mapping[str, Any], outputs: Mapping[str, str], listed: Listed = None) -> bool:
    """Put the outputs into a body's texts, in place; whether that changed any. Raises KeyError for a missing output."""
    changed = False
    for container, key in _texts(body):
        text = container[key]
        if OPENING in text:
            container[key] = filled(text, outputs, listed)
            changed = changed or container[key] != text
    return changed


def filled(text: str, outputs: Mapping[str, str], listed: Listed = None) -> str:
    """One text with the outputs in place. Raises KeyError for a missing one."""
    return "".join(outputs[p.name] if isinstance(p, Named) else p for p in pieces(text, listed))


def _texts(body: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every text in a body that a model is given to read, in any of the OpenAI APIs' words."""
    for field in ("instructions", "prompt", "input"):
        yield from _text_or_texts(body, field)
    for field in ("messages", "input"):
        if isinstance(items := body.get(field), list):
            for item in items:
                if isinstance(item, dict):
                    yield from _content(item)


def _text_or_texts(body: Mapping[str, Any], field: str) -> Iterator[tuple[Any, Any]]:
    value = body.get(field)
    if isinstance(value, str):
        yield body, field
    elif isinstance(value, list):
        yield from ((value, n) for n, one in enumerate(value) if isinstance(one, str))


def _content(message: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        yield message, "content"
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
                yield part, "text"
