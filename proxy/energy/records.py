"""The plain records that energy accounting hands to the ledger and to the metrics, once a second, as one batch.

Energies are integers of microjoules, times Unix seconds, days those of UTC. Energy, window and day records, and a
device's `counter_uj`, are *deltas* to add; the others replace what the ledger holds under the same key.

They are made and written thousands of times a second, so they are tuples in the order of their table's columns, with
plain strings and integers that SQLite takes as they are (an enumeration's member costs an adapter's look-up, each).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Quality(StrEnum):
    """How a figure came about, from the best to the worst; a sum is as good as its worst part."""

    MEASURED = "measured"
    ATTRIBUTED = "attributed"
    ESTIMATED = "estimated"
    EMULATED = "emulated"


class Outcome(StrEnum):
    """How a request or an attempt ended."""

    OK = "ok"
    ERROR = "error"  # the engine answered with an error of its own
    FAILED = "failed"  # the engine broke, or could not be reached
    CANCELLED = "cancelled"  # the client went away
    REFUSED = "refused"  # the gateway itself said no
    ORPHANED = "orphaned"  # its gateway died, and the next one found it without an end


class Waste(StrEnum):
    """Why the joules of an attempt bought nothing."""

    CANCELLED = "cancelled"  # its client went away
    FAILED = "failed"  # the engine broke or answered with an error, and so did the request end
    RETRIED = "retried"  # the same, but another attempt answered
    ORPHANED = "orphaned"  # its gateway died: nobody was left to pass the answer on
    STOPPED = "stopped"  # the gateway ended it, because a budget was spent


def waste_of(attempt: str | None, request: str | None) -> Waste | None:
    """Why an attempt with this outcome, of a request with that one, was in vain; None while that is not known.

    The ledger says the same in SQL (`sums.WASTE`).
    """
    if attempt in (Outcome.FAILED, Outcome.ERROR):
        if request is None:
            return None
        return Waste.RETRIED if request == Outcome.OK else Waste.FAILED
    return _WASTE_OF.get(attempt or "")


_WASTE_OF = {
    Outcome.CANCELLED.value: Waste.CANCELLED,
    Outcome.ORPHANED.value: Waste.ORPHANED,
    Outcome.REFUSED.value: Waste.STOPPED,
}


class Phase(StrEnum):
    """Prefill is dispatch to first token, decode what follows."""

    PREFILL = "prefill"
    DECODE = "decode"


class RunRecord(NamedTuple):
    """One segment of a workflow run; `uid` is ours and unique, (tenant, run) is the client's and may recur.

    Only `ended` and `state` of a run ever change.
    """

    uid: str
    tenant: str
    run: str
    workflow: str
    opened: float
    ended: float  # the last completion so far
    state: str  # "open", "closed" (no more requests), "final" (closed and every joule settled)


class RequestRecord(NamedTuple):
    """One OpenAI call. Token counts are null while unknown; `usage` says who counted: "engine", "frames", "estimated"
    (nobody did), or "none".

    Up to `path`, and `received`, it never changes. `saved_uj` are microjoules that it did not cost, because the engine
    found a part of its prompt in its cache; both are null where it found none, or nobody knows.
    """

    id: str
    run_uid: str
    step: str
    node: str | None
    parents: str  # a JSON list
    identified_by: str  # a JSON object: field -> the header or body field that gave it
    path: str
    received: float
    model: str
    stream: int  # 0 or 1
    ended: float | None
    code: int | None
    outcome: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    usage: str
    saved_uj: int | None = None
    saved_quality: str | None = None


class AttemptRecord(NamedTuple):
    """One try of a request on one engine; `n` counts from 1."""

    request_id: str
    n: int
    engine: str
    queued: float
    dispatched: float | None
    first: float | None
    ended: float | None
    code: int | None
    outcome: str | None


class EnergyRecord(NamedTuple):
    """Settled microjoules of one attempt on one device, by phase, to add; low and high are the band of both phases."""

    request_id: str
    attempt: int
    device: str
    quality: str
    component: str  # "gpu", "cpu", "dram"
    prefill_uj: int
    decode_uj: int
    low_uj: int
    high_uj: int


class WindowRecord(NamedTuple):
    """What became of a device's joules in one second, to add: counter = workflow + idle + foreign + gap."""

    device: str
    second: int
    quality: Quality
    workflow_uj: int
    idle_uj: int
    foreign_uj: int
    gap_uj: int


class SpentRecord(NamedTuple):
    """Settled microjoules of a tenant's requests in one hour (since 1970, UTC), to add."""

    tenant: str
    hour: int
    uj: int


class DeviceRecord(NamedTuple):
    """A device and where its books stand: what its counter has moved since the last record, to add, and the last raw
    reading that is booked."""

    device: str
    component: str
    model: str
    quality: Quality  # of the counter itself
    counter_uj: int  # from the raw readings; what the windows of the same batch sum to, or the books are wrong
    raw_uj: int
    t: float


class DayRuns(NamedTuple):
    """Final runs of one day without a row each, to add."""

    day: str  # YYYY-MM-DD, by when the run was opened
    tenant: str
    workflow: str
    runs: int
    duration_us: int


class DayRequests(NamedTuple):
    """Requests of one day without a row each, to add."""

    day: str
    tenant: str
    workflow: str
    step: str
    outcome: str
    saved_quality: str  # of what they saved; empty where that is nothing
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    saved_uj: int


class DayEnergy(NamedTuple):
    """Energy of one day without a row for each request, to add; `records` counts what it is the sum of."""

    day: str
    tenant: str
    workflow: str
    step: str
    engine: str
    component: str
    quality: str
    waste: str  # why it was in vain; empty where it was not, or nobody knows
    records: int
    uj: int
    low_uj: int
    high_uj: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """What is left of receipts that the ledger could not take: sums by day, so that no joule or token is missing."""

    runs: list[DayRuns] = field(default_factory=list)
    requests: list[DayRequests] = field(default_factory=list)
    energy: list[DayEnergy] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.runs, self.requests, self.energy))


@dataclass(frozen=True, slots=True)
class Batch:
    """One second of books: written in one transaction, then counted in the metrics, or neither."""

    runs: list[RunRecord] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    attempts: list[AttemptRecord] = field(default_factory=list)
    energy: list[EnergyRecord] = field(default_factory=list)
    windows: list[WindowRecord] = field(default_factory=list)
    devices: list[DeviceRecord] = field(default_factory=list)
    dropped: Dropped = field(default_factory=Dropped)
    spent: list[SpentRecord] = field(default_factory=list)

    def __bool__(self) -> bool:
        parts = (self.runs, self.requests, self.attempts, self.energy, self.windows, self.devices)
        return any((*parts, self.dropped, self.spent))
