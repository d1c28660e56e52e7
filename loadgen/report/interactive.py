"""The same figures by plotly, for a page that one can point at. The page brings plotly with it and asks no server."""

import json
from typing import Any

from loadgen.report.figures import Bars, Boxes, Figure, Line, Trace
from loadgen.report.plots import COLOURS, CROSS, PARTS, required, wrapped

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "star")


def script() -> str:
    """Plotly itself, to stand once in a page. Raises ReportError."""
    return required("plotly.offline").get_plotlyjs()


def div(figure: Figure) -> str:
    """A figure as a piece of a page that holds `script`."""
    parts = (f"figure-{figure.name}", _data(figure), _layout(figure), {"displaylogo": False, "responsive": True})
    drawn = ", ".join(json.dumps(part).replace("</", "<\\/") for part in parts)  # nothing may end the script early
    return f'<div id="figure-{figure.name}"></div><script>Plotly.newPlot({drawn})</script>'


def _data(figure: Figure) -> list[dict[str, Any]]:
    if figure.boxes:
        return [one for index, group in enumerate(figure.boxes) for one in _box(group, index)]
    if figure.bars:
        return [one for index, stack in enumerate(figure.bars) for one in _bar(stack, index)]
    if figure.traces:
        return [_trace(trace, index) for index, trace in enumerate(figure.traces)]
    return [one for index, line in enumerate(figure.lines) for one in _line(line, index)]


def _layout(figure: Figure) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "title": {"text": figure.title, "font": {"size": 15}},
        "height": 420,
        "margin": {"t": 50, "b": 90},
        "legend": {"orientation": "h", "y": -0.22},
        "xaxis": {"title": {"text": figure.x_title}},
        "yaxis": {"title": {"text": wrapped(figure.y_title, "<br>")}, "rangemode": "tozero"},
        "barmode": "stack",
        "boxmode": "group",
    }
    if figure.lines:
        layout["xaxis"] |= {"tickvals": list(figure.ticks), "ticktext": list(figure.words)}
        if figure.log_x:
            layout["xaxis"]["type"] = "log"
    if figure.right_title:
        right = {"text": wrapped(figure.right_title, "<br>")}
        layout["yaxis2"] = {
            "title": right,
            "overlaying": "y",
            "side": "right",
            "rangemode": "tozero",
            "showgrid": False,
        }
    return layout


def _line(line: Line, index: int) -> list[dict[str, Any]]:
    colour, axis = COLOURS[index % len(COLOURS)], "y2" if line.axis == "right" else "y"
    dash = "dash" if line.axis == "right" else ("solid", "dot")[index // len(COLOURS) % 2]
    shared: dict[str, Any] = {"legendgroup": line.name, "yaxis": axis}
    band = {
        **shared,
        "type": "scatter",
        "x": [*line.xs, *reversed(line.xs)],
        "y": [*line.highs, *reversed(line.lows)],
        "fill": "toself",
        "fillcolor": colour,
        "opacity": 0.18,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    halves = [(high - low) / 2 for low, high in zip(line.lows, line.highs, strict=True)]
    means = {
        **shared,
        "type": "scatter",
        "name": line.name,
        "x": list(line.xs),
        "y": list(line.means),
        "customdata": halves,
        "hovertemplate": "%{x}: %{y:.4g} ± %{customdata:.2g}<extra>%{fullData.name}</extra>",
        "mode": "lines+markers",
        "line": {"color": colour, "dash": dash},
        "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
    }
    if not line.crosses:
        return [band, means]
    height = line.means[-1] if line.means else 0.0
    cross = {
        **shared,
        "type": "scatter",
        "name": f"{line.name}: infeasible",
        "x": list(line.crosses),
        "y": [height] * len(line.crosses),
        "mode": "markers",
        "marker": {"symbol": "x", "size": 11, "color": CROSS},
    }
    return [band, means, cross]


def _box(group: Boxes, index: int) -> list[dict[str, Any]]:
    places = [place for place, values in zip(group.places, group.values, strict=True) for _ in values]
    values = [value for values in group.values for value in values]
    colour = COLOURS[index % len(COLOURS)]
    box = {"type": "box", "name": group.name, "x": places, "y": values, "marker": {"color": colour, "size": 3}}
    return [{**box, "offsetgroup": group.name}]


def _bar(stack: Bars, index: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, (part, values) in enumerate(stack.parts.items()):
        marker: dict[str, Any] = {"color": PARTS[number % len(PARTS)]}
        if index:
            marker["pattern"] = {"shape": "/"}
        name = f"{stack.name}: {part}"
        bar = {"type": "bar", "name": name, "x": list(stack.places), "y": list(values), "marker": marker}
        found.append({**bar, "offsetgroup": stack.name})
    return found


def _trace(trace: Trace, index: int) -> dict[str, Any]:
    line = {"color": COLOURS[index % len(COLOURS)], "width": 1}
    return {"type": "scatter", "name": trace.name, "x": list(trace.at_s), "y": list(trace.values), "line": line}
