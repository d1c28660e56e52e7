"""What the dashboard shows: rows of panels, each a question with its PromQL.

Joules of different quality are never summed: every sum keeps the `quality` label, and the legend says it.
"""

from dataclasses import dataclass
from typing import Literal

WORKFLOW = 'workflow=~"$workflow"'
BOTH = f'{WORKFLOW},engine=~"$engine"'
RATE = "$__rate_interval"
RANGE = "$__range"

ENERGY = "joulegate_workflow_energy_joules_total"
DEVICE = "joulegate_device_energy_joules_total"
TOKENS = "joulegate_workflow_tokens_total"


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str
    exemplar: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel. `stat` and `bars` show one moment (their queries are instant), the others a course."""

    title: str
    why: str
    unit: str
    kind: Literal["stat", "bars", "lines", "stack"]
    queries: tuple[Query, ...]
    width: int = 8


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def per_second(metric: str, by: str, where: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def over_range(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (increase({metric}{{{where}}}[{RANGE}]))"


def ratio(numerator: str, denominator: str) -> str:
    """Per workflow, and only where the denominator is not zero; the numerator may keep a quality."""
    return f"{numerator} / on (workflow) group_left () ({denominator} > 0)"


def with_quality(expr: str) -> str:
    """Per-workflow figures of energy, once for each quality that the workflow's joules have."""
    return f"({expr}) * on (workflow) group_right () group by (workflow, quality) ({ENERGY}{{{WORKFLOW}}})"


def quantile(q: float, histogram: str, by: str, where: str) -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({histogram}_bucket{{{where}}}[{RATE}])))"


def mean(histogram: str, window: str) -> str:
    total = f"sum by (workflow) (rate({histogram}_sum{{{WORKFLOW}}}[{window}]))"
    return ratio(total, f"sum by (workflow) (rate({histogram}_count{{{WORKFLOW}}}[{window}]))")


def latency(title: str, why: str, histogram: str) -> Panel:
    queries = [
        Query(quantile(q, histogram, "workflow, engine", BOTH), f"{{{{workflow}}}} on {{{{engine}}}} p{round(q * 100)}")
        for q in (0.5, 0.95)
    ]
    return Panel(title, why, "s", "lines", tuple(queries))


NOW = Row(
    "At a glance",
    (
        Panel(
            "Power",
            "What all devices draw now. Watch the quality: estimated and emulated watts are no measurement.",
            "watt",
            "stat",
            (Query("sum by (quality) (joulegate_power_watts)", "{{quality}}"),),
            width=4,
        ),
        Panel(
            "Energy in this range",
            "Joules of all devices, by the quality of their counters.",
            "joule",
            "stat",
            (Query(over_range(DEVICE, "quality"), "{{quality}}"),),
            width=4,
        ),
        Panel(
            "Joules per output token",
            "Busy joules of the chosen workflows over their output tokens, in this range.",
            "joule",
            "stat",
            (
                Query(
                    f"{over_range(ENERGY, 'quality', WORKFLOW)} / on () group_left () "
                    f'(sum (increase({TOKENS}{{kind="output",{WORKFLOW}}}[{RANGE}])) > 0)',
                    "{{quality}}",
                ),
            ),
            width=4,
        ),
        Panel(
            "Mean joules per run",
            "Of the runs that became final in this range.",
            "joule",
            "stat",
            (Query(with_quality(mean("joulegate_run_energy_joules", RANGE)), "{{workflow}} ({{quality}})"),),
            width=4,
        ),
        Panel(
            "Output tokens per second",
            "Of the chosen workflows.",
            "none",
            "stat",
            (Query(f'sum (rate({TOKENS}{{kind="output",{WORKFLOW}}}[{RATE}]))', "tokens/s"),),
            width=4,
        ),
        Panel(
            "In flight and queued",
            "Requests at the engines, and requests that wait at their gates.",
            "none",
            "stat",
            (
                Query(f"sum (joulegate_gate_in_flight{{{BOTH}}})", "in flight"),
                Query(f"sum (joulegate_gate_queued{{{BOTH}}})", "queued"),
            ),
            width=4,
        ),
    ),
)

