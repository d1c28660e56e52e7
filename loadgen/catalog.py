"""Workloads by name, with the fields that somebody chose: for command lines and campaign files.

A workload is found by its entry point in `joulegate.workloads`. Its fields are those of its dataclass; a range is
written `2-8` or `[2, 8]`, a field of a part `search.output_tokens`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import yaml

from loadgen.workload import Workload

FOUR = ("coding", "composite", "search", "summarize")  # the paper's
SIZES = ("small", "paper")


class CatalogError(ValueError):
    """A workload that there is not, or a field that it cannot have: one line that says what would be right."""


@cache
def registered() -> dict[str, EntryPoint]:
    """The workloads that are installed. Raises CatalogError where there is none."""
    found = {entry.name: entry for entry in sorted(entry_points(group="joulegate.workloads"))}
    if not found:
        raise CatalogError("no workload is registered: install joulegate first, for instance with `pip install -e .`")
    return found


def workload(
    name: str,
    size: str = "paper",
    chosen: Mapping[str, Any] | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
) -> Workload:
    """A workload in one of its sizes, with `chosen` fields and lengths in their place. Raises CatalogError."""
    known = registered()
    if name not in known:
        raise CatalogError(f"no workload is called {name!r}{_nearest(name, known)}")
    if size not in SIZES:
        raise CatalogError(f"the size must be {' or '.join(SIZES)}, got {size!r}")
    try:
        made = getattr(known[name].load(), size)()
        return _with(made, chosen or {}, name).sized(input_tokens, output_tokens)
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, CatalogError) else CatalogError(f"{name}: {error}") from None


def chosen_fields(text: str) -> dict[str, Any]:
    """`chunk_tokens=500 queries=2-8` as fields. Raises CatalogError."""
    chosen: dict[str, Any] = {}
    for part in text.split():
        field, given, value = part.partition("=")
        if not given:
            raise CatalogError(f"fields are chosen as name=value, got {part!r}")
        low, dash, high = value.partition("-")
        is_range = dash and low.isdecimal() and high.isdecimal()
        chosen[field] = [int(low), int(high)] if is_range else yaml.safe_load(value)
    return chosen


def _with(made: Any, chosen: Mapping[str, Any], name: str) -> Any:
    known = {field.name for field in fields(made)}
    parts: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    for field, value in chosen.items():
        part, dot, rest = field.partition(".")
        if part not in known:
            raise CatalogError(f"{name} has no field {field!r}{_nearest(part, known)}")
        if dot:
            parts.setdefault(part, {})[rest] = value
        elif isinstance(value, list):
            values[part] = tuple(value)
        else:
            values[part] = value
    values |= {part: _with(getattr(made, part), inner, f"{name}.{part}") for part, inner in parts.items()}
    for field, value in values.items():
        before = getattr(made, field)
        if isinstance(value, tuple) is not isinstance(before, tuple) or isinstance(value, str) is not isinstance(
            before, str
        ):
            raise CatalogError(f"{name}: {field} must be like {before!r}, got {value!r}")
    return replace(made, **values)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; {near[0]!r} would be" if near else f"; there are {', '.join(sorted(known))}"
