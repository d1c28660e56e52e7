"""Everything that `/metrics` says. Owned by one thread; energies come as integer microjoules, times as seconds.

Energy moves with the ledger: `apply` is called once for each batch that the ledger has committed, and never otherwise.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from proxy.energy.records import Outcome, Quality, Waste, WindowRecord
from proxy.telemetry.bounds import LabelBounds
from proxy.telemetry.gauges import Gauges
from proxy.telemetry.places import host_and_device
from proxy.telemetry.tables import Histogram, Spread, Totals

ENERGY_J = [mantissa * 10.0**power for power in range(-1, 6) for mantissa in (1, 2, 5)] + [1e6]
RUN_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
REQUEST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
TTFT_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 40, 80)
ITL_S = (0.001, 0.002, 0.004, 0.007, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
WAIT_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)


class EnergyDelta(NamedTuple):
    """Settled microjoules to add for one attempt on one component; workflow and step are admitted labels."""

    tenant: str
    workflow: str
    step: str
    engine: str
    component: str
    quality: Quality
    uj: int


class Itl(Spread):
    """The inter-token latencies of one stream, counted locally so that a chunk costs no look-up."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(ITL_S)


class Metrics(Collector):
    """The gateway's metrics in a registry of their own. `gauges` is replaced whole, about once a second."""

    def __init__(self, version: str, bounds: LabelBounds | None = None) -> None:
        self.bounds = bounds or LabelBounds()
        self.gauges = Gauges()
        self._build = {"version": version, "python": platform.python_version()}
        who = ("workflow", "engine")
        self.energy = Totals(
            "joulegate_workflow_energy_joules",
            "Busy joules of settled requests, attributed so that they sum to the devices' `workflow` share.",
            ("tenant", "workflow", "step", "engine", "component", "quality"),
            per_unit=10**6,
        )
        self.devices = Totals(
            "joulegate_device_energy_joules",
            "What became of the joules that a device's counter moved; the shares sum to it, less what is not settled.",
            ("host", "device", "share", "quality"),
            per_unit=10**6,
        )
        self.waste = Totals(
            "joulegate_waste_joules",
            "Joules, within the workflow's own, of attempts whose work nobody received.",
            ("workflow", "reason"),
            per_unit=10**6,
        )
        self.savings = Totals(
            "joulegate_saved_joules",
            "Joules that prompt tokens found in the prefix cache did not cost, by the fitted price; in no other total.",
            ("workflow", "quality"),
            per_unit=10**6,
        )
        self.tokens_by_kind = Totals(
            "joulegate_workflow_tokens",
            "Tokens; `prompt` are prompt tokens computed, `cached` those found in the prefix cache: no overlap.",
            ("tenant", "workflow", "step", "kind"),
        )
        self.budgets = Totals(
            "joulegate_budget_actions",
            "What budgets did: `low` and `spent` once a period, `capped`, `refused` and `stopped` for each request.",
            ("tenant", "period", "action"),
        )
        self.policy_setbacks = Totals(
            "joulegate_policy_setbacks",
            "How often the default took the policy's place: it raised, was late, answered with no decision, or missed "
            "an objective.",
            ("policy", "reason"),
        )
        self.requests = Totals(
            "joulegate_requests",
            "Requests that ended.",
            ("tenant", "workflow", "engine", "model", "code", "outcome"),
        )
        self.ignored_ids = Totals("joulegate_ignored_ids", "Ids of other tools that could not be ids.", ())
        self.dropped_receipts = Totals(
            "joulegate_ledger_dropped_requests", "Requests that the ledger keeps as sums alone, for want of room.", ()
        )
        self.dropped_energy = Totals(
            "joulegate_ledger_dropped_joules", "Their joules, which are in the totals all the same.", (), per_unit=10**6
        )
        self.dropped(0, 0)
        self._born: set[tuple[str, str, str, str]] = set()
        self.run_energy = Histogram("joulegate_run_energy_joules", "Joules of a finished run.", ("workflow",), ENERGY_J)
        self.run_duration = Histogram(
            "joulegate_run_duration_seconds", "First request to last completion of a run.", ("workflow",), RUN_S
        )
        self.request_duration = Histogram(
            "joulegate_request_duration_seconds",
            "Arrival to last byte, with queueing, without the wait for other calls.",
            who,
            REQUEST_S,
        )
        self.ttft_seconds = Histogram("joulegate_ttft_seconds", "Arrival to the first output token.", who, TTFT_S)
        self.itl_seconds = Histogram("joulegate_itl_seconds", "Between two output frames of a stream.", who, ITL_S)
        self.wait_seconds = Histogram("joulegate_queue_wait_seconds", "Arrival at the gate to dispatch.", who, WAIT_S)
        self._tables: tuple[Totals | Histogram, ...] = (
            *(self.energy, self.devices, self.waste, self.savings),
            *(self.tokens_by_kind, self.requests, self.ignored_ids, self.budgets),
            *(self.dropped_receipts, self.dropped_energy, self.policy_setbacks),
            *(self.run_energy, self.run_duration, self.request_duration),
            *(self.ttft_seconds, self.itl_seconds, self.wait_seconds),
        )
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        PlatformCollector(registry=self.registry)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def apply(self, energy: Iterable[EnergyDelta], windows: Iterable[WindowRecord]) -> None:
        """Count one committed batch: all of it, or nothing with a ValueError when a delta is negative."""
        energy, windows = list(energy), list(windows)
        for window in windows:
            if min(window.workflow_uj, window.idle_uj, window.foreign_uj, window.gap_uj) < 0:
                raise ValueError(f"{window}: a share of a window cannot be negative")
        for delta in energy:
            if delta.uj < 0:
                raise ValueError(f"{delta}: settled energy cannot be negative")
        for delta in energy:
            key = (delta.tenant, delta.workflow, delta.step, delta.engine, delta.component, delta.quality.value)
            self.energy.add(key, delta.uj)
        for window in windows:
            host, device = host_and_device(window.device)
            for share in ("workflow", "idle", "foreign", "gap"):
                uj: int = getattr(window, f"{share}_uj")
                self.devices.add((host, device, share, window.quality.value), uj)

    def born(
        self, tenant: str, workflow: str, step: str, engine: str, parts: Callable[[str], Mapping[str, Quality]]
    ) -> None:
        """Make the series of a step's energy, waste, savings and tokens visible at 0, before a joule is settled.

        Prometheus counts growth only: a series that is born at 5 J loses these 5 J.
        """
        key = (tenant, workflow, step, engine)
        if key in self._born:
            return
        self._born.add(key)
        for component, quality in parts(engine).items():
            self.energy.add((*key, component, quality.value), 0)
            for known in {quality, Quality.ESTIMATED}:  # the latter while the price is not fitted
                self.savings.add((workflow, known.value), 0)
            for reason in Waste:
                self.waste.add((workflow, reason.value), 0)
        self.tokens(tenant, workflow, step, 0, 0, 0)

    def ids_ignored(self, count: int) -> None:
        """Ids in other tools' headers that could not be ids."""
        self.ignored_ids.add((), count)

    def dropped(self, requests: int, uj: int) -> None:
        """Receipts that had to be let go before the ledger had them."""
        self.dropped_receipts.add((), requests)
        self.dropped_energy.add((), uj)

    def wasted(self, workflow: str, reason: str, uj: int) -> None:
        """Joules of an attempt that were counted before it was known that they bought nothing."""
        self.waste.add((workflow, reason), uj)

    def saved(self, workflow: str, quality: Quality, uj: int) -> None:
        """Joules of a settled request that were not spent."""
        self.savings.add((workflow, quality.value), uj)

    def budget(self, tenant: str, period: str, action: str) -> None:
        """A budget was found low or spent, or has changed what became of a request."""
        self.budgets.add((tenant, period, action))

    def policy_born(self, policy: str, reasons: Iterable[str]) -> None:
        """Make the series of a policy visible at 0."""
        for reason in reasons:
            self.policy_setbacks.add((policy, reason), 0)

    def policy_set_back(self, policy: str, reason: str) -> None:
        """The default took a policy's place."""
        self.policy_setbacks.add((policy, reason))

    def tokens(self, tenant: str, workflow: str, step: str, prompt: int, cached: int, output: int) -> None:
        """Count a request's usage as OpenAI states it: `prompt` includes `cached`."""
        self.tokens_by_kind.add((tenant, workflow, step, "prompt"), max(prompt - cached, 0))
        self.tokens_by_kind.add((tenant, workflow, step, "cached"), cached)
        self.tokens_by_kind.add((tenant, workflow, step, "output"), output)

    def run_done(self, workflow: str, run: str, uj: int, duration_s: float, now: float) -> None:
        """A run is final: its settled energy and its duration, with its id as exemplar."""
        exemplar = {"run_id": run}
        self.run_energy.observe_with((workflow,), uj / 1e6, exemplar, now)
        self.run_duration.observe_with((workflow,), duration_s, exemplar, now)

    def request_done(
        self, tenant: str, workflow: str, engine: str, model: str, code: int, outcome: Outcome, duration_s: float
    ) -> None:
        """A request ended; `engine` is empty when none was reached. The model's name is bounded here."""
        self.requests.add((tenant, workflow, engine, self.bounds.model(model), str(code), outcome._value_))
        self.request_duration.observe((workflow, engine), duration_s)

    def ttft(self, workflow: str, engine: str, s: float) -> None:
        self.ttft_seconds.observe((workflow, engine), s)

    def itl_flush(self, workflow: str, engine: str, itl: Itl) -> None:
        """Move a stream's intervals into the histogram; `itl` is empty afterwards and may go on counting."""
        self.itl_seconds.series((workflow, engine)).take(itl)

    def queue_wait(self, workflow: str, engine: str, s: float) -> None:
        self.wait_seconds.observe((workflow, engine), s)

    def collect(self) -> Iterator[Metric]:
        for table in self._tables:
            yield from table.families()
        overflow = CounterMetricFamily(
            "joulegate_label_overflow", "Label values beyond the bound, shown as `other`.", labels=("label",)
        )
        for label, count in self.bounds.overflow.items():
            overflow.add_metric((label,), count)
        yield overflow
        yield from self.gauges.families()
        yield InfoMetricFamily("joulegate_build", "What is running.", value=self._build)

    def snapshot(self) -> list[Metric]:
        """Everything as of now, for `encode`; to be called by the owner."""
        return list(self.registry.collect())

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, as the Accept header asks: exemplars are in OpenMetrics alone."""
        return encode(self.snapshot(), accept)


class _Taken(Collector):
    """A snapshot in a collector's place, which is what the encoders take."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def encode(families: list[Metric], accept: str) -> tuple[bytes, str]:
    """A snapshot as bytes and their content type. Touches no live series, so it may run in any thread."""
    wanted = (part.partition(";")[0].strip() for part in accept.split(","))
    if "application/openmetrics-text" in wanted:
        return generate_openmetrics(_Taken(families)), CONTENT_TYPE_LATEST
    return generate_latest(_Taken(families)), CONTENT_TYPE_PLAIN_0_0_4
