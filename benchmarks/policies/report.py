"""The benchmark's tables and pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.policies.bars import is_reached
from benchmarks.policies.parts import MAIN_S, RECOMMENDED

NAMES = ("company", "hierarchical", "clocks", "powercap", "paper")


def tables(data: dict[str, Any]) -> str:
    """Markdown."""
    return "\n".join(_lines(data)) + "\n"


def _lines(data: dict[str, Any]) -> Iterator[str]:
    yield f"{data['caveat']} Commit {data['machine']['commit']}."
    yield ""
    yield from ("| bar | | seen |", "|---|---|---|")
    for bar in data["bars"]:
        yield f"| {bar['what']} | {'met' if bar['met'] else '**missed**'} | {bar['seen']} |"
    for patience in data["cells"][0]["patience"]:
        rows = [(cell, cell["patience"][patience]["rows"]) for cell in data["cells"]]
        names = [name for name in NAMES if name in rows[0][1]]
        oracles = [name for name in ("oracle of company", "oracle of hierarchical") if name in rows[0][1]]
        yield ""
        about = f"Patience {patience} s, {data['seeds'][patience]} seeds"
        yield f"{about}: % of the default's joules saved, ± half a 95 % interval (points more late)"
        yield ""
        yield f"| cell | default, J/run | {' | '.join([*names, *oracles])} | their settings | wait, company |"
        yield "|" + "---|" * (4 + len(names) + len(oracles))
        for cell, row in rows:
            cells = [_saved(row[name]) for name in (*names, *oracles)]
            best = "; ".join(_setting(row[name]["setting"], float(patience)) for name in oracles)
            waits = f"{row['company']['wait_p95_s']:.1f} s p95"
            default = f"{row['default']['j_per_run']['mean']:.0f}"
            yield f"| {' | '.join([cell['cell'], default, *cells, best, waits])} |"
    yield ""
    yield f"After 60 s, {MAIN_S:g} s of patience: % of joules for an output token saved, and by the oracle"
    yield ""
    yield "| cell | company | its oracle | | hierarchical | its oracle | |"
    yield "|---|---|---|---|---|---|---|"
    for cell in data["cells"]:
        yield f"| {cell['cell']} | {' | '.join(_beside(cell['patience'][f'{MAIN_S:g}']['rows']))} |"
    yield ""
    yield "A load that changes (search, h200, patience 3 s): % of joules for an output token saved, 60 s after a change"
    yield ""
    change = data["change"]
    yield f"| rule | {' | '.join(change['phases'])} |"
    yield "|" + "---|" * (1 + len(change["phases"]))
    for name, phases in change["saved"].items():
        yield f"| {name} | {' | '.join(_percent(phase) for phase in phases)} |"
    yield ""
    yield "Single search requests, as in coalesce.csv: % of joules saved, at a mean latency (front of the fixed rules)"
    yield ""
    yield f"| rule | {' | '.join(f'{rate}/s' for rate in data['front'])} |"
    yield "|" + "---|" * (1 + len(data["front"]))
    for name in next(iter(data["front"].values())):
        yield f"| {name} | {' | '.join(_point(rows[name]) for rows in data['front'].values())} |"


def _beside(rows: dict[str, Any]) -> Iterator[str]:
    for name in RECOMMENDED:
        mine, oracle = rows[name]["converged"], rows[f"oracle of {name}"]["converged"]
        yield from (_percent(mine), _percent(oracle))
        yield "" if is_reached(mine["mean"], oracle["mean"]) else "missed"


def _point(row: dict[str, Any]) -> str:
    there = f" ({100 * row['front']:.1f})" if "front" in row else ""
    return f"{_percent(row['saved'])} at {row['s']:.2f} s{there}"


def _percent(value: dict[str, Any]) -> str:
    half = "" if value["half"] is None else f" ± {100 * value['half']:.1f}"
    return f"{100 * value['mean']:.1f}{half}"


def _saved(row: dict[str, Any]) -> str:
    late = f" ({100 * row['later']:+.1f})" if abs(row["later"]) >= 0.0005 else ""
    return _percent(row["saved"]) + late


def _setting(setting: dict[str, Any], patience_s: float) -> str:
    said: list[str] = []
    if setting["hold"]:
        join = "any" if setting["join"] == "inf" else f"{float(setting['join']):.2f}"
        said.append(f"hold {setting['hold'] * patience_s:.2g} s, join {join}")
    if setting["limit"]:
        said.append(f"at most {setting['limit']} in flight")
    if setting["clock"] < 1:
        said.append(f"{setting['clock']:.0%} of the clock")
    return ", ".join(said) or "as the default"


def rounded(value: Any) -> Any:
    """Figures with five digits: more mean nothing."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def draw(data: dict[str, Any], folder: Path) -> None:
    """`savings-PATIENCE.svg`: for each cell what policies and oracles save; `front.svg`: saving against latency."""
    import matplotlib  # only drawing needs it

    matplotlib.use("svg")
    from matplotlib import pyplot

    _draw_front(data, folder)
    for patience in data["cells"][0]["patience"]:
        rows = [cell["patience"][patience]["rows"] for cell in data["cells"]]
        names = [name for name in (*NAMES, "oracle of company", "oracle of hierarchical") if name in rows[0]]
        figure, pane = pyplot.subplots(figsize=(11, 0.32 * len(rows) + 1.5))
        for number, name in enumerate(names):
            at = [place + 0.1 * (number - len(names) / 2) for place in range(len(rows))]
            means = [100 * row[name]["saved"]["mean"] for row in rows]
            halves = [100 * (row[name]["saved"]["half"] or 0.0) for row in rows]
            mark = "|" if name.startswith("oracle") else "o"
            pane.errorbar(
                means, at, xerr=halves, fmt=mark, markersize=8 if mark == "|" else 4, label=name, elinewidth=0.8
            )
        pane.set_yticks(range(len(rows)), [cell["cell"] for cell in data["cells"]])
        pane.invert_yaxis()
        pane.axvline(0, color="black", linewidth=0.6)
        pane.set_xlim(left=max(-45, pane.get_xlim()[0]))
        pane.set_xlabel(f"joules saved, % of the default's, at {patience} s of patience (emulated)")
        pane.grid(alpha=0.3)
        pane.legend(loc="best", fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / f"savings-{patience}.svg")
        pyplot.close(figure)


def _draw_front(data: dict[str, Any], folder: Path) -> None:
    from matplotlib import pyplot

    figure, panes = pyplot.subplots(1, len(data["front"]), figsize=(4 * len(data["front"]), 3.4))
    for pane, (rate, rows) in zip(panes, data["front"].items(), strict=True):
        for kind, mark in (("window", "o-"), ("hitch", "^-"), ("company", "D-")):
            points = [(row["s"], 100 * row["saved"]["mean"]) for name, row in rows.items() if name.startswith(kind)]
            pane.plot(*zip(*points, strict=True), mark, markersize=4, label=kind)
        pane.set(title=f"{rate} requests/s", xlabel="mean latency, s", ylabel="joules saved, % (emulated)")
        pane.grid(alpha=0.3)
    panes[0].legend()
    figure.tight_layout()
    figure.savefig(folder / "front.svg")
    pyplot.close(figure)
