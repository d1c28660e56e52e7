"""What issue 6 asks of the policies in the simulation, and whether it is met."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LITTLE = 0.02  # an oracle that saves less does not tell one policy from another
REACHED = 0.9  # of the oracle's saving
DEARER = 0.01  # than the default
LATER = 0.01
CELLS = 20 / 24
SAME = 1e-9  # sums in another order
NOISE = 0.005  # repeats of one trial on hardware agree within that


@dataclass(frozen=True)
class Bar:
    what: str
    met: bool
    seen: str


def is_reached(policy: float, oracle: float) -> bool:
    """Nine tenths of what the oracle saves; where that is next to nothing, nothing lost."""
    return policy >= REACHED * oracle if oracle >= LITTLE else policy >= -DEARER


def bars(cells: Sequence[dict[str, Any]], main: str) -> Iterator[Bar]:
    """`main` is the patience at which the oracles are reached, in seconds as JSON has it."""
    for name in ("company", "hierarchical"):
        oracle = f"oracle of {name}"
        for kind, when in (("saved", "whole run"), ("converged", "after 60 s")):
            reached = [
                cell["cell"]
                for cell in cells
                if is_reached(_mean(cell, main, name, kind), _mean(cell, main, oracle, kind))
            ]
            missed = [cell["cell"] for cell in cells if cell["cell"] not in reached]
            seen = f"{len(reached)} of {len(cells)}" + (f"; not: {', '.join(missed)}" if missed else "")
            yield Bar(f"{name}: nine tenths of its oracle, {when}", len(reached) >= CELLS * len(cells), seen)
        rows = [
            (f"{cell['cell']} at {patience} s", at["rows"][name])
            for cell in cells
            for patience, at in cell["patience"].items()
        ]
        worst, where = min((row["saved"]["mean"], where) for where, row in rows)
        yield Bar(f"{name}: never more than 1 % dearer than the default", worst >= -DEARER, f"{worst:+.1%} ({where})")
        worst, where = max((row["later"], where) for where, row in rows)
        yield Bar(f"{name}: at most one point more is late", worst <= LATER, f"{100 * worst:+.1f} points ({where})")
    idle = [cell["patience"]["0"]["rows"]["company"]["saved"]["mean"] for cell in cells if "0" in cell["patience"]]
    if idle:
        most = max(map(abs, idle))
        yield Bar("company: without patience nothing changes", most < SAME, f"{most:.1%}")


def change_bars(found: dict[str, Any]) -> Iterator[Bar]:
    """Of a load that goes up and down again: in each phase, once a minute of it is over."""
    pairs = list(zip(found["saved"]["company"], found["saved"]["fixed"], strict=True))
    reached = all(is_reached(mine["mean"], fixed["mean"]) for mine, fixed in pairs)
    seen = ", ".join(f"{mine['mean']:.1%} of {fixed['mean']:.1%}" for mine, fixed in pairs)
    yield Bar("company follows a change of load: nine tenths of a fixed rule, 60 s after it", reached, seen)


def front_bars(rates: dict[str, Any]) -> Iterator[Bar]:
    """Of single requests at the rates that were measured on hardware."""
    parts = [rows["company 3 s"]["saved"]["mean"] / rows["window 3 s"]["saved"]["mean"] for rows in rates.values()]
    seen = ", ".join(f"{part:.2f} at {rate}/s" for rate, part in zip(rates, parts, strict=True))
    yield Bar("company at 3 s: nine tenths of a fixed window of 3 s", min(parts) >= REACHED, seen)
    beyond, where = min(
        (row["saved"]["mean"] - row["front"], f"{name} at {rate}/s")
        for rate, rows in rates.items()
        for name, row in rows.items()
        if "front" in row
    )
    what = "company, 0.5-3 s: on or above the front of windows and hitch"
    yield Bar(what, beyond >= -NOISE, f"{100 * beyond:+.1f} points at the least ({where})")


def _mean(cell: dict[str, Any], patience: str, row: str, kind: str) -> float:
    return cell["patience"][patience]["rows"][row][kind]["mean"]
