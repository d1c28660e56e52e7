"""Figures as data: what is drawn, before anything draws it. One figure a panel; two renderers read the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from loadgen.campaign.definition import Campaign, Panel
from loadgen.campaign.knobs import KNOBS, Value
from loadgen.campaign.rows import Row
from loadgen.measures import MEASURES
from loadgen.report.points import Point, knob_of, lines, panel_cells

Axis = Literal["left", "right"]
LOG_FROM = 8.0  # a knob whose values span so many times is shown by its logarithm


@dataclass(frozen=True, slots=True)
class Line:
    """Means over a knob with their intervals; `crosses` are values of the knob that were infeasible."""

    name: str
    xs: tuple[float, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    crosses: tuple[float, ...] = ()
    axis: Axis = "left"


@dataclass(frozen=True, slots=True)
class Boxes:
    """The values of every group, side by side at each place of the axis."""

    name: str
    places: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars at each place, of `parts` on top of each other; null where there is none, `crosses` where infeasible."""

    name: str
    places: tuple[str, ...]
    parts: Mapping[str, tuple[float | None, ...]]
    crosses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Something over time, with its mean."""

    name: str
    at_s: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure. `ticks` are the knob's own values, `words` what stands at them where they are no numbers."""

    name: str
    title: str
    x_title: str
    y_title: str
    right_title: str = ""
    lines: tuple[Line, ...] = ()
    boxes: tuple[Boxes, ...] = ()
    bars: tuple[Bars, ...] = ()
    traces: tuple[Trace, ...] = ()
    ticks: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    log_x: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.lines or self.bars or self.traces or any(any(one.values) for one in self.boxes))


@dataclass(frozen=True, slots=True)
class Seen:
    """What figures are made of: the rows of all trials, and by cell the hit rates of single runs and a GPU's busy
    shares over the time of one repeat.
    """

    rows: Sequence[Row]
    hit_rates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    busy: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def figure(campaign: Campaign, panel: Panel, seen: Seen) -> Figure:
    """The figure of a panel."""
    knob = knob_of(campaign, panel)
    values = campaign.sweeps[panel.sweep].knobs[knob]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    numeric = len(numbers) == len(values)
    ticks = tuple(float(value) for value in numbers) if numeric else tuple(float(i) for i in range(len(values)))
    title = f"{KNOBS[knob].title} ({KNOBS[knob].unit})" if KNOBS[knob].unit else KNOBS[knob].title
    place = dict(zip(values, ticks, strict=True))
    y_titles = [_titled(name) for name in panel.measures]
    made = Figure(
        name=panel.figure,
        title=panel.title,
        x_title=title,
        y_title=y_titles[0] if y_titles else "",
        ticks=ticks,
        words=tuple(str(value) for value in values),
        log_x=numeric and min(ticks) > 0 and max(ticks) / min(ticks) >= LOG_FROM,
    )
    match panel.kind:
        case "lines":
            return replace(made, lines=_lines(campaign, panel, seen, place))
        case "dual":
            left, right = [f"{MEASURES[name].title}, normalised" for name in panel.measures]
            return replace(made, lines=_dual(campaign, panel, seen, place), y_title=left, right_title=right)
        case "box":
            return replace(made, boxes=_boxes(campaign, panel, seen, knob))
        case "bars":
            return replace(made, bars=_bars(campaign, panel, seen), y_title=f"{_stem(panel)} ({_unit(panel)})")
        case "timeline":
            traces = _traces(campaign, panel, seen, knob)
            return replace(made, traces=traces, x_title="time (s)", y_title="share of time the GPU was busy")


def _lines(campaign: Campaign, panel: Panel, seen: Seen, place: Mapping[Value, float]) -> tuple[Line, ...]:
    made: list[Line] = []
    for measure in panel.measures:
        for series, points in lines(campaign, panel, seen.rows, measure).items():
            name = series if len(panel.measures) == 1 else f"{series}: {MEASURES[measure].title}"
            made.append(_line(name, points, place))
    return _there(made)


