"""What a driver brings back from a load, and the file that keeps it.

A `Result` is one `LoadRecord`, and records of its requests, runs and samples; `write` and `read` keep it as JSON lines
of `{"kind": "load" | "request" | "run" | "sample", ...}`, the load first, with the field names of the classes below.

- Times are seconds from the beginning of the load (`LoadRecord.began_unix_s`; virtual time has none).
- A request is *intended* when all that it waits for is there: the arrival of its run, or the last answer that it
  needs, and its own pause after that. Latency and time to first token count from there, so that a request which the
  generator sends late is not thereby fast; `start_delay_s` is how late it was sent. Where all calls of a run are sent
  at once, all that quote answers are intended at its beginning: their latencies hold the time that a gateway held them.
- Tokens are the engine's own count (its `usage`); null where it does not say.
- Joules are null where nobody knows them, which is never 0. Those of a request are a share of what a counter measured
  (`attributed`), of an `estimated` or `emulated` device. Samples are the devices' own cumulative counters and
  know nothing of requests: the difference over a run's interval is what the paper reports (it counts overlapping runs
  in each other).
- A load is valid if the generator was not the bottleneck and little failed; else `reasons` say what spoilt it
  (`loadgen.validity`). An invalid load keeps all of its records.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import TypeAdapter, ValidationError

Outcome = Literal["ok", "failed", "cut"]  # cut: under way when the load was ended
Quality = Literal["measured", "attributed", "estimated", "emulated"]
Driver = Literal["http", "locust", "virtual"]


class RecordError(ValueError):
    """A file of records that cannot be read: one line that names the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules with the band that the split lies in; `by_component`: gpu, cpu, dram.

    `active_joules` are what lies above the loaded idle, null where that is not known.
    """

    joules: float
    joules_low: float
    joules_high: float
    quality: Quality
    by_component: dict[str, float] = field(default_factory=dict)
    active_joules: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One call. `parents` are nodes whose answers it reads, `after` those that it only had to wait for.

    `gaps_s` are the times between two pieces of its stream that bring text (inter-token latencies where a piece is a
    token), empty where pieces were not seen singly; `first_s` and `gaps_s` need a stream. `id` is the gateway's.
    """

    stream: int
    number: int
    workflow: str
    run: str
    step: str
    node: str
    parents: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    id: str | None = None
    intended_s: float
    started_s: float
    first_s: float | None = None
    ended_s: float
    gaps_s: tuple[float, ...] = ()
    max_tokens: int
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    outcome: Outcome = "ok"
    error: str | None = None
    energy: Energy | None = None

    @property
    def start_delay_s(self) -> float:
        return self.started_s - self.intended_s

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.intended_s

    @property
    def mean_gap_s(self) -> float | None:
        """Mean inter-token latency: from the first token to the end, over all tokens but the first."""
        if self.first_s is None or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.ended_s - self.first_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One workflow run, from its intended start to its last completion. `energy` is that of all its requests."""

    stream: int
    number: int
    workflow: str
    run: str
    intended_s: float
    started_s: float
    ended_s: float
    requests: int
    outcome: Outcome
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    energy: Energy | None = None

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.intended_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A device at one moment. `energy_j` is cumulative from the load's beginning; what was not seen is null.

    `component` is gpu, cpu or dram; `busy_share` (0-1) is that of the time since the sample before.
    """

    at_s: float
    device: str
    component: str
    energy_j: float
    quality: Quality
    busy_share: float | None = None
    power_limit_w: float | None = None
    sm_mhz: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecord:
    """The load as a whole.

    `load` is `Load.describe()`. `window_s` is when it was in its steady state: from the end of its warm-up until it
    could first not be kept up, as a user found no run left, or the last arrival. `facts` are the driver's own words on
    what it drove: engine, settings, machine, versions. `exact_lengths`: prompts had exactly the tokens that the
    workload asks for (token ids), else about (four characters a token). `lag_p99_s` is how much later than it
    wanted the generator woke up, `cpu_share` how much of one core it took (the worst worker's).
    """

    driver: Driver
    load: dict[str, Any]
    began_unix_s: float | None = None
    seconds: float
    window_s: tuple[float, float]
    exact_lengths: bool
    cache_salt: str | None = None
    start_delay_p50_s: float | None = None
    start_delay_p99_s: float | None = None
    start_delay_max_s: float | None = None
    lag_p99_s: float | None = None
    cpu_share: float | None = None
    valid: bool
    reasons: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """All that a load left. Requests and runs are in the order of their ends, samples in that of their times."""

    load: LoadRecord
    requests: tuple[RequestRecord, ...]
    runs: tuple[RunRecord, ...]
    samples: tuple[Sample, ...] = ()


