"""What was seen beside what was claimed: each expectation of a panel, judged on its line; a sentence for each line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from loadgen.campaign.definition import Campaign, Expect, Panel
from loadgen.campaign.rows import Row
from loadgen.measures import ACCOUNTS, MEASURES
from loadgen.report.points import Point, lines
from loadgen.statistics import line_r2

Verdict = Literal["agrees", "differs", "not seen"]
FLAT = 0.10  # highest over lowest mean
LINEAR_R2 = 0.98
ABOUT = 0.25
ROUNDING = 1e-3  # a smaller share is no difference: repeats of the same work differ by more


@dataclass(frozen=True, slots=True)
class Finding:
    """One expectation, judged. `verdict` is "not seen" where the line has too few points, and `seen` says why."""

    figure: str
    series: str
    measure: str
    expected: str
    seen: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Accounts:
    """The same expectation by the paper's accounting and by ours."""

    paper: Finding
    ours: Finding

    @property
    def changes(self) -> bool:
        """Whether the choice of the accounting changes the finding."""
        return self.paper.verdict != self.ours.verdict


def findings(campaign: Campaign, panel: Panel, rows: Sequence[Row]) -> list[Finding]:
    """Every expectation of a panel, for each of the lines that it speaks of."""
    return [
        one
        for expect in panel.expects
        for measure in ([expect.measure] if expect.measure else panel.measures[:1])
        for one in _judged(campaign, panel, rows, expect, measure)
    ]


def accounts(campaign: Campaign, panel: Panel, rows: Sequence[Row]) -> list[Accounts]:
    """The expectations on a measure that there is in two accountings, by both."""
    other = {**ACCOUNTS, **{ours: paper for paper, ours in ACCOUNTS.items()}}
    found: list[Accounts] = []
    for expect in panel.expects:
        measure = expect.measure or panel.measures[0]
        if measure in other:
            pair = sorted((measure, other[measure]), key=lambda name: name not in ACCOUNTS)
            first, second = (_judged(campaign, panel, rows, expect, name) for name in pair)
            found += [Accounts(paper, ours) for paper, ours in zip(first, second, strict=True)]
    return found


def sentence(points: Sequence[Point], measure: str) -> str:
    """A line in words: where it begins and ends, and its extremes."""
    known = [(point.x, point.interval.mean) for point in points if point.interval]
    if not known:
        reasons = list(dict.fromkeys(f"{point.status}: {point.reason}" for point in points))
        return "; ".join(reasons)
    (first_x, first), (last_x, last) = known[0], known[-1]
    unit = MEASURES[measure].unit
    text = f"{_figure(first)} at {first_x}"
    if len(known) > 1:
        text += f", {_figure(last)} {unit} at {last_x}".replace("  ", " ") + f" ({_change(first, last)})"
        low, high = (f(mean for _, mean in known) for f in (min, max))
        for word, extreme in (("lowest", low), ("highest", high)):
            places = [x for x, mean in known if abs(mean - extreme) <= ROUNDING * abs(extreme)]
            if places not in ([first_x], [last_x]):
                text += f"; {word} at {', '.join(str(x) for x in places)}"
    if marked := [str(point.x) for point in points if point.status == "infeasible"]:
        text += f"; infeasible at {', '.join(marked)}"
    return text


def _judged(campaign: Campaign, panel: Panel, rows: Sequence[Row], expect: Expect, measure: str) -> list[Finding]:
    series = lines(campaign, panel, rows, measure)
    found: list[Finding] = []
    for name, points in series.items():
        if expect.of in (None, name):
            kept = [point for point in points if expect.to is None or _is_at_most(point.x, expect.to)]
            verdict, seen = _verdict(expect, kept, series, measure)
            found.append(Finding(panel.figure, name, measure, _words(expect), seen, verdict))
    if not found:
        why = f"there is no line {expect.of!r} here"
        found.append(Finding(panel.figure, expect.of or "", measure, _words(expect), why, "not seen"))
    return found


