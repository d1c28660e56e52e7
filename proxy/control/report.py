"""What the policy's loop has decided, why, and what came of it, for people and programs."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from policies.interface import Decision
from proxy.control.history import groups
from proxy.control.learner import WINDOW_S
from proxy.control.loop import Control


def report(control: Control, setbacks: Mapping[tuple[str, ...], int]) -> dict[str, Any]:
    """Everything, as JSON has it (no infinities); the newest of the history first. Times are Unix seconds.

    `setbacks` are counts by policy and reason.
    """
    signals, entries = control.signals, list(control.history.entries)
    now = signals.now if signals else 0.0
    told = {
        "policy": control.policy,
        "standing": control.standing.value,
        "why": control.guard.why or None,
        "now": now,
        **_decision(control.decision),
        "workflows": {name: asdict(one) for name, one in signals.workflows.items()} if signals else {},
        "engines": {name: asdict(one) for name, one in signals.engines.items()} if signals else {},
        "devices": _devices(control),
        "groups": _groups(control, now),
        "measured": {policy: one.shown() for policy, one in control.history.measured.items()},
        "setbacks": {": ".join(key): count for key, count in setbacks.items() if count},
        "history": [entry.shown() for entry in reversed(entries)],
    }
    return _finite(told)


def _finite(value: Any) -> Any:
    """The same with None for what is infinite: a release rule may join whatever the price."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _decision(decision: Decision) -> dict[str, Any]:
    acts = asdict(decision)
    reason, reasons = acts.pop("reason"), acts.pop("reasons")
    return {"reason": reason, "reasons": reasons, "decision": {name: value for name, value in acts.items() if value}}


def _devices(control: Control) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, seen in (control.signals.devices if control.signals else {}).items():
        throttle = None if seen.throttle is None else sorted(seen.throttle)
        found[name] = asdict(seen) | {"throttle": throttle, "settings": [], "note": control.devices.notes.get(name)}
    for one in control.devices.applied:
        found.setdefault(one.device, {"settings": [], "note": None})["settings"].append(
            {
                "what": one.quantity.name,
                "unit": one.quantity.unit,
                "wanted": one.wanted,
                "enforced": one.enforced,
                "effect": one.effect.value,
                "reason": one.reason or None,
            }
        )
    return found


def _groups(control: Control, now: float) -> dict[str, Any]:
    """Who left the gate together in the last minute, as far as they have ended."""
    served = control.served_since(now - WINDOW_S)
    sizes = groups(served)
    return {
        "count": len(sizes),
        "mean_size": sum(sizes) / len(sizes) if sizes else None,
        "largest": max(sizes, default=None),
        "mean_wait_s": sum(one.wait_s for one in served) / len(served) if served else None,
    }
