"""How large and how deep a request may be, before anything is done with it."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

_PER_HEADER = 32  # what a header costs beside its bytes (RFC 9113, SETTINGS_MAX_HEADER_LIST_SIZE)


def head_bytes(scope: Mapping[str, Any]) -> int:
    """The size of a request's line and headers; every header counts 32 bytes more than it has."""
    headers = scope["headers"]
    size = len(scope["path"]) + len(scope.get("query_string", b"")) + _PER_HEADER * len(headers)
    return size + sum(map(len, chain.from_iterable(headers)))


def is_deeper(raw: bytes, parsed: Any, depth: int) -> bool:
    """Whether JSON has containers nested deeper than `depth`; `raw` spares most requests the walk."""
    if raw.count(b"[") + raw.count(b"{") <= depth:
        return False
    level = [parsed]
    for _ in range(depth):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True
