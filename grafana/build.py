"""Writes the dashboard: `python -m grafana.build`. The JSON is checked in; a test compares it with what this makes."""

import json
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import bargauge, stat, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.builders.dashboard import Row as RowBuilder
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from grafana.panels import ROWS, Panel, Query

TARGET = Path(__file__).parent / "dashboards" / "joulegate.json"
PROMETHEUS = DataSourceRef("prometheus", "$datasource")
GRID_WIDTH = 24
HEIGHT = {"stat": 4, "bars": 8, "lines": 8, "stack": 8}

AnyPanel = timeseries.Panel | stat.Panel | bargauge.Panel


def dashboard_json() -> str:
    """The dashboard as Grafana reads it; the same bytes at every call."""
    return json.dumps(_dashboard().build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _dashboard() -> Dashboard:
    board = (
        Dashboard("Joulegate")
        .uid("joulegate")
        .description("What LLM workflows cost in joules, and what that buys.")
        .tags(["joulegate", "energy", "llm"])
        .time("now-30m", "now")
        .refresh("5s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_choice("workflow"))
        .with_variable(_choice("engine"))
    )
    y, ids = 0, count(1)
    for row in ROWS:
        board.with_row(RowBuilder(row.title).id(next(ids)).grid_pos(GridPos(h=1, w=GRID_WIDTH, x=0, y=y)))
        x, y = 0, y + 1
        for panel in row.panels:
            height = HEIGHT[panel.kind]
            board.with_panel(_panel(panel).id(next(ids)).grid_pos(GridPos(h=height, w=panel.width, x=x, y=y)))
            x += panel.width
            if x == GRID_WIDTH:
                x, y = 0, y + height
    return board


def _choice(label: str) -> QueryVariable:
    query: dict[str, object] = {"query": f"label_values(joulegate_requests_total, {label})", "refId": label}
    return (
        QueryVariable(label)
        .label(label.capitalize())
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel) -> AnyPanel:
    if panel.kind == "stat":
        built: AnyPanel = _stat()
    elif panel.kind == "bars":
        built = _bars()
    else:
        built = _course(stacked=panel.kind == "stack")
    built.title(panel.title).description(panel.why).unit(panel.unit).datasource(PROMETHEUS)
    instant = panel.kind in ("stat", "bars")
    for ref_id, query in zip("ABCDEFG", panel.queries, strict=False):
        built.with_target(_target(query, ref_id, instant))
    return built


def _target(query: Query, ref_id: str, instant: bool) -> Dataquery:
    target = Dataquery().ref_id(ref_id).expr(query.expr).legend_format(query.legend).exemplar(query.exemplar)
    return target.instant() if instant else target.range()


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _bars() -> bargauge.Panel:
    return (
        bargauge.Panel()
        .display_mode(BarGaugeDisplayMode.BASIC)
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .min(0)
    )


def _course(stacked: bool) -> timeseries.Panel:
    legend = VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    return (
        timeseries.Panel()
        .legend(legend)
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .show_points(VisibilityMode.NEVER)
        .fill_opacity(40 if stacked else 5)
        .stacking(StackingConfig().mode(StackingMode.NORMAL if stacked else StackingMode.NONE))
        .min(0)
    )


if __name__ == "__main__":
    TARGET.write_text(dashboard_json())