ENERGY_ROW = Row(
    "Where the joules go",
    (
        Panel(
            "Power by device",
            "By each device's own counter.",
            "watt",
            "lines",
            (Query("joulegate_power_watts", "{{host}}/{{device}} ({{quality}})"),),
        ),
        Panel(
            "Shares of each device",
            "workflow: in settled receipts; idle: nothing in flight; foreign: work that did not come through here; "
            "gap: nobody was counting.",
            "watt",
            "stack",
            (
                Query(
                    per_second(DEVICE, "host, device, share, quality", ""),
                    "{{host}}/{{device}} {{share}} ({{quality}})",
                ),
            ),
        ),
        Panel(
            "Shares in this range",
            "The same, as joules.",
            "joule",
            "bars",
            (Query(over_range(DEVICE, "share, quality"), "{{share}} ({{quality}})"),),
        ),
        Panel(
            "Power by workflow",
            "Busy joules a second, counted when settled, which may be some seconds after they were spent.",
            "watt",
            "stack",
            (Query(per_second(ENERGY, "workflow, quality", BOTH), "{{workflow}} ({{quality}})"),),
        ),
        Panel(
            "Joules by workflow in this range",
            "Busy joules of settled requests.",
            "joule",
            "bars",
            (Query(over_range(ENERGY, "workflow, quality", BOTH), "{{workflow}} ({{quality}})"),),
        ),
        Panel(
            "Wasted joules in this range",
            "Within the above: attempts that were cancelled, failed, had to be retried, lost their gateway, or were "
            "stopped by a budget.",
            "joule",
            "bars",
            (
                Query(
                    over_range("joulegate_waste_joules_total", "workflow, reason", WORKFLOW), "{{workflow}} {{reason}}"
                ),
            ),
        ),
        Panel(
            "Joules saved by the prefix cache in this range",
            "In no other figure: cached prompt tokens times the price of one that is not.",
            "joule",
            "bars",
            (
                Query(
                    over_range("joulegate_saved_joules_total", "workflow, quality", WORKFLOW),
                    "{{workflow}} ({{quality}})",
                ),
            ),
        ),
        Panel(
            "Power by step",
            "Which role in a workflow spends it.",
            "watt",
            "stack",
            (Query(per_second(ENERGY, "workflow, step, quality", BOTH), "{{workflow}} / {{step}} ({{quality}})"),),
        ),
        Panel(
            "Power by engine and component",
            "GPU, CPU and DRAM behind each engine.",
            "watt",
            "stack",
            (Query(per_second(ENERGY, "engine, component, quality", BOTH), "{{engine}} {{component}} ({{quality}})"),),
        ),
    ),
)

RUNS = Row(
    "What a run costs",
    (
        Panel(
            "Joules per run",
            "Of final runs; the dots are single runs, and lead to their receipts.",
            "joule",
            "lines",
            (
                *(
                    Query(
                        with_quality(quantile(q, "joulegate_run_energy_joules", "workflow", WORKFLOW)),
                        f"{{{{workflow}}}} p{round(q * 100)} ({{{{quality}}}})",
                        exemplar=q == 0.95,
                    )
                    for q in (0.5, 0.95)
                ),
                Query(with_quality(mean("joulegate_run_energy_joules", RATE)), "{{workflow}} mean ({{quality}})"),
            ),
        ),
        Panel(
            "Duration of a run",
            "First request to last completion.",
            "s",
            "lines",
            tuple(
                Query(
                    quantile(q, "joulegate_run_duration_seconds", "workflow", WORKFLOW),
                    f"{{{{workflow}}}} p{round(q * 100)}",
                    exemplar=q == 0.95,
                )
                for q in (0.5, 0.95)
            ),
        ),
        Panel(
            "Runs per minute",
            "Runs that became final.",
            "none",
            "lines",
            (Query(f"60 * {per_second('joulegate_run_energy_joules_count', 'workflow', WORKFLOW)}", "{{workflow}}"),),
        ),
        Panel(
            "Joules per output token by workflow",
            "Busy joules over output tokens. The engine filter does not apply: tokens are counted per workflow.",
            "joule",
            "lines",
            (
                Query(
                    ratio(
                        per_second(ENERGY, "workflow, quality", WORKFLOW),
                        per_second(TOKENS, "workflow", f'kind="output",{WORKFLOW}'),
                    ),
                    "{{workflow}} ({{quality}})",
                ),
            ),
        ),
        Panel(
            "Tokens per second",
            "prompt: computed; cached: found in the prefix cache; output: generated.",
            "none",
            "stack",
            (Query(per_second(TOKENS, "workflow, kind", WORKFLOW), "{{workflow}} {{kind}}"),),
        ),
        Panel(
            "Prompt tokens found in the prefix cache",
            "Share of all prompt tokens; what is found costs next to nothing.",
            "percentunit",
            "lines",
            (
                Query(
                    ratio(
                        per_second(TOKENS, "workflow", f'kind="cached",{WORKFLOW}'),
                        per_second(TOKENS, "workflow", f'kind=~"cached|prompt",{WORKFLOW}'),
                    ),
                    "{{workflow}}",
                ),
            ),
        ),
    ),
)

