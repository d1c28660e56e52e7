from proxy.telemetry.gauges import Gauges
from proxy.telemetry.policy import PolicyGauges

WHOLE = PolicyGauges(
    *("company", "acting", ("acting", "dry_run")),
    held={("e1", "search"): 3},
    hold_s={"search": 2.5},
    objective_s={("search", "ttft"): 2.0},
    sharing={"search": 0.75},
    power_limit_w={"h1/gpu:0": 400.0},
    sm_clock_mhz={"h1/gpu:0": 1200.0},
    preview_w=-12.0,
)


def test_everything_that_is_known_is_shown() -> None:
    shown = {
        (sample.name, *sample.labels.values()): sample.value for family in WHOLE.families() for sample in family.samples
    }
    assert shown == {
        ("joulegate_policy_standing", "company", "acting"): 1,
        ("joulegate_policy_standing", "company", "dry_run"): 0,
        ("joulegate_gate_held", "e1", "search"): 3,
        ("joulegate_gate_hold_seconds", "search"): 2.5,
        ("joulegate_objective_seconds", "search", "ttft"): 2.0,
        ("joulegate_workflow_sharing", "search"): 0.75,
        ("joulegate_device_power_limit_watts", "h1", "gpu:0"): 400.0,
        ("joulegate_device_sm_clock_mhz", "h1", "gpu:0"): 1200.0,
        ("joulegate_policy_preview_watts", "company"): -12.0,
    }


def test_what_is_not_known_is_not_shown() -> None:
    few = PolicyGauges("observe", "acting", ("acting",))
    assert [family.name for family in few.families() if family.samples] == ["joulegate_policy_standing"]
    names = {family.name for family in Gauges().families()}
    assert "joulegate_policy_standing" not in names, "before the first decision there is nothing to say"