def _verdict(
    expect: Expect, points: Sequence[Point], series: Mapping[str, Sequence[Point]], measure: str
) -> tuple[Verdict, str]:
    known = [point for point in points if point.interval]
    seen = sentence(points, measure)
    if expect.shape == "below":
        return _below(known, series.get(str(expect.value), ()), str(expect.value))
    if len(known) < 2 or (expect.shape in ("linear", "sharpest_from") and len(known) < 3):
        return "not seen", seen if not known else f"too few points: {seen}"
    means = [point.interval.mean for point in known if point.interval]
    by_mean = sorted(known, key=lambda point: point.interval.mean if point.interval else 0.0)
    low, high = min(means), max(means)
    match expect.shape:
        case "rises":
            right = _steady(known, +1)
        case "falls":
            right = _steady(known, -1)
        case "flat":
            right = high <= (1 + FLAT) * low
        case "linear":
            r2 = line_r2([_number(point.x) for point in known], means)
            right, seen = r2 >= LINEAR_R2, f"{seen}; R² of a line {r2:.3f}"
        case "lowest_at":
            right = by_mean[0].x == expect.value
        case "highest_at":
            right = by_mean[-1].x == expect.value
        case "sharpest_from":
            steps = {a.x: abs(y - x) for (a, _), (x, y) in zip(pairwise(known), pairwise(means), strict=True)}
            steepest = max(steps, key=lambda x: steps[x])
            right, seen = steepest == expect.value, f"{seen}; the largest step begins at {steepest}"
        case "about":
            ratio, claimed = high / low, float(str(expect.value))
            right, seen = abs(ratio / claimed - 1) <= ABOUT, f"{seen}; highest over lowest {ratio:.2f}"
    return ("agrees" if right else "differs"), seen


def _steady(points: Sequence[Point], sign: int) -> bool:
    """Whether every step goes this way, but for steps that the intervals cannot tell from none, and the whole does."""
    intervals = [point.interval for point in points if point.interval]
    first, last = intervals[0], intervals[-1]
    for before, after in pairwise(intervals):
        back = sign * (after.mean - before.mean) < -ROUNDING * abs(before.mean)
        told_apart = before.low is None or after.low is None or before.high is None or after.high is None
        told_apart = told_apart or _apart(before.low or 0.0, before.high or 0.0, after.low or 0.0, after.high or 0.0)
        if back and told_apart:
            return False
    return sign * (last.mean - first.mean) > ROUNDING * abs(first.mean)


def _apart(low: float, high: float, other_low: float, other_high: float) -> bool:
    return high < other_low or other_high < low


def _below(points: Sequence[Point], others: Sequence[Point], name: str) -> tuple[Verdict, str]:
    above = {other.x: other for other in others}
    pairs = [(point, above[point.x]) for point in points if point.x in above and above[point.x].interval]
    if not pairs:
        why = next((f"{other.status}: {other.reason}" for other in others), "there is no such line")
        return "not seen", f"nothing of {name} ({why})"
    shares = [
        point.interval.mean / other.interval.mean - 1 for point, other in pairs if point.interval and other.interval
    ]
    seen = f"{min(shares):+.0%} to {max(shares):+.0%} of {name}"
    return ("agrees" if max(shares) < 0 else "differs"), seen


def _words(expect: Expect) -> str:
    value = expect.value
    text = {
        "rises": "rises throughout",
        "falls": "falls throughout",
        "flat": f"stays within {FLAT:.0%}",
        "linear": "is a straight line",
        "lowest_at": f"is lowest at {value}",
        "highest_at": f"is highest at {value}",
        "sharpest_from": f"changes most from {value} on",
        "below": f"lies below {value} throughout",
        "about": f"has a highest about {value} times its lowest",
    }[expect.shape]
    return text if expect.to is None else f"{text}, up to {expect.to:g}"


def _is_at_most(x: object, most: float) -> bool:
    return isinstance(x, int | float) and x <= most


def _number(x: object) -> float:
    return float(x) if isinstance(x, int | float) else 0.0


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _change(first: float, last: float) -> str:
    if not first or not last:
        return "from or to nothing"
    ratio = last / first
    if 0.5 < ratio < 2:
        return f"{ratio - 1:+.1%}"
    return f"{ratio:.2g} times" if ratio >= 2 else f"{1 / ratio:.2g} times less"
