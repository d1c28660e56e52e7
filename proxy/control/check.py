"""Whether what a policy answered is a decision that gates and GPUs can take."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from policies.interface import Decision, Release

_COUNTS = ("in_flight", "engine_in_flight", "max_tokens", "priority")
_NUMBERS = ("power_limit_w", "sm_clock_mhz")


def is_any(decision: Decision) -> bool:
    """Whether anything is decided: else it is the default."""
    return any(getattr(decision, name) for name in (*_COUNTS, *_NUMBERS, "release"))


def fault(decision: Any) -> str:
    """What is wrong with it, in a line; empty where nothing is."""
    if not isinstance(decision, Decision):
        return f"it answered with a {type(decision).__name__}, not a Decision"
    return next(_faults(decision), "")


def _faults(decision: Decision) -> Iterator[str]:
    for name in (*_COUNTS, *_NUMBERS, "release", "reasons"):
        if not isinstance(getattr(decision, name), Mapping):
            yield f"{name} is no mapping"
            return
    for name in _COUNTS:
        for key, value in getattr(decision, name).items():
            least = None if name == "priority" else 1 if name == "max_tokens" else 0
            if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
                yield f"{name}.{key} is {value!r}, not a whole number" + ("" if least is None else f" from {least} on")
    for name in _NUMBERS:
        for key, value in getattr(decision, name).items():
            if not isinstance(value, int | float) or not isfinite(value):
                yield f"{name}.{key} is {value!r}, not a finite number"
    for key, rule in decision.release.items():
        if not isinstance(rule, Release):
            yield f"release.{key} is {rule!r}, not a Release"
        elif not (isfinite(rule.hold_s) and min(rule.hold_s, rule.join_s, rule.join_part) >= 0):
            yield f"release.{key} is {rule!r}: its times and its part must be 0 or more, the hold finite"
