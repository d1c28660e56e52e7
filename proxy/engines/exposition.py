"""Reads single values out of Prometheus text by scanning its bytes: an engine is asked ten times a second."""

from collections.abc import Iterator
from math import isfinite


def values(body: bytes, name: bytes) -> Iterator[float]:
    """The values of metric `name`, one a label set; what is not a finite number of at least 0 is passed over."""
    at = 0
    while (at := body.find(name, at)) >= 0:
        end = at + len(name)
        stop = body.find(b"\n", end)
        stop = len(body) if stop < 0 else stop
        begins_line = at == 0 or body[at - 1] == 0x0A
        if begins_line and body[end : end + 1] in (b"{", b" ", b"\t"):
            # A label's value may hold blanks and braces, so the labels end at the last brace of the line.
            fields = body[max(end, body.rfind(b"}", end, stop) + 1) : stop].split()
            try:
                value = float(fields[0])
            except (IndexError, ValueError):
                value = -1.0
            if isfinite(value) and value >= 0:
                yield value
        at = stop


def total(body: bytes, name: bytes) -> float | None:
    """The sum of metric `name` over its label sets; None where the text does not have it."""
    found = list(values(body, name))
    return sum(found) if found and isfinite(sum(found)) else None
