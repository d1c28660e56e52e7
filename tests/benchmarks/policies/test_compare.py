import json

import pytest

from benchmarks.policies.bars import bars
from benchmarks.policies.cells import Cell
from benchmarks.policies.compare import compare
from benchmarks.policies.parts import parts
from benchmarks.policies.report import rounded

CELL = Cell("search", "h200", "light")


def test_a_cells_parts_make_its_figures() -> None:
    """Two of its parts, at no patience, where there are no oracles to be found."""
    fixed, company, *_ = parts(CELL, 0.0, seeds=1, size=0.01)
    assert fixed.code != company.code and fixed.name != company.name
    found = {name: row for part in (fixed, company) for name, row in part.work(*part.arguments).items()}
    kept = json.loads(json.dumps(found))
    cell = compare(CELL, {0.0: kept})
    rows = cell["patience"]["0"]["rows"]
    assert cell["cell"] == "search h200 light" and set(rows) == {"default", "company"}
    assert rows["company"]["saved"]["mean"] == pytest.approx(0.0, abs=1e-9) and rows["company"]["later"] == 0.0
    assert rows["default"]["j_per_run"]["mean"] > 0 and rows["default"]["objective"]["ttft_p95_s"] == 1.0


def test_every_policy_and_two_oracles_are_compared_where_there_is_patience() -> None:
    names = [part.name.rpartition(", ")[2] for part in parts(CELL, 3.0, 1, 1.0)]
    assert names == ["fixed", "company", "hierarchical", "clocks", "powercap", "paper"]
    few = parts(CELL, 3.0, 1, 1.0, ["paper", "hierarchical"])
    assert [part.name.rpartition(", ")[2] for part in few] == ["fixed", "hierarchical", "paper"]
    assert len({part.name for at in (0.0, 3.0, 30.0) for part in parts(CELL, at, 1, 1.0)}) == 3 + 6 + 3


def test_bars_are_of_all_cells_and_patiences() -> None:
    def row(saved: float, later: float = 0.0) -> dict[str, object]:
        return {"saved": {"mean": saved}, "converged": {"mean": saved}, "later": later}

    def cell(company: float, later: float) -> dict[str, object]:
        rows = {name: row(0.1) for name in ("oracle of company", "oracle of hierarchical", "hierarchical")}
        return {"cell": "a", "patience": {"3": {"rows": {**rows, "company": row(company, later)}}}}

    good = {bar.what: bar.met for bar in bars([cell(0.095, 0.01)], "3")}
    assert all(good.values()) and len(good) == 8
    bad = [bar.what for bar in bars([cell(-0.02, 0.02)], "3") if not bar.met]
    assert len(bad) == 4 and all(what.startswith("company: ") for what in bad)


def test_published_figures_have_five_digits() -> None:
    assert rounded({"a": [1.23456789, 3, "x", None], "b": -123456.789}) == {"a": [1.2346, 3, "x", None], "b": -123460.0}