def _dual(campaign: Campaign, panel: Panel, seen: Seen, place: Mapping[Value, float]) -> tuple[Line, ...]:
    made: list[Line] = []
    axes: tuple[Axis, Axis] = ("left", "right")
    for measure, axis in zip(panel.measures, axes, strict=True):
        for series, points in lines(campaign, panel, seen.rows, measure).items():
            highest = max((point.interval.mean for point in points if point.interval), default=1.0) or 1.0
            name = f"{series}: {MEASURES[measure].title}"
            made.append(_line(name, points, place, scale=1 / highest, axis=axis))
    return _there(made)


def _there(made: Sequence[Line]) -> tuple[Line, ...]:
    """Those that anything is known of."""
    return tuple(line for line in made if line.xs or line.crosses)


def _line(
    name: str, points: Sequence[Point], place: Mapping[Value, float], scale: float = 1.0, axis: Axis = "left"
) -> Line:
    known = [(place[point.x], point.interval) for point in points if point.interval]
    return Line(
        name=name,
        xs=tuple(x for x, _ in known),
        means=tuple(scale * one.mean for _, one in known),
        lows=tuple(scale * (one.mean if one.low is None else one.low) for _, one in known),
        highs=tuple(scale * (one.mean if one.high is None else one.high) for _, one in known),
        crosses=tuple(place[point.x] for point in points if point.status == "infeasible"),
        axis=axis,
    )


def _boxes(campaign: Campaign, panel: Panel, seen: Seen, knob: str) -> tuple[Boxes, ...]:
    """A group a value of the knob; a place a series. Hit rates are those of runs, other measures those of repeats."""
    measure = panel.measures[0]
    groups: dict[Value, dict[str, tuple[float, ...]]] = {}
    for series, points in lines(campaign, panel, seen.rows, measure).items():
        for point in points:
            values = seen.hit_rates.get(point.cell.key, ()) if measure == "hit_rate" else point.values
            groups.setdefault(point.x, {})[series] = tuple(values)
    title = KNOBS[knob].title.partition(" (")[0]
    return tuple(Boxes(f"{title} {x}", tuple(by), tuple(by.values())) for x, by in groups.items())


def _bars(campaign: Campaign, panel: Panel, seen: Seen) -> tuple[Bars, ...]:
    stacks: dict[str, dict[str, tuple[float | None, ...]]] = {}
    places: dict[str, tuple[str, ...]] = {}
    crosses: dict[str, tuple[str, ...]] = {}
    for measure in panel.measures:
        for series, points in lines(campaign, panel, seen.rows, measure).items():
            means = tuple(point.interval.mean if point.interval else None for point in points)
            stacks.setdefault(series, {})[MEASURES[measure].title.partition(" joules")[0]] = means
            places[series] = tuple(str(point.x) for point in points)
            crosses[series] = tuple(str(point.x) for point in points if point.status == "infeasible")
    known = {
        series: stack
        for series, stack in stacks.items()
        if crosses[series] or any(value is not None for part in stack.values() for value in part)
    }
    return tuple(Bars(series, places[series], stack, crosses[series]) for series, stack in known.items())


def _traces(campaign: Campaign, panel: Panel, seen: Seen, knob: str) -> tuple[Trace, ...]:
    made: list[Trace] = []
    for series, cells in panel_cells(campaign, panel).items():
        for cell in cells:
            found = seen.busy.get(cell.key, ())
            if not found:
                continue
            name = f"{series}, {KNOBS[knob].title.partition(' (')[0]} {cell.get(knob)}"
            made.append(Trace(name, tuple(at for at, _ in found), tuple(share for _, share in found)))
    return tuple(made)


def _titled(measure: str) -> str:
    one = MEASURES[measure]
    return f"{one.title}, {one.unit}" if one.unit else one.title


def _stem(panel: Panel) -> str:
    return "joules of a run by component" if len(panel.measures) > 1 else MEASURES[next(iter(panel.measures))].title


def _unit(panel: Panel) -> str:
    return MEASURES[next(iter(panel.measures))].unit
