"""The policy's state of the moment, as gauges."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from proxy.telemetry.places import host_and_device


@dataclass(frozen=True, slots=True)
class PolicyGauges:
    """What is not named is not shown."""

    policy: str
    standing: str
    standings: tuple[str, ...]  # all there are
    held: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (engine, workflow) -> requests
    hold_s: Mapping[str, float] = field(default_factory=dict)  # workflow
    objective_s: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (workflow, kind)
    sharing: Mapping[str, float] = field(default_factory=dict)  # workflow -> 0..1
    power_limit_w: Mapping[str, float] = field(default_factory=dict)  # device
    sm_clock_mhz: Mapping[str, float] = field(default_factory=dict)  # device
    preview_w: float | None = None

    def families(self) -> Iterator[Metric]:
        standing = GaugeMetricFamily(
            "joulegate_policy_standing", "1 for who holds the gateway.", labels=("policy", "standing")
        )
        for name in self.standings:
            standing.add_metric((self.policy, name), int(name == self.standing))
        yield standing
        held = GaugeMetricFamily(
            "joulegate_gate_held", "Requests that wait at the gate for company.", labels=("engine", "workflow")
        )
        for key, count in self.held.items():
            held.add_metric(key, count)
        yield held
        hold = GaugeMetricFamily(
            "joulegate_gate_hold_seconds", "How long a request is held at most.", labels=("workflow",)
        )
        for workflow, hold_s in self.hold_s.items():
            hold.add_metric((workflow,), hold_s)
        yield hold
        objective = GaugeMetricFamily(
            "joulegate_objective_seconds",
            "What a workflow's 95th percentile is to be at most.",
            labels=("workflow", "of"),
        )
        for key, seconds in self.objective_s.items():
            objective.add_metric(key, seconds)
        yield objective
        sharing = GaugeMetricFamily(
            "joulegate_workflow_sharing", "Part of a prompt that others begin with too.", labels=("workflow",)
        )
        for workflow, part in self.sharing.items():
            sharing.add_metric((workflow,), part)
        yield sharing
        limit = GaugeMetricFamily(
            "joulegate_device_power_limit_watts", "The power limit that is enforced.", labels=("host", "device")
        )
        for name, watts in self.power_limit_w.items():
            limit.add_metric(host_and_device(name), watts)
        yield limit
        clock = GaugeMetricFamily("joulegate_device_sm_clock_mhz", "The SM clock now.", labels=("host", "device"))
        for name, mhz in self.sm_clock_mhz.items():
            clock.add_metric(host_and_device(name), mhz)
        yield clock
        if self.preview_w is not None:
            worth = GaugeMetricFamily(
                "joulegate_policy_preview_watts",
                "Watts that the policy's last decision saves over the default, by the fitted prices; no measurement.",
                labels=("policy",),
            )
            worth.add_metric((self.policy,), self.preview_w)
            yield worth
