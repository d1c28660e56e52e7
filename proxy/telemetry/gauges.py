"""The state of the moment, as gauges. It is replaced whole, so that what is gone is no longer shown."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from proxy.breaker import State
from proxy.energy.method import Method
from proxy.energy.records import Quality
from proxy.telemetry.places import host_and_device
from proxy.telemetry.policy import PolicyGauges


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is not named is not shown. Gates are keyed (engine, workflow), devices are `h1/gpu:0`."""

    power_w: Mapping[tuple[str, Quality], float] = field(default_factory=dict)  # (device, quality)
    sample_age_s: Mapping[str, float] = field(default_factory=dict)  # device
    in_flight: Mapping[tuple[str, str], int] = field(default_factory=dict)
    queued: Mapping[tuple[str, str], int] = field(default_factory=dict)
    limit: Mapping[tuple[str, str], int] = field(default_factory=dict)  # a gate without a limit is left out
    nodes_held: int = 0
    engine_up: Mapping[str, bool] = field(default_factory=dict)
    breaker: Mapping[str, str] = field(default_factory=dict)  # engine -> its state
    budget_uj: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)  # (tenant, period): limit, spent
    ledger_writable: bool = True
    ledger_backlog: int = 0  # batches not yet committed
    ledger_waiting: int = 0  # requests in them
    methods: Mapping[str, Method] = field(default_factory=dict)  # engine
    policy: PolicyGauges | None = None

    def families(self) -> Iterator[Metric]:
        power = GaugeMetricFamily(
            "joulegate_power_watts", "Power by the device's own counter.", labels=("host", "device", "quality")
        )
        for (name, quality), power_w in self.power_w.items():
            power.add_metric((*host_and_device(name), quality.value), power_w)
        yield power
        age = GaugeMetricFamily(
            "joulegate_energy_sample_age_seconds", "Since a device was last read.", labels=("host", "device")
        )
        for name, age_s in self.sample_age_s.items():
            age.add_metric(host_and_device(name), age_s)
        yield age
        for gauge, doc, values in (
            ("in_flight", "Requests at the engine.", self.in_flight),
            ("queued", "Requests that wait at the gate.", self.queued),
            ("limit", "Requests that the gate lets be in flight at once.", self.limit),
        ):
            gate = GaugeMetricFamily(f"joulegate_gate_{gauge}", doc, labels=("engine", "workflow"))
            for key, count in values.items():
                gate.add_metric(key, count)
            yield gate
        yield GaugeMetricFamily(
            "joulegate_nodes_held", "Named calls that wait for others of their run.", value=self.nodes_held
        )
        up = GaugeMetricFamily("joulegate_engine_up", "1 when the engine answers.", labels=("engine",))
        for engine, is_up in self.engine_up.items():
            up.add_metric((engine,), int(is_up))
        yield up
        breaker = GaugeMetricFamily(
            "joulegate_engine_breaker", "1 for the state that the engine's breaker is in.", labels=("engine", "state")
        )
        for engine, state in self.breaker.items():
            for name in State:
                breaker.add_metric((engine, name.value), int(state == name))
        yield breaker
        limit = GaugeMetricFamily(
            "joulegate_budget_joules", "What a tenant may spend in a period.", labels=("tenant", "period")
        )
        spent = GaugeMetricFamily(
            "joulegate_budget_spent_joules",
            "What it has spent in it so far; part of it predicted.",
            labels=("tenant", "period"),
        )
        for key, (limit_uj, spent_uj) in self.budget_uj.items():
            limit.add_metric(key, limit_uj / 1e6)
            spent.add_metric(key, spent_uj / 1e6)
        yield limit
        yield spent
        yield GaugeMetricFamily(
            "joulegate_ledger_writable", "0 while the ledger cannot be written.", value=int(self.ledger_writable)
        )
        yield GaugeMetricFamily(
            "joulegate_ledger_waiting_requests", "Requests in batches that wait.", value=self.ledger_waiting
        )
        yield GaugeMetricFamily(
            "joulegate_ledger_backlog", "Batches that the ledger has not yet committed.", value=self.ledger_backlog
        )
        yield from self._attribution()
        if self.policy is not None:
            yield from self.policy.families()

    def _attribution(self) -> Iterator[Metric]:
        prices = GaugeMetricFamily(
            "joulegate_attribution_price_joules",
            "Joules that shares are computed with: of a step, an uncached prompt token, an output and a context token.",
            labels=("engine", "price"),
        )
        spread = GaugeMetricFamily(
            "joulegate_attribution_price_spread", "The factor by which each price may be off.", labels=("engine",)
        )
        windows = GaugeMetricFamily(
            "joulegate_attribution_windows",
            "Windows of the engine's own that its prices rest on; 0 is the prior.",
            labels=("engine",),
        )
        drifts = CounterMetricFamily(
            "joulegate_attribution_drifts", "How often the machine was found to have changed.", labels=("engine",)
        )
        for engine, method in self.methods.items():
            for price in ("step", "prompt", "output", "context"):
                prices.add_metric((engine, price), getattr(method, f"{price}_j"))
            spread.add_metric((engine,), method.spread)
            windows.add_metric((engine,), method.windows)
            drifts.add_metric((engine,), method.drifts)
        yield from (prices, spread, windows, drifts)
