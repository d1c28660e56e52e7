"""The JSON shapes of `/energy`: joules, Unix seconds and seconds, tokens.

Joules are whole microjoules divided by a million, estimates too, so that they can be added and balanced; `quality` and
the band say how far to trust them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator

from proxy.energy.method import Method
from proxy.energy.records import Outcome, Quality, Waste


def _shown(state: str) -> str:
    """A run that takes no more requests but still waits for joules is "closed" in the ledger, and open here."""
    return "open" if state == "closed" else state


State = Annotated[Literal["open", "final"], BeforeValidator(_shown)]


class Energy(BaseModel):
    """A sum of joules and the band it lies in; `quality` is that of its worst part.

    All are null where no counter and no estimate stands behind any of it: that is not 0 J.
    """

    joules: float | None
    joules_low: float | None
    joules_high: float | None
    quality: Quality | None


class Worth(BaseModel):
    """What of the joules bought nothing (they are within `joules`), and what was not spent (it is in no sum).

    Saved joules are prompt tokens found in the prefix cache times the engine's price of one that is not; their quality
    is `estimated` while that price is not yet fitted to the engine.
    """

    joules_wasted: float | None
    wasted_by_reason: dict[Waste, float]
    saved_joules: float | None
    saved_quality: Quality | None


class Seen(BaseModel):
    """The same joules above the loaded idle, and with their share of idle, host and PUE (`proxy.energy.views`).

    Null where the floor is not known yet, or nothing of the work is.
    """

    active_joules: float | None = None
    full_joules: float | None = None


class Tokens(BaseModel):
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Step(BaseModel):
    """What the requests of one step cost together."""

    requests: int
    joules: float | None
    output_tokens: int


class Workflow(Energy, Worth, Seen, Tokens):
    """The totals of one workflow of one tenant. `runs` counts segments, `mean_duration_s` is over the ended ones."""

    tenant: str
    workflow: str
    runs: int
    requests: int
    failed: int
    cancelled: int
    refused: int
    joules_per_run: float | None
    joules_per_output_token: float | None
    mean_duration_s: float | None
    by_component: dict[str, float]
    by_step: dict[str, Step]


class Workflows(BaseModel):
    workflows: list[Workflow]


class RunHead(BaseModel):
    """One segment of a run; `ended` is its last completion so far."""

    run: str
    tenant: str
    workflow: str
    segment: int
    state: State
    opened: float
    ended: float
    duration_s: float


class RunSummary(RunHead, Energy, Worth, Tokens):
    requests: int


class Runs(BaseModel):
    runs: list[RunSummary]


class Request(Energy, Worth, Seen):
    """One request. Times count from its arrival at the gateway; `open_joules` are predicted and not in `joules`.

    `held_s` is how long it waited for the nodes that it names, `queued_s` how long at gates after that.
    `why_unknown` says why joules are null that could otherwise be had.
    """

    id: str
    step: str
    node: str | None
    parents: list[str]
    identified_by: dict[str, str]
    model: str
    path: str
    engine: str | None
    attempts: int
    outcome: Outcome | None
    code: int | None
    stream: bool
    received: float
    held_s: float | None
    queued_s: float
    duration_s: float | None
    ttft_s: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    usage: str
    settled: bool
    open_joules: float = 0.0
    provisional: bool = False
    why_unknown: str | None = None
    by_component: dict[str, float]
    by_phase: dict[str, float]


class RequestAlone(Request):
    """A request with the run that it belongs to."""

    run: str
    tenant: str
    workflow: str
    segment: int


class Node(BaseModel):
    """One named call in its run's graph: what it took, and by how much it could have been late (`proxy.energy.dag`)."""

    step: str
    parents: list[str]
    seconds: float
    slack_s: float
    joules: float | None


class Dag(BaseModel):
    """The graph of a run's calls that have ended, each by its node's name or its id."""

    critical_path: list[str]
    critical_path_s: float
    critical_path_joules: float | None
    nodes: dict[str, Node]


class Run(RunHead, Energy, Worth, Seen):
    """The newest segment of a run. `joules` are settled; `open_joules` are predicted and still to be settled.

    `dag` is null where no request says what it follows from.
    """

    settled: bool
    open_joules: float
    provisional: bool
    why_unknown: str | None = None
    requests: list[Request]
    by_step: dict[str, Step]
    dag: Dag | None = None


class Closed(BaseModel):
    run: str
    tenant: str
    state: State


class Engine(Energy):
    """An engine's state now (null where it is no longer configured) and what its requests have cost in all."""

    name: str
    kind: str | None = None
    url: str | None = None
    up: bool | None = None
    breaker: Literal["closed", "open", "half_open"] | None = None
    in_flight: int | None = None
    queued: int | None = None
    limit: int | None = None
    devices: list[str] = []
    sample: dict[str, Any] | None = None
    attribution: Method | None = None
    by_component: dict[str, float]


class Engines(BaseModel):
    engines: list[Engine]


class Balance(BaseModel):
    """What became of a device's counter; `residual_j` is what the parts leave of it, `foreign_j` null is unknowable."""

    counter_j: float
    workflow_j: float
    open_j: float
    idle_j: float
    foreign_j: float | None
    gap_j: float
    residual_j: float
    quality: Quality