def sum_energy(parts: Iterable[Energy | None]) -> Energy | None:
    """The sum, of the worst quality among them; None where one of them is not known, or there are none."""
    known: list[Energy] = []
    for part in parts:
        if part is None:
            return None
        known.append(part)
    if not known:
        return None
    components: dict[str, float] = {}
    for part in known:
        for component, joules in part.by_component.items():
            components[component] = components.get(component, 0.0) + joules
    active = [part.active_joules for part in known if part.active_joules is not None]
    return Energy(
        joules=sum(part.joules for part in known),
        joules_low=sum(part.joules_low for part in known),
        joules_high=sum(part.joules_high for part in known),
        quality=_WORSE[max(_WORSE.index(part.quality) for part in known)],
        by_component=components,
        active_joules=sum(active) if len(active) == len(known) else None,
    )


def of_run(
    *,
    stream: int,
    number: int,
    workflow: str,
    run: str,
    intended_s: float,
    ended_s: float,
    outcome: Outcome,
    requests: Sequence[RequestRecord],
) -> RunRecord:
    """The record of a run from those of its requests."""
    return RunRecord(
        stream=stream,
        number=number,
        workflow=workflow,
        run=run,
        intended_s=intended_s,
        started_s=min((request.started_s for request in requests), default=intended_s),
        ended_s=ended_s,
        requests=len(requests),
        outcome=outcome,
        prompt_tokens=_sum(request.prompt_tokens for request in requests),
        cached_tokens=_sum(request.cached_tokens for request in requests),
        output_tokens=_sum(request.output_tokens for request in requests),
        energy=sum_energy(request.energy for request in requests),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def write(path: Path, result: Result) -> None:
    """The result as JSON lines, all of it or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(as_bytes(result))
    part.replace(path)


def as_bytes(result: Result) -> bytes:
    return b"".join(
        orjson.dumps({"kind": kind, **asdict(record)}, option=orjson.OPT_APPEND_NEWLINE)
        for kind, record in _lines(result)
    )


def read(path: Path) -> Result:
    """A result as `write` left it. Raises RecordError."""
    try:
        return of_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from None


def of_bytes(data: bytes, name: str = "the record") -> Result:
    """A result as `as_bytes` made it; `name` is what it is called in errors. Raises RecordError."""
    kept: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            fields: dict[str, Any] = orjson.loads(line)
            kind = fields.pop("kind")
            kept[kind].append(_KINDS[kind].validate_python(fields))
        except ValidationError as error:
            first = error.errors()[0]
            raise RecordError(f"{name}, line {number}: {first['loc'][0]}: {first['msg']}") from None
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise RecordError(f"{name}, line {number} is not a record of a load") from None
    if len(kept["load"]) != 1:
        raise RecordError(f"{name} must hold one load, it holds {len(kept['load'])}")
    return Result(kept["load"][0], tuple(kept["request"]), tuple(kept["run"]), tuple(kept["sample"]))


def _lines(result: Result) -> Iterator[tuple[str, Any]]:
    yield "load", result.load
    for kind, records in (("request", result.requests), ("run", result.runs), ("sample", result.samples)):
        for record in records:
            yield kind, record


_WORSE: tuple[Quality, ...] = ("measured", "attributed", "estimated", "emulated")
_KINDS: dict[str, TypeAdapter[Any]] = {
    "load": TypeAdapter(LoadRecord),
    "request": TypeAdapter(RequestRecord),
    "run": TypeAdapter(RunRecord),
    "sample": TypeAdapter(Sample),
}
