"""A policy by its name: built-in ones and others alike register under the entry point group `joulegate.policies`."""

import difflib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from policies.interface import Policy


def load_policy(name: str, options: Mapping[str, Any]) -> Policy:
    """Make the policy with its options.

    Raises ValueError, in lines for people, for a name that nobody registered and for options that the policy refuses.
    """
    points = {point.name: point for point in entry_points(group="joulegate.policies")}
    if name not in points:
        known = ", ".join(sorted(points)) or "none (is joulegate installed?)"
        raise ValueError(f"unknown policy {name!r}{_nearest(name, points)}; known: {known}")
    make = points[name].load()
    try:
        return make(**options)
    except ValidationError as error:
        known_options = getattr(make, "model_fields", {})
        raise ValueError("\n".join(_explain(name, error, known_options))) from None
    except TypeError as error:  # a policy that is no pydantic model refuses an option like this
        raise ValueError(f"policy {name}: {error}") from None


def _explain(policy: str, error: ValidationError, known: Iterable[str]) -> Iterable[str]:
    options = sorted(known)
    for fault in error.errors(include_url=False):
        path = ".".join(str(part) for part in fault["loc"] if part != "[key]")
        if fault["type"] == "extra_forbidden":
            listed = f"known: {', '.join(options)}" if options else "it has no options"
            yield f"policy {policy}: unknown option {path!r}{_nearest(path, options)}; {listed}"
        else:
            yield f"policy {policy}: {path}: {fault['msg']} (got {fault['input']!r})"


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""
