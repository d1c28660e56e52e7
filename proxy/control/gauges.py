"""The policy's loop in figures for Prometheus."""

from collections.abc import Mapping

from proxy.control.history import Standing
from proxy.control.loop import Control
from proxy.telemetry.policy import PolicyGauges


def policy_gauges(control: Control, held: Mapping[tuple[str, str], int]) -> PolicyGauges:
    """`held` are the requests at each gate that wait for company."""
    signals, release = control.signals, control.decision.release
    workflows = signals.workflows if signals else {}
    devices = signals.devices if signals else {}
    return PolicyGauges(
        control.policy,
        control.standing.value,
        tuple(Standing),
        held,
        hold_s={name: release[name].hold_s if name in release else 0.0 for name in {*workflows, *release}},
        objective_s={
            (name, kind): seconds
            for name, one in workflows.items()
            for kind in ("ttft", "itl", "run")
            if (seconds := getattr(one.objective, f"{kind}_p95_s")) is not None
        },
        sharing={name: one.sharing for name, one in workflows.items() if one.sharing is not None},
        power_limit_w={name: watts for name, d in devices.items() if (watts := d.power_limit_w) is not None},
        sm_clock_mhz={name: mhz for name, d in devices.items() if (mhz := d.sm_clock_mhz) is not None},
        preview_w=control.worth.saved_w if control.worth else None,
    )
