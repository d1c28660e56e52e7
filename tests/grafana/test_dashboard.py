import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from grafana.build import dashboard_json
from grafana.queries import DASHBOARD, Target, ask, has_numbers, unanswered


@pytest.fixture(scope="module")
def panels() -> list[dict[str, Any]]:
    return json.loads(DASHBOARD.read_text())["panels"]


def test_the_dashboard_in_the_tree_is_what_the_code_makes() -> None:
    assert DASHBOARD.read_text() == dashboard_json(), "run: python -m grafana.build"


def test_no_two_panels_overlap(panels: list[dict[str, Any]]) -> None:
    cells = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (panel["gridPos"] for panel in panels)
    ]
    assert not [pair for pair in combinations(cells, 2) if pair[0] & pair[1]]
    assert max(x for taken in cells for x, _ in taken) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_figure_of_energy_says_its_quality(panels: list[dict[str, Any]]) -> None:
    """Sums over different qualities would pass an estimate off as a measurement."""
    figures = [
        (panel["title"], target["legendFormat"])
        for panel in panels
        for target in panel.get("targets", ())
        if panel["fieldConfig"]["defaults"].get("unit") in ("joule", "watt")
    ]
    silent = {title for title, legend in figures if "{{quality}}" not in legend}
    assert len(figures) > 10
    assert silent == {"Wasted joules in this range", "Books out of balance"}, "these have no quality to show"


def test_only_metrics_that_the_gateway_has_are_asked_for(panels: list[dict[str, Any]], prometheus_url: str) -> None:
    known = set(ask(prometheus_url, "label/__name__/values"))
    asked = {
        name
        for panel in panels
        for target in panel.get("targets", ())
        for name in re.findall(r"joulegate_\w+", target["expr"])
    }
    assert asked <= known


def test_every_panel_gets_data_from_a_real_prometheus(
    prometheus_url: str, panels_answer: Callable[[str, Path], None]
) -> None:
    panels_answer(prometheus_url, DASHBOARD)


def test_choices_list_workflows_and_engines(prometheus_url: str) -> None:
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # pyright: ignore[reportOptionalMemberAccess]
            found = ask(prometheus_url, f"label/{label}/values", **{"match[]": metric})
            assert found == {"workflow": ["coding", "search"], "engine": ["e1"]}[variable["name"]]


def test_a_query_without_data_is_noticed(prometheus_url: str, tmp_path: Path) -> None:
    board = tmp_path / "board.json"
    silent = {"expr": "joulegate_no_such_metric", "instant": True}
    board.write_text(json.dumps({"panels": [{"title": "Silent", "targets": [silent]}]}))
    assert [target.panel for target in unanswered(prometheus_url, board)] == ["Silent"]
    with pytest.raises(ValueError, match="parse error"):
        has_numbers(prometheus_url, Target("Broken", "sum by (", instant=True), 60)


def test_shown_joules_are_the_gateways(prometheus_url: str) -> None:
    """The fixture's CPU costs an eighth of its GPU; Prometheus sees both, each with its quality."""
    energy = "joulegate_workflow_energy_joules_total"
    answer = ask(prometheus_url, "query", query=f"sum by (workflow, quality) ({energy})")["result"]
    joules = {(one["metric"]["workflow"], one["metric"]["quality"]): float(one["value"][1]) for one in answer}
    seconds = joules["search", "attributed"] / 120
    assert seconds >= 6 and seconds == int(seconds)
    assert joules["coding", "attributed"] == 240 * seconds
    assert joules["coding", "estimated"] == 30 * seconds


def test_runs_can_be_found_by_exemplar(prometheus_url: str) -> None:
    query = {"query": "joulegate_run_energy_joules_bucket", "start": "0", "end": "4102444800"}
    found = ask(prometheus_url, "query_exemplars", **query)
    runs = {exemplar["labels"]["run_id"] for series in found for exemplar in series["exemplars"]}
    assert {run.rpartition("-")[0] for run in runs} == {"search", "coding"}


def test_rules_are_evaluated_and_nothing_is_alarmed(prometheus_url: str) -> None:
    rules = [rule for group in ask(prometheus_url, "rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule.get("alerts")] == []
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert recorded and all(has_numbers(prometheus_url, Target(name, name, instant=False), 60) for name in recorded)
