"""What a policy sees, what it may decide, and what a policy is.

A policy is a plain object without I/O and without a clock: `decide` gets everything that is known and returns what
should hold from now on. It is called about once a second; every part of a decision is optional. Times are in seconds,
`now` in Unix seconds; null (None) stands for what is not known, never for zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Objective:
    """What a workflow asks for: 95th percentiles, and how long one of its requests may be held at the gate."""

    patience_s: float = 0.0
    ttft_p95_s: float | None = None
    itl_p95_s: float | None = None
    run_p95_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """What work on an engine costs, as fitted: joules and seconds a step and a token (`proxy.energy.prior`).

    `spread` is the factor by which each may be off. `rest_w` is what its devices draw with nothing in flight.
    """

    step_j: float
    prompt_j: float
    output_j: float
    context_j: float
    step_s: float
    prompt_s: float
    spread: float
    rest_w: float | None = None


@dataclass(frozen=True, slots=True)
class QueueSignals:
    """One workflow at one engine's gate, now. The ages are of its oldest queued request and its mean."""

    in_flight: int
    queued: int
    oldest_s: float = 0.0
    mean_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkflowSignals:
    """One workflow over all engines: what it asks for, and how it fared in the last minute.

    Percentiles include what the gate held. `requests_per_s` are arrivals; `served_s` is how long a request is in
    flight, `output_tokens` and `prompt_tokens` (uncached) how large one is, on average. `sharing` is the part of a
    prompt (0..1) that other prompts of the workflow begin with too, `depth` how many requests of a run wait for one
    another, `slack_s` what the most pressed live run has left of its objective.
    """

    objective: Objective = field(default_factory=Objective)
    requests_per_s: float = 0.0
    ttft_p95_s: float | None = None
    itl_p95_s: float | None = None
    wait_p95_s: float | None = None
    run_p95_s: float | None = None
    served_s: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    sharing: float | None = None
    depth: float | None = None
    slack_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineSignals:
    """One engine, now: its gate's queues by workflow, and what it says of itself."""

    up: bool
    queues: Mapping[str, QueueSignals] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None  # 0..1
    prefix_hit_rate: float | None = None  # 0..1, of the last minute
    prices: Prices | None = None


@dataclass(frozen=True, slots=True)
class DeviceSignals:
    """One GPU, now. `throttle` names what holds its clock down (NVML's event reasons, `sw_power_cap`)."""

    power_w: float | None = None
    power_limit_w: float | None = None  # what the hardware enforces
    power_limit_range_w: tuple[float, float] | None = None
    sm_clock_mhz: float | None = None
    sm_clock_range_mhz: tuple[float, float] | None = None
    throttle: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Signals:
    """Everything a policy may know."""

    now: float
    workflows: Mapping[str, WorkflowSignals] = field(default_factory=dict)
    engines: Mapping[str, EngineSignals] = field(default_factory=dict)
    devices: Mapping[str, DeviceSignals] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Release:
    """When requests of a workflow leave the gate. Those that are held leave together, of whatever workflow they are.

    A request waits at most `hold_s`, and goes at once where it would keep the engine busy for no more than `join_s`,
    and `join_part` of the time that it is expected to take itself, beyond what is in flight already. With `hold_s` 0
    nothing is held. `group` says whose company is sought where a limit lets only some of the held ones go: the same
    step's, or those with the same prefix.
    """

    hold_s: float
    join_s: float = 0.0
    group: Literal["", "step", "prefix"] = ""
    join_part: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What should hold from now on. What is not named is not limited, and set back if it was.

    `reason` is one sentence for people; `reasons` has more of them, by what they are about (`release/search`,
    `sm_clock_mhz/h1/gpu:0`).
    """

    in_flight: Mapping[str, int] = field(default_factory=dict)  # workflow -> requests in flight on each engine
    engine_in_flight: Mapping[str, int] = field(default_factory=dict)  # engine -> requests in flight
    release: Mapping[str, Release] = field(default_factory=dict)  # workflow -> when its requests go
    priority: Mapping[str, int] = field(default_factory=dict)  # workflow -> what engines take that honour it: low first
    max_tokens: Mapping[str, int] = field(default_factory=dict)  # workflow -> ceiling on output tokens
    power_limit_w: Mapping[str, float] = field(default_factory=dict)  # device -> watts
    sm_clock_mhz: Mapping[str, float] = field(default_factory=dict)  # device -> highest SM clock
    reason: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)


class Policy(Protocol):
    """One way to decide. State is the policy's own: JSON-serialisable, handed back at the next call, None at first."""

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]: ...
