from dataclasses import replace
from pathlib import Path

import pytest

from loadgen.campaign.definition import Campaign
from loadgen.campaign.faults import ReportError
from loadgen.campaign.grid import cells
from loadgen.report.figures import Seen, figure
from loadgen.report.interactive import div
from loadgen.report.plots import draw, required


def named(campaign: Campaign, name: str):
    return next(panel for panel in campaign.panels if panel.figure == name)


def test_lines_have_means_bands_and_crosses(campaign: Campaign, make) -> None:
    rows = make([[8.0, 10.0], [5.0], [4.0, 4.0], None])
    made = figure(campaign, named(campaign, "lines"), Seen(rows))
    (line,) = made.lines  # nothing is known of coding
    assert (line.name, line.xs, line.means) == ("search", (1.0, 2.0, 4.0), (9.0, 5.0, 4.0))
    assert line.lows[0] < 8 and line.highs[0] > 10 and line.lows[1:] == line.highs[1:] == (5.0, 4.0)
    assert line.crosses == (16.0,) and made.log_x and made.words == ("1", "2", "4", "16")


def test_dual_axes_are_divided_by_their_highest(campaign: Campaign, make) -> None:
    joules, seconds = (make([[8.0], [4.0], [2.0], [1.0]], name) for name in ("joules_per_run", "latency_s"))
    rows = [replace(a, measures=a.measures | b.measures) for a, b in zip(joules, seconds, strict=True)]
    left, right = figure(campaign, named(campaign, "dual"), Seen(rows)).lines
    assert left.means == right.means == (1.0, 0.5, 0.25, 0.125)
    assert (left.axis, right.axis) == ("left", "right")


def test_boxes_bars_and_time(campaign: Campaign, make) -> None:
    rows = make([[0.5], [0.5], [0.5], [0.5]], "hit_rate")
    first = cells(campaign)[0].key
    made = figure(campaign, named(campaign, "box"), Seen(rows, hit_rates={first: [0.1, 0.9]}))
    assert made.boxes[0].places == ("search", "coding") and made.boxes[0].values == ((0.1, 0.9), ())
    vllm = make([[3.0], [4.0]], "gpu_joules_per_run", knob="output_tokens", engine="vllm")
    parrot = make(["no", "no"], knob="output_tokens", engine="parrot")
    (bars,) = figure(campaign, named(campaign, "bars"), Seen(vllm + parrot)).bars
    assert (bars.name, bars.places) == ("vllm", ("100", "200"))
    assert bars.parts == {"GPU": (3.0, 4.0), "CPU": (None, None)}
    key = next(cell.key for cell in cells(campaign) if cell.get("engine") == "vllm")
    (trace,) = figure(campaign, named(campaign, "time"), Seen((), busy={key: [(1.0, 0.5), (2.0, 1.0)]})).traces
    assert trace.name == "vllm, output length 100" and trace.values == (0.5, 1.0)


def test_without_rows_there_is_nothing_to_draw(campaign: Campaign) -> None:
    assert all(figure(campaign, panel, Seen(())).is_empty for panel in campaign.panels)


@pytest.mark.parametrize("name", ["lines", "bars"])
def test_figures_are_drawn_and_the_same_gives_the_same_file(
    campaign: Campaign, make, tmp_path: Path, name: str
) -> None:
    rows = make([[8.0, 10.0], [5.0], None, None])
    rows += make([[3.0], None], "gpu_joules_per_run", knob="output_tokens", engine="vllm")
    made = figure(campaign, named(campaign, name), Seen(rows))
    assert not made.is_empty
    first, second = (draw(made, tmp_path / folder / name, "joules: emulated") for folder in ("a", "b"))
    assert [file.suffix for file in first] == [".png", ".svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes() and one.stat().st_size > 5000
    assert "infeasible" in first[1].read_text() or name == "bars"
    assert "Plotly.newPlot" in div(made)


def test_no_name_ends_a_script_early(campaign: Campaign, make) -> None:
    made = replace(
        figure(campaign, named(campaign, "lines"), Seen(make([[8.0], [5.0], None, None]))), title="</script>"
    )
    assert div(made).count("</script>") == 1


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(ReportError, match=r"reports need nothing_of_the_kind: pip install 'joulegate\[report\]'"):
        required("nothing_of_the_kind.sub")
