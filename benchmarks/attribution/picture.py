"""The study's pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.attribution.baselines import METHODS
from benchmarks.attribution.study import FITTED, PRIOR, WRONG, Found

COLOURS = ("#1f77b4", "#7fb3d9", "#b9d6ec", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b")
TITLES = {"": "the card as it is", "cap": "power cap moves", "clocks": "clocks move", "evictions": "KV cache too small"}


def errors(path: Path, groups: Mapping[str, Sequence[Found]]) -> None:
    """How the error lies over the mixes, a panel for each kind of truth, a curve for each method."""
    shown = {how: group for how, group in groups.items() if group}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (how, group) in zip(
        np.atleast_1d(figure.subplots(1, len(shown), sharey=True)), shown.items(), strict=True
    ):
        for colour, name in zip(COLOURS, (FITTED, PRIOR, WRONG, *METHODS), strict=True):
            values = np.sort([100 * one.figures["errors"][name] for one in group])
            axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", color=colour, label=name)
        axes.set_xscale("log")
        axes.set_title(f"{TITLES[how]}, {len(group)} mixes", fontsize=9)
        axes.set_xlabel("Σ|error|/E, %", fontsize=9)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("part of the mixes", fontsize=9)
    figure.axes[0].legend(fontsize=7)
    _save(figure, path)


def requests(path: Path, group: Sequence[Found]) -> None:
    """Every request: its Shapley value, and what our method gave it."""
    each = [one for found in group for one in found.each]
    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axes = figure.subplots()
    for n, cls in enumerate(sorted({cls for cls, _, _ in each})):
        truth, ours = np.array([(right, joules) for name, right, joules in each if name == cls]).T
        axes.plot(truth, ours, ".", markersize=1.5, alpha=0.4, color=f"C{n}", label=cls, rasterized=True)
    axes.plot([0.5, 2000], [0.5, 2000], color="black", linewidth=0.6)
    axes.set(xscale="log", yscale="log", xlim=(0.5, 2000), ylim=(0.5, 2000))
    axes.set_xlabel("J a request, Shapley's rule on the emulated H200", fontsize=9)
    axes.set_ylabel("J a request, attributed", fontsize=9)
    axes.legend(fontsize=8, markerscale=6)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    mpl.rcParams["svg.hashsalt"] = "joulegate"  # the same figures give the same file
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)
