from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from proxy.energy.method import Method
from proxy.energy.records import Outcome, Quality, WindowRecord
from proxy.telemetry.bounds import LabelBounds
from proxy.telemetry.metrics import EnergyDelta, Gauges, Itl, Metrics

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
SEARCH = {"tenant": "default", "workflow": "search", "step": "query"}


def delta(uj: int, component: str = "gpu") -> EnergyDelta:
    return EnergyDelta("default", "search", "query", "e1", component, Quality.ATTRIBUTED, uj)


def window(workflow_uj: int = 0, idle_uj: int = 0, foreign_uj: int = 0, gap_uj: int = 0) -> WindowRecord:
    return WindowRecord("h1/gpu:0", 1, Quality.MEASURED, workflow_uj, idle_uj, foreign_uj, gap_uj)


def samples(metrics: Metrics, accept: str = "") -> list[Sample]:
    page = metrics.render(accept)[0].decode()
    parse = parse_openmetrics if "openmetrics" in accept else parse_text
    return [sample for family in parse(page) for sample in family.samples]


def value(metrics: Metrics, name: str, labels: Mapping[str, str]) -> float:
    (found,) = [sample.value for sample in samples(metrics) if sample.name == name and sample.labels == labels]
    return found


@given(parts=st.lists(st.tuples(*[st.integers(0, 10**10)] * 4), min_size=1, max_size=20))
def test_the_page_agrees_with_the_books_to_the_microjoule(parts: list[tuple[int, int, int, int]]) -> None:
    metrics = Metrics("0")
    for workflow_uj, idle_uj, foreign_uj, gap_uj in parts:
        metrics.apply([delta(workflow_uj)], [window(workflow_uj, idle_uj, foreign_uj, gap_uj)])
    device = {"host": "h1", "device": "gpu:0", "quality": "measured"}
    page = {
        tuple(sorted(s.labels.items())): s.value for s in samples(metrics) if s.name.endswith("energy_joules_total")
    }
    for index, share in enumerate(("workflow", "idle", "foreign", "gap")):
        shown = page[tuple(sorted({**device, "share": share}.items()))]
        assert round(shown * 1e6) == sum(part[index] for part in parts)
    receipts = {**SEARCH, "engine": "e1", "component": "gpu", "quality": "attributed"}
    assert round(page[tuple(sorted(receipts.items()))] * 1e6) == sum(part[0] for part in parts)


def test_a_batch_with_a_negative_share_moves_nothing() -> None:
    metrics = Metrics("0")
    with pytest.raises(ValueError, match="negative"):
        metrics.apply([delta(5), delta(-1)], [window(4)])
    with pytest.raises(ValueError, match="negative"):
        metrics.apply([delta(5)], [window(5, gap_uj=-5)])
    assert not [sample for sample in samples(metrics) if "joules" in sample.name and sample.value]


def test_waste_is_counted_within_the_energy() -> None:
    metrics = Metrics("0")
    metrics.apply([delta(2_000_000), delta(500_000)], [])
    metrics.wasted("search", "cancelled", 1_500_000)
    metrics.wasted("search", "retried", 250_000)
    metrics.saved("search", Quality.ATTRIBUTED, 125_000)
    assert value(metrics, "joulegate_waste_joules_total", {"workflow": "search", "reason": "cancelled"}) == 1.5
    assert value(metrics, "joulegate_waste_joules_total", {"workflow": "search", "reason": "retried"}) == 0.25
    assert value(metrics, "joulegate_saved_joules_total", {"workflow": "search", "quality": "attributed"}) == 0.125
    energy = {**SEARCH, "engine": "e1", "component": "gpu", "quality": "attributed"}
    assert value(metrics, "joulegate_workflow_energy_joules_total", energy) == 2.5, "waste is part of the energy"


def test_waste_and_savings_of_a_step_are_shown_before_there_is_any() -> None:
    """A series that is born with joules loses them in Prometheus' eyes."""
    metrics = Metrics("0")
    metrics.born("default", "search", "query", "e1", lambda _: {"gpu": Quality.ATTRIBUTED})
    for reason in ("cancelled", "failed", "retried", "orphaned", "stopped"):
        assert value(metrics, "joulegate_waste_joules_total", {"workflow": "search", "reason": reason}) == 0
    for quality in ("attributed", "estimated"):
        assert value(metrics, "joulegate_saved_joules_total", {"workflow": "search", "quality": quality}) == 0


def test_what_budgets_did_is_counted() -> None:
    metrics = Metrics("0")
    for action in ("low", "refused", "refused"):
        metrics.budget("acme", "hour", action)
    labels = {"tenant": "acme", "period": "hour"}
    counts = [value(metrics, "joulegate_budget_actions_total", {**labels, "action": a}) for a in ("low", "refused")]
    assert counts == [1, 2]


def test_kinds_of_tokens_do_not_overlap() -> None:
    metrics = Metrics("0")
    metrics.tokens("default", "search", "query", prompt=3000, cached=2900, output=40)
    shown = {s.labels["kind"]: s.value for s in samples(metrics) if s.name == "joulegate_workflow_tokens_total"}
    assert shown == {"prompt": 100, "cached": 2900, "output": 40}


def test_a_request_is_counted_with_a_bounded_model_name() -> None:
    metrics = Metrics("0", LabelBounds(models=1))
    for model in ("llama", "made-up-1", "made-up-2", "llama"):
        metrics.request_done("default", "search", "e1", model, 200, Outcome.OK, 0.3)
    labels = {"tenant": "default", "workflow": "search", "engine": "e1", "code": "200", "outcome": "ok"}
    assert value(metrics, "joulegate_requests_total", {**labels, "model": "llama"}) == 2
    assert value(metrics, "joulegate_requests_total", {**labels, "model": "other"}) == 2
    assert value(metrics, "joulegate_label_overflow_total", {"label": "model"}) == 2
    duration = {"workflow": "search", "engine": "e1"}
    assert value(metrics, "joulegate_request_duration_seconds_count", duration) == 4