LATENCY = Row(
    "Latency and outcome",
    (
        latency("Time to first token", "Arrival to first token, queueing included.", "joulegate_ttft_seconds"),
        latency("Inter-token latency", "Between two frames of a stream.", "joulegate_itl_seconds"),
        latency("Queue wait", "What the gate held back.", "joulegate_queue_wait_seconds"),
        latency("Duration of a request", "Arrival to last byte.", "joulegate_request_duration_seconds"),
        Panel(
            "Requests by outcome",
            "error: the engine said no; failed: it broke; cancelled: the client left; refused: the gateway said no.",
            "reqps",
            "stack",
            (Query(per_second("joulegate_requests_total", "outcome, code", BOTH), "{{outcome}} {{code}}"),),
        ),
        Panel(
            "Requests by workflow and model",
            "What was asked of which model.",
            "reqps",
            "stack",
            (Query(per_second("joulegate_requests_total", "workflow, model", BOTH), "{{workflow}} {{model}}"),),
        ),
    ),
)

GATE = Row(
    "Gate and engines",
    (
        Panel(
            "In flight and limit",
            "Requests at the engine, and how many the policy lets in at once.",
            "none",
            "lines",
            (
                Query(f"joulegate_gate_in_flight{{{BOTH}}}", "{{workflow}} on {{engine}}"),
                Query(f"joulegate_gate_limit{{{BOTH}}}", "limit of {{workflow}} on {{engine}}"),
            ),
        ),
        Panel(
            "Queued",
            "Requests that wait at the gate.",
            "none",
            "lines",
            (Query(f"joulegate_gate_queued{{{BOTH}}}", "{{workflow}} on {{engine}}"),),
        ),
        Panel(
            "Engine up",
            "1 while it answers.",
            "bool_on_off",
            "lines",
            (Query('joulegate_engine_up{engine=~"$engine"}', "{{engine}}"),),
        ),
    ),
)

HEALTH = Row(
    "Can these figures be trusted",
    (
        Panel(
            "Age of the last reading",
            "A counter that is not read leaves a gap.",
            "s",
            "lines",
            (Query("joulegate_energy_sample_age_seconds", "{{host}}/{{device}}"),),
            width=6,
        ),
        Panel(
            "Books out of balance",
            "Devices' workflow share less the receipts, in joules. Anything but zero is a fault of the gateway.",
            "joule",
            "lines",
            (Query(f'abs (sum ({DEVICE}{{share="workflow"}}) - (sum ({ENERGY}) or vector (0)))', "difference"),),
            width=6,
        ),
        Panel(
            "Ledger backlog and label overflow",
            "Batches not yet committed, and names that had to become `other`.",
            "none",
            "lines",
            (
                Query("joulegate_ledger_backlog", "batches"),
                Query("joulegate_label_overflow_total", "{{label}} overflow"),
            ),
            width=6,
        ),
        Panel(
            "Version",
            "What is running.",
            "none",
            "stat",
            (Query("joulegate_build_info", "joulegate {{version}}, Python {{python}}"),),
            width=6,
        ),
    ),
)

POLICY = Row(
    "Policy",
    (
        Panel(
            "Who holds the gateway",
            "acting: the policy; dry_run, backed_off (an objective was missed), replaced (it failed): the default.",
            "bool_on_off",
            "lines",
            (Query("joulegate_policy_standing", "{{policy}} {{standing}}"),),
        ),
        Panel(
            "Set back in this range",
            "How often the default took the policy's place, and why.",
            "none",
            "bars",
            (Query(over_range("joulegate_policy_setbacks_total", "policy, reason"), "{{policy}}: {{reason}}"),),
        ),
        Panel(
            "Joules per request",
            "All joules of all devices, idle ones too, over the requests that were answered.",
            "joule",
            "lines",
            (
                Query(
                    f"{per_second(DEVICE, 'quality', '')} / on () group_left () "
                    f'(sum (rate(joulegate_requests_total{{outcome="ok"}}[{RATE}])) > 0)',
                    "{{quality}}",
                ),
            ),
        ),
        Panel(
            "Held for company",
            "Requests that wait at the gate for others, and how long a workflow's are held at most.",
            "none",
            "lines",
            (
                Query(f"joulegate_gate_held{{{BOTH}}}", "{{workflow}} on {{engine}}"),
                Query(f"joulegate_gate_hold_seconds{{{WORKFLOW}}}", "{{workflow}}: seconds at most"),
            ),
        ),
        Panel(
            "Objectives",
            "The 95th percentiles that workflows ask for; what they got is under latency.",
            "s",
            "lines",
            (Query(f"joulegate_objective_seconds{{{WORKFLOW}}}", "{{workflow}} {{of}}"),),
        ),
        Panel(
            "Power limits and clocks",
            "In watts and MHz: limits as they are enforced, the SM clock as it is.",
            "none",
            "lines",
            (
                Query("joulegate_device_power_limit_watts", "{{host}}/{{device}} W"),
                Query("joulegate_device_sm_clock_mhz", "{{host}}/{{device}} MHz"),
            ),
        ),
    ),
)

ROWS = (NOW, ENERGY_ROW, RUNS, LATENCY, GATE, POLICY, HEALTH)
