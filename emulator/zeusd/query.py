"""The query of a call, which holds all of its arguments, and what the daemon answers to a bad one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

_NUMBER = re.compile(r"\+?[0-9]+")
_DIGITS = 40  # a longer number is too large, whatever it is; Python reads no number of some thousand digits
_U32, _USIZE = 2**32 - 1, 2**64 - 1


class BadQuery(Exception):
    """Arguments that are wrong in themselves: plain text, status 400."""


class BadIndex(Exception):
    """A list of devices that is none: JSON, status 400."""


def parsed(query: str, fields: Mapping[str, type], optional: str | None = None) -> dict[str, Any]:
    """The arguments by name, each of its type (str, bool, or int for 32 bits without a sign). Raises BadQuery.

    All must be there but the optional one, each once, and no other.
    """
    found: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in fields:
            raise BadQuery(f"Query deserialize error: unknown field `{name}`, expected {_one_of(list(fields))}")
        if name in found:
            raise BadQuery(f"Query deserialize error: duplicate field `{name}`")
        found[name] = _value(text, fields[name])
    for name in fields:
        if name not in found and name != optional:
            raise BadQuery(f"Query deserialize error: missing field `{name}`")
    return found


def indices(text: str, device: str) -> list[int]:
    """A comma-separated list of device indices, in order and each once. Raises BadIndex."""
    field = f"{device.lower()}_ids"
    if not text.strip():
        raise BadIndex(f"{field} must contain at least one {device} index")
    found = set()
    for part in text.split(","):
        index = part.strip()
        if not index:
            raise BadIndex(f"{field} contains an empty {device} index")
        if not _NUMBER.fullmatch(index) or _above(index, _USIZE):
            raise BadIndex(f"Invalid {device} index: {index}")
        found.add(int(index))
    return sorted(found)


def to_read(given: Mapping[str, Any], device: str, there: range) -> list[int]:
    """The devices that a call reads: all where none are named. Raises BadIndex."""
    asked = _named(given, device, there)
    for index in asked:
        if index not in there:
            raise BadIndex(f"{device} {index} not found")
    return asked


def to_stream(given: Mapping[str, Any], device: str, there: range) -> list[int]:
    """The devices that a stream shows: all where none are named. Raises BadIndex."""
    asked = _named(given, device, there)
    if unknown := [index for index in asked if index not in there]:
        raise BadIndex(f"Unknown {device} indices: {unknown}. Available: {list(there)}")
    return asked


def _named(given: Mapping[str, Any], device: str, there: range) -> list[int]:
    text = given.get(f"{device.lower()}_ids")
    return list(there) if text is None else indices(text, device)


def _value(text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise BadQuery("Query deserialize error: provided string was not `true` or `false`")
        return text == "true"
    if not text:
        raise BadQuery("Query deserialize error: cannot parse integer from empty string")
    if not _NUMBER.fullmatch(text):
        raise BadQuery("Query deserialize error: invalid digit found in string")
    if _above(text, _U32):
        raise BadQuery("Query deserialize error: number too large to fit in target type")
    return int(text)


def _above(number: str, most: int) -> bool:
    return len(number) > _DIGITS or int(number) > most


def _one_of(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return {1: quoted[0], 2: " or ".join(quoted)}.get(len(quoted), f"one of {', '.join(quoted)}")
