"""Seconds of books that wait for the ledger: made one, and bounded by letting receipts go.

What is let go keeps its joules and tokens, as sums by day. Pure: seconds in, another second out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from proxy.energy.receipts import Run, Second
from proxy.energy.records import (
    Batch,
    DayEnergy,
    DayRequests,
    DayRuns,
    DeviceRecord,
    Dropped,
    Quality,
    RequestRecord,
    waste_of,
)

MINUTE = 60  # windows that wait long are told by the minute

Row = TypeVar("Row", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class Squeezed:
    """All that waited as one second, and what was let go for it: the same sums are in `second`."""

    second: Second
    dropped: Dropped
    finals: list[Run]  # whose every receipt was let go


def squeeze(seconds: Sequence[Second], most_requests: int) -> Squeezed:
    """One second that says the same. Has it more requests than allowed, half of these stay and the oldest are let go.

    Only whole receipts go: those of which the ledger has nothing yet and of which nothing is still to come.
    """
    whole = _merged(seconds)
    requests = {record.id: record for record in whole.batch.requests}
    if len(requests) <= most_requests:
        return Squeezed(whole, Dropped(), [])
    opened = set(whole.opened)
    going = set(islice((one for one in whole.settled if one in opened), len(requests) - most_requests // 2))
    kept = {record.run_uid for record in requests.values() if record.id not in going}
    begun = set(whole.begun)
    gone = {run.uid for run in whole.batch.runs if run.state == "final" and run.uid in begun and run.uid not in kept}
    dropped = _sums(whole, going, gone)
    batch = Batch(
        runs=[run for run in whole.batch.runs if run.uid not in gone],
        requests=[record for record in whole.batch.requests if record.id not in going],
        attempts=[record for record in whole.batch.attempts if record.request_id not in going],
        energy=[record for record in whole.batch.energy if record.request_id not in going],
        windows=whole.batch.windows,
        devices=whole.batch.devices,
        dropped=_joined([whole.batch.dropped, dropped]),
        spent=whole.batch.spent,
    )
    second = replace(
        whole,
        batch=batch,
        opened=[one for one in whole.opened if one not in going],
        begun=[uid for uid in whole.begun if uid not in gone],
        settled={one: run for one, run in whole.settled.items() if one not in going},
        finals=[run for run in whole.finals if run.uid not in gone],
    )
    return Squeezed(second, dropped, [run for run in whole.finals if run.uid in gone])


def without_receipts(second: Second, now: float) -> Second:
    """The second for a ledger that does not know what its receipts belong to: all of it but them, summed.

    Their energy goes by the names that metrics use, without band and waste: nothing more is known of a part.
    """
    day, batch = _day(now), second.batch
    ended = [(second.settled[record.id], record) for record in batch.requests if record.id in second.settled]
    lost = Dropped(
        requests=[_day_requests(day, run, one) for run, one in ended],
        energy=[
            DayEnergy(day, *delta[:5], delta.quality.value, "", 1, delta.uj, delta.uj, delta.uj)
            for delta in second.deltas
        ],
    )
    sums = _joined([batch.dropped, lost])
    rest = Batch(runs=batch.runs, windows=batch.windows, devices=batch.devices, dropped=sums, spent=batch.spent)
    return replace(second, batch=rest)


def _merged(seconds: Sequence[Second]) -> Second:
    """All of them as one: what replaces is there once, what adds is summed."""
    batches = [second.batch for second in seconds]
    devices: dict[str, DeviceRecord] = {}
    for record in (record for batch in batches for record in batch.devices):
        before_uj = devices[record.device].counter_uj if record.device in devices else 0
        devices[record.device] = record._replace(counter_uj=before_uj + record.counter_uj)
    wasted: Counter[tuple[str, str]] = Counter()
    saved: Counter[tuple[str, Quality]] = Counter()
    tokens: dict[tuple[str, str, str], tuple[int, int, int]] = {}
    for second in seconds:
        for label, reason, uj in second.wasted:
            wasted[label, reason] += uj
        for label, quality, uj in second.saved:
            saved[label, quality] += uj
        for key, (prompt, cached, output) in second.tokens.items():
            before = tokens.get(key, (0, 0, 0))
            tokens[key] = (before[0] + prompt, before[1] + cached, before[2] + output)
    windows = (w._replace(second=w.second // MINUTE * MINUTE) for batch in batches for w in batch.windows)
    return Second(
        batch=Batch(
            runs=list({run.uid: run for batch in batches for run in batch.runs}.values()),
            requests=list({one.id: one for batch in batches for one in batch.requests}.values()),
            attempts=list({one[:2]: one for batch in batches for one in batch.attempts}.values()),
            energy=_summed((one for batch in batches for one in batch.energy), 5),
            windows=_summed(windows, 3),
            devices=list(devices.values()),
            dropped=_joined([batch.dropped for batch in batches]),
            spent=_summed((one for batch in batches for one in batch.spent), 2),
        ),
        deltas=_summed((delta for second in seconds for delta in second.deltas), 6),
        wasted=[(*key, uj) for key, uj in wasted.items()],
        saved=[(*key, uj) for key, uj in saved.items()],
        tokens=tokens,
        opened=[one for second in seconds for one in second.opened],
        begun=[uid for second in seconds for uid in second.begun],
        settled={one: run for second in seconds for one, run in second.settled.items()},
        finals=[run for second in seconds for run in second.finals],
    )


def _sums(second: Second, going: set[str], gone: set[str]) -> Dropped:
    """The receipts that go, and the runs that are gone with them, as sums by day."""
    batch, whose = second.batch, second.settled
    requests = [record for record in batch.requests if record.id in going]
    by_id = {record.id: record for record in requests}
    attempts = {one[:2]: one for one in batch.attempts if one.request_id in going}
    energy: list[DayEnergy] = []
    for record in batch.energy:
        if record.request_id not in going:
            continue
        run, attempt = whose[record.request_id], attempts[record.request_id, record.attempt]
        request = by_id[record.request_id]
        key = (_day(run.opened), run.tenant, run.workflow, request.step, attempt.engine)
        uj = record.prefill_uj + record.decode_uj
        energy.append(
            DayEnergy(
                *(*key, record.component, record.quality, waste_of(attempt.outcome, request.outcome) or ""),
                *(1, uj, record.low_uj, record.high_uj),
            )
        )
    of_run = [
        DayRuns(_day(run.opened), run.tenant, run.workflow, 1, round((run.ended - run.opened) * 1e6))
        for run in batch.runs
        if run.uid in gone
    ]
    of_request = [_day_requests(_day(whose[one.id].opened), whose[one.id], one) for one in requests]
    return _joined([Dropped(of_run, of_request, energy)])


def _day_requests(day: str, run: Run, one: RequestRecord) -> DayRequests:
    """One request, as a sum."""
    what = (one.step, one.outcome or "", one.saved_quality or "")
    tokens = (one.prompt_tokens or 0, one.cached_tokens or 0, one.output_tokens or 0)
    return DayRequests(day, run.tenant, run.workflow, *what, 1, *tokens, one.saved_uj or 0)


def _joined(parts: Sequence[Dropped]) -> Dropped:
    return Dropped(
        _summed((row for part in parts for row in part.runs), 3),
        _summed((row for part in parts for row in part.requests), 6),
        _summed((row for part in parts for row in part.energy), 8),
    )


def _summed(rows: Iterable[Row], keys: int) -> list[Row]:
    """Rows that are alike in their first `keys` columns as one, with the sums of all the others."""
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    kind: type[Any] = tuple
    for row in rows:
        kind, key = type(row), row[:keys]
        before = sums[key]
        sums[key] = [a + b for a, b in zip(before, row[keys:], strict=True)] if before else list(row[keys:])
    return [kind(*key, *values) for key, values in sums.items()]


def _day(t: float) -> str:
    return _named(int(t // 86400))


@lru_cache(128)
def _named(day: int) -> str:
    return datetime.fromtimestamp(day * 86400, UTC).strftime("%Y-%m-%d")
