"""The open books: runs and requests that are not yet settled, and the second's batch that they make.

Sans-I/O. The data plane opens and closes receipts, attribution's settled windows are booked on them, and once a second
`batch` hands everything that changed to the ledger and the metrics. What is settled and handed over is forgotten here.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from proxy.energy.records import (
    AttemptRecord,
    Batch,
    EnergyRecord,
    Outcome,
    Phase,
    Quality,
    RequestRecord,
    RunRecord,
    SpentRecord,
    Waste,
    WindowRecord,
    waste_of,
)
from proxy.energy.share import Settled
from proxy.energy.sources import Device
from proxy.energy.spent import HOUR_S
from proxy.energy.work import Progress
from proxy.identify import Identity
from proxy.telemetry.metrics import EnergyDelta

Saved = Callable[[Progress], tuple[Quality, int] | None]  # what the prefix cache spared an attempt, µJ


def share_quality(counter: Quality) -> Quality:
    """A share of a measured total is attributed; of an estimate it stays an estimate."""
    return Quality.ATTRIBUTED if counter is Quality.MEASURED else counter


@dataclass(slots=True, eq=False)
class Run:
    """One segment of a workflow run. `last` is its last sign of life, `ended` its last completion."""

    uid: str
    tenant: str
    run: str
    workflow: str
    label: str  # the workflow's name as a metric label
    opened: float
    quiet_s: float
    last: float
    ended: float
    in_flight: int = 0  # requests queued or in flight
    unsettled: int = 0  # requests with joules still to come
    asked_to_close: bool = False
    state: str = "open"
    uj: int = 0

    def record(self) -> RunRecord:
        return RunRecord(
            self.uid, self.tenant, self.run, self.workflow, self.opened, max(self.ended, self.opened), self.state
        )


@dataclass(slots=True, eq=False)
class Attempt:
    """One try on one engine; `progress` begins when it leaves the gate."""

    n: int
    engine: str
    queued: float
    progress: Progress | None = None
    first: float | None = None
    ended: float | None = None
    code: int | None = None
    outcome: Outcome | None = None
    waste: Waste | None = None  # why its joules bought nothing
    uj: int = 0
    wasted_uj: int = 0  # of `uj`, those that the waste metric has counted
    noted: bool = False  # the ledger knows of it, so it can take its joules

    @property
    def dispatched(self) -> float | None:
        return self.progress.dispatched if self.progress else None


@dataclass(slots=True, eq=False)
class Receipt:
    """What one request cost, as far as it is known."""

    id: str
    run: Run
    identity: Identity
    step: str  # as a metric label
    path: str
    received: float
    held_s: float = 0.0  # until the nodes that it names had answered
    model: str = ""
    stream: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    ended: float | None = None
    code: int | None = None
    outcome: Outcome | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    usage: str = "none"
    uj: int = 0
    saved: tuple[Quality, int] | None = None  # what its cached tokens did not cost, µJ

    def record(self) -> RequestRecord:
        identity = self.identity
        return RequestRecord(
            self.id,
            self.run.uid,
            identity.step,
            identity.node,
            orjson.dumps(identity.parents).decode() if identity.parents else "[]",
            orjson.dumps(identity.sources).decode(),
            self.path,
            self.received,
            self.model,
            1 if self.stream else 0,
            self.ended,
            self.code,
            self.outcome and self.outcome._value_,
            self.prompt_tokens,
            self.cached_tokens,
            self.output_tokens,
            self.usage,
            *((None, None) if self.saved is None else (self.saved[1], self.saved[0]._value_)),
        )


@dataclass(frozen=True, slots=True)
class Second:
    """What one second brought: the ledger's batch, and what the metrics may count once it is committed."""

    batch: Batch
    deltas: list[EnergyDelta]
    wasted: list[tuple[str, str, int]]  # workflow label, reason, µJ counted earlier as mere energy
    saved: list[tuple[str, Quality, int]]  # workflow label, quality, µJ that were not spent
    tokens: dict[tuple[str, str, str], tuple[int, int, int]]  # see `tokens_by_label`, of requests that ended
    opened: list[str]  # requests that no earlier second has
    begun: list[str]  # runs (by uid) that no earlier second has
    settled: dict[str, Run]  # requests that no later second will have, and whose they are
    finals: list[Run]

    def __bool__(self) -> bool:
        return bool(self.batch)


