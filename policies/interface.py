"""What a policy sees, what it may decide, and what a policy is.

A policy is a plain object without I/O and without a clock: `decide` gets everything that is known and returns what
should hold from now on. It is called about once a second; every part of a decision is optional.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class WorkflowSignals:
    """One workflow on one engine, now."""

    in_flight: int
    queued: int


@dataclass(frozen=True, slots=True)
class EngineSignals:
    """One engine, now. Null where the engine does not say."""

    up: bool
    workflows: Mapping[str, WorkflowSignals]
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None  # 0..1


@dataclass(frozen=True, slots=True)
class DeviceSignals:
    """One device, now. Watts; null where unknown or without privilege."""

    power_w: float | None = None
    power_limit_w: float | None = None  # what the hardware enforces
    power_limit_range_w: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Signals:
    """Everything a policy may know. `now` is Unix seconds."""

    now: float
    engines: Mapping[str, EngineSignals] = field(default_factory=dict)
    devices: Mapping[str, DeviceSignals] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What should hold from now on. What is not named is not limited, and set back if it was."""

    in_flight: Mapping[str, int] = field(default_factory=dict)  # workflow -> requests in flight on each engine
    max_tokens: Mapping[str, int] = field(default_factory=dict)  # workflow -> ceiling on output tokens
    power_limit_w: Mapping[str, float] = field(default_factory=dict)  # device -> watts
    reason: str = ""


class Policy(Protocol):
    """One way to decide. State is the policy's own: JSON-serialisable, handed back at the next call, None at first."""

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]: ...
