"""The example that docs/attribution.md works by hand, by the code that does it."""

from pathlib import Path

import pytest

from proxy.energy.prior import prior
from proxy.energy.seen import Seen
from proxy.energy.share import Load, Window, plan
from proxy.energy.work import Progress

PAGE = Path(__file__).parents[3] / "docs/attribution.md"


def test_the_example_of_the_page_is_what_the_code_says() -> None:
    a = Progress("a", 1, "e1", dispatched=-2.0, prompt_guess=900, first=-1.9, frames=100, serial=1)
    b = Progress("b", 1, "e1", dispatched=0.05, prompt_guess=3000, serial=2)
    seen = Seen()
    seen.mark(0.0, [a])
    a.frames, b.first, b.frames = 200, 0.2, 50
    seen.mark(0.5, [a, b])
    a.ended, a.frames = 1.0, 300
    b.ended = 0.5
    for one, prompt, output in ((a, 900, 300), (b, 3000, 50)):
        one.prompt_tokens, one.cached_tokens, one.output_tokens = prompt, 0, output
    load = Load(prior("NVIDIA H200", "llama-2-7b"), [a, b], 0.0, 100.0, lambda t0, t1: 200 * (t1 - t0), seen=seen)
    shared = plan([load], 0.0, 0.5, now=6.0)
    assert shared.alone is not None
    assert shared.alone.quantities.tolist() == pytest.approx([100, 3000, 150, 105_000 + 151_250])
    shares = shared.settle(Window("h1/gpu:0", 0.0, 0.5, 250_000_000)).shares
    of_a, of_b = ([share for share in shares if share.progress is one] for one in (a, b))
    uj = [sum(share.uj for share in own) for own in (of_a, of_b)]
    assert sum(uj) == 250_000_000

    rows = {cells[1].strip("* "): [cell.strip("* ") for cell in cells[2:4]] for cells in _rows(PAGE.read_text())}
    weights = [float(cell) for cell in rows["weight"]]
    parts = [[float(cell) for cell in column if cell] for column in zip(*_parts(rows), strict=True)]
    assert [sum(column) for column in parts] == pytest.approx(weights, abs=0.011), "the table adds up"
    assert float(shared.weights[1]) == pytest.approx(weights[0], abs=0.005)
    assert float(shared.weights[0] + shared.weights[2]) == pytest.approx(weights[1], abs=0.005)
    assert rows["share**: 250 × weight / 271.19"] == [f"{one / 1e6:.2f}" for one in uj]
    assert sum(weights) == pytest.approx(271.19, abs=0.011)
    bands = [(sum(s.low_uj for s in own) / 1e6, sum(s.high_uj for s in own) / 1e6) for own in (of_a, of_b)]
    assert rows["band"] == [f"{low:.1f} – {high:.1f}" for low, high in bands]


def _rows(page: str) -> list[list[str]]:
    """The rows of the example's table."""
    table = page.partition("| J | A | B |")[2].partition("\n\n")[0]
    return [line.split("|") for line in table.splitlines() if line.startswith("| ")]


def _parts(rows: dict[str, list[str]]) -> list[list[str]]:
    return [cells for name, cells in rows.items() if name.partition(":")[0] in ("steps", "prompt", "output", "context")]