class Watcher(Protocol):
    """Is told of requests as they come and go, at once."""

    def opened(self, receipt: Receipt) -> None: ...

    def closed(self, receipt: Receipt) -> None: ...


class Book:
    """All open runs and receipts. One owner, one thread. Nobody but a policy that acts needs a `watcher`.

    Whoever is in `on_close` is told of each run that takes no more requests.
    """

    watcher: Watcher | None = None

    def __init__(self, workflow_label: Callable[[str], str], step_label: Callable[[str, str], str]) -> None:
        self.on_close: list[Callable[[Run], object]] = []
        self._workflow_label = workflow_label
        self._step_label = step_label
        self._runs: dict[tuple[str, str], Run] = {}  # the newest segment of each run that is not final
        self._closing: list[Run] = []
        self._receipts: dict[str, Receipt] = {}
        self._dirty_runs: dict[str, Run] = {}
        self._dirty: dict[str, Receipt] = {}
        self._opened: list[str] = []
        self._begun: list[str] = []
        self._ended: list[Receipt] = []
        self._unpaid: dict[str, Receipt] = {}  # ended, with joules still to come
        self._wasteful: dict[str, Receipt] = {}  # of those, the ones with an attempt that bought nothing
        self._windows: dict[tuple[str, int], list[int]] = {}
        self._energy: dict[tuple[str, int, str], list[int]] = {}
        self._spent: dict[tuple[str, int], int] = {}

    # The data plane -------------------------------------------------------------------------------------------------

    def open(self, identity: Identity, tenant: str, request_id: str, path: str, quiet_s: float, now: float) -> Receipt:
        """A request came in. A run that was closed opens its next segment."""
        key = (tenant, identity.run)
        run = self._runs.get(key)
        if run is None or run.state != "open":
            if run is not None:
                self._closing.append(run)
            label = self._workflow_label(identity.workflow)
            uid = f"{int(now * 1000):012x}{random.getrandbits(64):016x}"  # in order of time, as the ledger keeps them
            run = Run(uid, tenant, identity.run, identity.workflow, label, now, quiet_s, last=now, ended=now)
            self._runs[key] = run
            self._begun.append(uid)
        run.in_flight += 1
        run.unsettled += 1
        run.last = now
        run.asked_to_close |= identity.final or identity.alone
        receipt = Receipt(request_id, run, identity, self._step_label(run.label, identity.step), path, received=now)
        self._receipts[request_id] = receipt
        self._opened.append(request_id)
        self._touch(receipt)
        if self.watcher is not None:
            self.watcher.opened(receipt)
        return receipt

    def close(self, receipt: Receipt, code: int, outcome: Outcome, now: float) -> None:
        """A request ended. Its joules may still be to come."""
        receipt.ended, receipt.code, receipt.outcome = now, code, outcome
        for attempt in receipt.attempts:
            attempt.waste = waste_of(attempt.outcome, outcome)
            if attempt.waste is not None:
                self._wasteful[receipt.id] = receipt
        run = receipt.run
        run.in_flight -= 1
        run.last = run.ended = now
        self._ended.append(receipt)
        self._unpaid[receipt.id] = receipt
        self._touch(receipt)
        if self.watcher is not None:
            self.watcher.closed(receipt)

    def ask_to_close(self, tenant: str, run: str) -> bool:
        """The client says that a run is complete. False when no such run is open."""
        known = self._runs.get((tenant, run))
        if known is None:
            return False
        known.asked_to_close = True
        return True

    # Energy ---------------------------------------------------------------------------------------------------------

    def book(self, window: Settled) -> dict[str, int]:
        """Put a settled window on the receipts and into its device's second; returns what each tenant spent in it."""
        second = self._windows.setdefault((window.device, int(window.t1)), [0, 0, 0, 0])
        second[1] += window.idle_uj
        second[2] += window.foreign_uj
        second[3] += window.gap_uj
        device, energy, receipts = window.device, self._energy, self._receipts
        spent: dict[str, int] = {}
        for progress, phase, uj, low_uj, high_uj in window.shares:
            second[0] += uj
            receipt = receipts[progress.request_id]
            run = receipt.run
            receipt.uj += uj
            run.uj += uj
            spent[run.tenant] = spent.get(run.tenant, 0) + uj
            receipt.attempts[progress.attempt - 1].uj += uj
            key = (progress.request_id, progress.attempt, device)
            sums = energy.get(key)
            if sums is None:
                sums = energy[key] = [0, 0, 0, 0]
            sums[phase is Phase.DECODE] += uj
            sums[2] += low_uj
            sums[3] += high_uj
        hour = int(window.t1 // HOUR_S)
        for tenant, uj in spent.items():
            self._spent[tenant, hour] = self._spent.get((tenant, hour), 0) + uj
        return spent

    def batch(
        self,
        now: float,
        devices: dict[str, Device],
        is_settled: Callable[[Progress], bool],
        saved: Saved = lambda _: None,
    ) -> Second:
        """Everything that changed since the last call, to be committed as one."""
        for receipt in self._ended:
            receipt.saved = _sum_saved(receipt, saved)
        settled = [receipt for receipt in self._unpaid.values() if _has_all(receipt, is_settled)]
        for receipt in settled:
            receipt.run.unsettled -= 1
        finals = self._close_runs(now)
        energy, deltas = self._take_energy(devices)
        changed = self._dirty.values()
        batch = Batch(
            runs=[run.record() for run in self._dirty_runs.values()],
            requests=[receipt.record() for receipt in changed],
            attempts=[_attempt_record(receipt, a) for receipt in changed for a in receipt.attempts],
            energy=energy,
            windows=[
                WindowRecord(device, second, devices[device].quality, *parts)
                for (device, second), parts in self._windows.items()
            ],
            spent=[SpentRecord(tenant, hour, uj) for (tenant, hour), uj in self._spent.items()],
        )
        wasted = [one for receipt in self._wasteful.values() for one in _newly_wasted(receipt)]
        second = Second(
            batch,
            deltas,
            wasted,
            [(receipt.run.label, *receipt.saved) for receipt in self._ended if receipt.saved is not None],
            tokens_by_label(self._ended),
            self._opened,
            self._begun,
            {receipt.id: receipt.run for receipt in settled},
            finals,
        )
        self._opened, self._begun, self._ended = [], [], []
        self._windows, self._dirty_runs, self._dirty, self._spent = {}, {}, {}, {}
        for receipt in settled:
            del self._receipts[receipt.id], self._unpaid[receipt.id]
            self._wasteful.pop(receipt.id, None)
        return second

    def renew(self) -> None:
        """Hand everything that is open over again, whole: the ledger no longer has it."""
        for receipt in self._receipts.values():
            self._touch(receipt)

    def _touch(self, receipt: Receipt) -> None:
        self._dirty[receipt.id] = receipt
        self._dirty_runs[receipt.run.uid] = receipt.run

    def _take_energy(self, devices: dict[str, Device]) -> tuple[list[EnergyRecord], list[EnergyDelta]]:
        """The joules booked since the last call, for the ledger and for the metrics."""
        records: list[EnergyRecord] = []
        sums: dict[tuple[str, str, str, str, str, Quality], int] = defaultdict(int)
        of_share = {name: (share_quality(one.quality), one.component) for name, one in devices.items()}
        for (request_id, n, device), (prefill_uj, decode_uj, low_uj, high_uj) in self._energy.items():
            receipt, (quality, component) = self._receipts[request_id], of_share[device]
            attempt, run = receipt.attempts[n - 1], receipt.run
            records.append(
                EnergyRecord(request_id, n, device, quality._value_, component, prefill_uj, decode_uj, low_uj, high_uj)
            )
            sums[run.tenant, run.label, receipt.step, attempt.engine, component, quality] += prefill_uj + decode_uj
            if not attempt.noted:  # it goes to the ledger before its joules
                self._dirty[request_id] = receipt
        self._energy = {}
        return records, [EnergyDelta(*key, uj) for key, uj in sums.items()]

    def _close_runs(self, now: float) -> list[Run]:
        """Close the runs that are complete or quiet; returns those that became final."""
        finals: list[Run] = []
        for run in [*self._runs.values(), *self._closing]:
            if run.state == "open" and not run.in_flight and (run.asked_to_close or now - run.last >= run.quiet_s):
                run.state = "closed"
                self._dirty_runs[run.uid] = run
                for tell in self.on_close:
                    tell(run)
            if run.state == "closed" and not run.unsettled:
                run.state = "final"
                self._dirty_runs[run.uid] = run
                finals.append(run)
        for run in finals:
            if self._runs.get((run.tenant, run.run)) is run:
                del self._runs[run.tenant, run.run]
        self._closing = [run for run in self._closing if run.state != "final"]
        return finals

    # What is open ---------------------------------------------------------------------------------------------------

    def pending(self, tenant: str, run: str) -> list[Receipt]:
        """The receipts of a run that are not settled and handed over."""
        return [r for r in self._receipts.values() if r.run.run == run and r.run.tenant == tenant]

    def unsettled(self) -> Iterable[Receipt]:
        """All receipts that are not settled and handed over."""
        return self._receipts.values()

    def runs(self, tenant: str, run: str) -> list[Run]:
        """The segments of a run that are not final, the newest last."""
        closing = [one for one in self._closing if one.run == run and one.tenant == tenant]
        newest = self._runs.get((tenant, run))
        return closing if newest is None else [*closing, newest]


def _has_all(receipt: Receipt, is_settled: Callable[[Progress], bool]) -> bool:
    """Whether no joule of an ended request is still to come."""
    return all(map(is_settled, [attempt.progress for attempt in receipt.attempts if attempt.progress is not None]))


def _attempt_record(receipt: Receipt, a: Attempt) -> AttemptRecord:
    a.noted = True
    dispatched = a.progress.dispatched if a.progress else None
    outcome = None if a.ended is None or a.outcome is None else a.outcome._value_  # while it runs nobody knows
    return AttemptRecord(receipt.id, a.n, a.engine, a.queued, dispatched, a.first, a.ended, a.code, outcome)


def _newly_wasted(receipt: Receipt) -> Iterable[tuple[str, str, int]]:
    for attempt in receipt.attempts:
        if attempt.waste and attempt.uj > attempt.wasted_uj:
            yield receipt.run.label, attempt.waste, attempt.uj - attempt.wasted_uj
            attempt.wasted_uj = attempt.uj


def _sum_saved(receipt: Receipt, saved: Saved) -> tuple[Quality, int] | None:
    """What a request's attempts did not cost, as good as the worst of them is known."""
    found = [one for attempt in receipt.attempts if attempt.progress and (one := saved(attempt.progress)) is not None]
    if not found:
        return None
    return max((quality for quality, _ in found), key=list(Quality).index), sum(uj for _, uj in found)


def tokens_by_label(receipts: Iterable[Receipt]) -> dict[tuple[str, str, str], tuple[int, int, int]]:
    """(tenant, workflow, step) → prompt, cached and output tokens of requests whose counts are known."""
    sums: dict[tuple[str, str, str], tuple[int, int, int]] = defaultdict(lambda: (0, 0, 0))
    for receipt in receipts:
        key = (receipt.run.tenant, receipt.run.label, receipt.step)
        prompt, cached, output = sums[key]
        sums[key] = (
            prompt + (receipt.prompt_tokens or 0),
            cached + (receipt.cached_tokens or 0),
            output + (receipt.output_tokens or 0),
        )
    return sums