def test_latencies_reach_their_histograms() -> None:
    metrics, itl = Metrics("0"), Itl()
    who = {"workflow": "search", "engine": "e1"}
    metrics.ttft("search", "e1", 0.25)
    metrics.queue_wait("search", "e1", 2.0)
    for s in (0.02, 0.03, 0.5):
        itl.observe(s)
    metrics.itl_flush("search", "e1", itl)
    metrics.itl_flush("search", "e1", itl)
    assert value(metrics, "joulegate_ttft_seconds_sum", who) == 0.25
    assert value(metrics, "joulegate_queue_wait_seconds_sum", who) == 2.0
    assert value(metrics, "joulegate_itl_seconds_count", who) == 3
    assert value(metrics, "joulegate_itl_seconds_sum", who) == pytest.approx(0.55)
    assert value(metrics, "joulegate_itl_seconds_bucket", {**who, "le": "0.03"}) == 2


def test_runs_carry_their_id_as_exemplar_in_openmetrics_alone() -> None:
    metrics = Metrics("0")
    metrics.run_done("search", 'run "7"\\', 12_500_000, 3.0, now=1_700_000_000.5)
    found = [sample for sample in samples(metrics, OPENMETRICS) if sample.exemplar]
    assert [(sample.name, sample.labels["le"]) for sample in found] == [
        ("joulegate_run_energy_joules_bucket", "20.0"),
        ("joulegate_run_duration_seconds_bucket", "5.0"),
    ]
    for sample in found:
        assert sample.exemplar and sample.exemplar.labels == {"run_id": 'run "7"\\'}
    assert b"run_id" not in metrics.render("text/plain")[0]


@pytest.mark.parametrize(("length", "shown"), [(122, True), (123, False)])
def test_an_id_too_long_for_an_exemplar_is_left_out(length: int, shown: bool) -> None:
    metrics = Metrics("0")
    metrics.run_done("search", "x" * length, 1, 1.0, now=1.0)
    assert any(sample.exemplar for sample in samples(metrics, OPENMETRICS)) is shown
    assert value(metrics, "joulegate_run_energy_joules_count", {"workflow": "search"}) == 1


METHOD = Method("fitted", 412, 2.0, 0.5, 0.25, 0.125, 1.25, 2, "", "counted", "told", None, None)


def test_gauges_show_the_moment_and_forget_what_is_gone() -> None:
    metrics = Metrics("0")
    metrics.gauges = Gauges(
        power_w={("h1/gpu:0", Quality.EMULATED): 310.5},
        sample_age_s={"h1/gpu:0": 0.08},
        in_flight={("e1", "search"): 4},
        queued={("e1", "search"): 2},
        limit={("e1", "search"): 4},
        engine_up={"e1": True, "e2": False},
        breaker={"e1": "half_open"},
        budget_uj={("acme", "day"): (2_000_000, 500_000)},
        ledger_backlog=3,
        methods={"e1": METHOD},
    )
    gate = {"engine": "e1", "workflow": "search"}
    assert value(metrics, "joulegate_power_watts", {"host": "h1", "device": "gpu:0", "quality": "emulated"}) == 310.5
    assert value(metrics, "joulegate_energy_sample_age_seconds", {"host": "h1", "device": "gpu:0"}) == 0.08
    assert [value(metrics, f"joulegate_gate_{name}", gate) for name in ("in_flight", "queued", "limit")] == [4, 2, 4]
    assert [value(metrics, "joulegate_engine_up", {"engine": name}) for name in ("e1", "e2")] == [1, 0]
    states = [value(metrics, "joulegate_engine_breaker", {"engine": "e1", "state": s}) for s in ("open", "half_open")]
    assert states == [0, 1]
    budget = {"tenant": "acme", "period": "day"}
    assert [value(metrics, f"joulegate_budget{name}_joules", budget) for name in ("", "_spent")] == [2, 0.5]
    assert value(metrics, "joulegate_ledger_backlog", {}) == 3
    prices = {name: {"engine": "e1", "price": name} for name in ("step", "prompt", "output", "context")}
    assert [value(metrics, "joulegate_attribution_price_joules", one) for one in prices.values()] == [
        2,
        0.5,
        0.25,
        0.125,
    ]
    told = [value(metrics, f"joulegate_attribution_{name}", {"engine": "e1"}) for name in ("price_spread", "windows")]
    assert told == [1.25, 412] and value(metrics, "joulegate_attribution_drifts_total", {"engine": "e1"}) == 2
    metrics.gauges = Gauges()
    assert not [s for s in samples(metrics) if s.name.startswith(("joulegate_gate", "joulegate_power"))]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (OPENMETRICS, "application/openmetrics-text"),
        ("application/openmetrics-text; version=nonsense", "application/openmetrics-text"),
        ("text/plain", "text/plain"),
        ("*/*", "text/plain"),
        ("", "text/plain"),
    ],
)
def test_the_accept_header_chooses_the_format(accept: str, kind: str) -> None:
    page, content_type = Metrics("0").render(accept)
    assert content_type.startswith(kind)
    assert page.endswith(b"# EOF\n") is (kind != "text/plain")


def test_the_process_says_what_it_is() -> None:
    shown = {sample.name: sample for sample in samples(Metrics("1.2.3"))}
    assert shown["joulegate_build_info"].labels["version"] == "1.2.3"
    assert shown["joulegate_build_info"].labels["python"].startswith("3.")
    assert "python_info" in shown
