"""Figures as PNG and SVG, in the manner of the paper's: drawn by matplotlib."""

import importlib
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadgen.campaign.faults import ReportError
from loadgen.report.figures import Bars, Boxes, Figure, Line

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
MARKS = ("o", "s", "^", "D", "v", "P", "*")
PARTS = ("#4c78a8", "#f58518", "#9d9da1", "#54a24b")
CROSS = "#c00000"


def required(module: str) -> Any:
    """A module of the extra `report`. Raises ReportError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ReportError(f"reports need {package}: pip install 'joulegate[report]'") from None


def draw(figure: Figure, stem: Path, note: str = "") -> list[Path]:
    """Write `stem`.png and `stem`.svg. `note` says what its joules are worth. Raises ReportError."""
    matplotlib = required("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = figure.name  # the same figure gives the same file
    plt = required("matplotlib.pyplot")
    wide = bool(figure.traces or figure.boxes)
    canvas, axes = plt.subplots(figsize=(8.0 if wide else 5.6, 4.0), constrained_layout=True)
    axes.set(title=figure.title, xlabel=figure.x_title, ylabel=wrapped(figure.y_title))
    axes.title.set_size(10.5)
    axes.grid(alpha=0.25, linewidth=0.6)
    if figure.boxes:
        _boxes(axes, figure.boxes)
    elif figure.bars:
        _bars(axes, figure.bars, figure.words)
    elif figure.traces:
        for trace, colour in zip(figure.traces, COLOURS * len(figure.traces), strict=False):
            mean = sum(trace.values) / len(trace.values) if trace.values else 0.0
            axes.plot(trace.at_s, trace.values, color=colour, linewidth=1, label=f"{trace.name}: mean {mean:.1%}")
        axes.set_ylim(0, 1.05)
    else:
        _lines(axes, figure)
    handles, labels = axes.get_legend_handles_labels()
    if figure.right_title and len(canvas.axes) > 1:
        more = canvas.axes[1].get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    if labels:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 1 if figure.right_title else 4}
        axes.legend(handles, labels, fontsize=7.5, frameon=False, **below)
    if note:
        canvas.text(0.995, 0.005, note, fontsize=6, color="#666666", ha="right", va="bottom")
    files = [stem.with_name(stem.name + kind) for kind in (".png", ".svg")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(files[0], dpi=150, metadata={"Software": None})
    canvas.savefig(files[1], metadata={"Date": None})
    plt.close(canvas)
    return files


def wrapped(title: str, end: str = "\n") -> str:
    """A title of an axis in lines that fit beside it."""
    return end.join(textwrap.wrap(title, 40))


def _lines(axes: Any, figure: Figure) -> None:
    right = axes.twinx() if figure.right_title else None
    if figure.log_x:
        axes.set_xscale("log", base=2)
    axes.set_xticks(figure.ticks, figure.words)
    axes.minorticks_off()
    for index, line in enumerate(figure.lines):
        _line(right if right is not None and line.axis == "right" else axes, line, index)
    for one, title in ((axes, figure.y_title), (right, figure.right_title)):
        if one is not None:
            one.set_ylabel(wrapped(title))
            one.set_ylim(bottom=0, top=1.08 if figure.right_title else None)
    _crosses(axes, figure.lines)


def _line(axes: Any, line: Line, index: int) -> None:
    colour, mark = COLOURS[index % len(COLOURS)], MARKS[index % len(MARKS)]
    style = "--" if line.axis == "right" else ("-", ":")[index // len(COLOURS) % 2]
    axes.plot(line.xs, line.means, style, color=colour, marker=mark, markersize=4.5, linewidth=1.4, label=line.name)
    axes.fill_between(line.xs, line.lows, line.highs, color=colour, alpha=0.18, linewidth=0)


def _crosses(axes: Any, lines: Sequence[Line]) -> None:
    """An X where a line ends because the next value of the knob is infeasible, at the line's last height."""
    for index, line in enumerate(lines):
        height = line.means[-1] if line.means else 0.0
        if line.crosses:
            axes.plot(line.crosses, [height] * len(line.crosses), "x", color=CROSS, markersize=8, markeredgewidth=2)
            name = f"{line.name}: infeasible"
            axes.plot([], [], "x", color=COLOURS[index % len(COLOURS)], label=name)


def _boxes(axes: Any, groups: Sequence[Boxes]) -> None:
    width = 0.8 / len(groups)
    for index, group in enumerate(groups):
        colour = COLOURS[index % len(COLOURS)]
        positions = [place + (index - (len(groups) - 1) / 2) * width for place in range(len(group.places))]
        drawn = axes.boxplot(
            [list(values) for values in group.values],
            positions=positions,
            widths=0.85 * width,
            patch_artist=True,
            manage_ticks=False,
            flierprops={"markersize": 2, "markeredgecolor": colour},
            medianprops={"color": "#000000"},
        )
        for box in drawn["boxes"]:
            box.set(facecolor=colour, alpha=0.5)
        axes.plot([], [], "s", color=colour, alpha=0.5, label=group.name)
    axes.set_xticks(range(len(groups[0].places)), groups[0].places)
    axes.set_xlabel("")
    axes.set_ylim(-0.02, 1.05)


def _bars(axes: Any, stacks: Sequence[Bars], words: Sequence[str]) -> None:
    width = 0.8 / len(stacks)
    at = {word: index for index, word in enumerate(words)}
    for index, stack in enumerate(stacks):
        centre = [at[place] + (index - (len(stacks) - 1) / 2) * width for place in stack.places]
        base = [0.0] * len(centre)
        for number, (part, values) in enumerate(stack.parts.items()):
            heights = [value or 0.0 for value in values]
            label = part if index == 0 else None
            hatch = "" if index == 0 else "//"
            axes.bar(centre, heights, 0.9 * width, bottom=base, color=PARTS[number % 4], label=label, hatch=hatch)
            base = [low + height for low, height in zip(base, heights, strict=True)]
        for place in stack.crosses:
            axes.plot(centre[stack.places.index(place)], 0, "x", color=CROSS, markersize=8, clip_on=False)
        if any(base):
            axes.plot(
                [], [], "s", color="#ffffff", markeredgecolor="#333333", label=("// " if index else "") + stack.name
            )
    axes.set_xticks(range(len(words)), words)
