"""The report as one page that needs nothing beside it: what could be answered and what was seen first, then figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from loadgen.campaign.definition import Campaign, Panel
from loadgen.campaign.folder import Folder
from loadgen.campaign.rows import Row
from loadgen.measures import MEASURES
from loadgen.report import interactive, methods
from loadgen.report.analyses import Section, section
from loadgen.report.figures import figure
from loadgen.report.findings import Finding, accounts, findings, sentence
from loadgen.report.plots import draw
from loadgen.report.points import lines, panel_cells
from loadgen.report.tables import Read, write_all

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { margin-top: 2.2em; font-size: 1.25em; } h3 { font-size: 1.05em; }
table { border-collapse: collapse; width: 100%; font-size: 0.88em; margin: 1em 0; }
th, td { text-align: left; vertical-align: top; padding: 0.45em 0.6em; border-bottom: 1px solid #ddd; }
th { background: #f5f5f5; } td ul { margin: 0; padding-left: 1.1em; }
.note { background: #fff6dd; border-left: 4px solid #e0a800; padding: 0.6em 1em; }
.agrees { color: #00734f; font-weight: 600; } .differs { color: #b03a00; font-weight: 600; } .not { color: #777; }
blockquote { margin: 0.5em 0; color: #555; border-left: 3px solid #ccc; padding-left: 0.8em; }
"""


def write(campaign: Campaign, folder: Folder) -> list[Path]:
    """Tables, figures and report.html of what the folder holds. Raises ReportError where a library is missing."""
    read, files = write_all(campaign, folder)
    figures = {panel.figure: figure(campaign, panel, read.seen) for panel in campaign.panels}
    note = _worth(read.rows)
    for name, made in figures.items():
        if not made.is_empty:
            files += draw(made, folder.path / "figures" / name, note)
    shown = {name: interactive.div(made) for name, made in figures.items() if not made.is_empty}
    analysed = [section(campaign, one, read.rows) for one in campaign.analyses]
    files += [one.write(folder.path) for one in analysed]
    page = _page(campaign, read, shown, analysed, methods.paragraphs(campaign, read, folder.sittings()), files)
    report = folder.path / "report.html"
    report.write_text(page, encoding="utf-8")
    return [report, *files]


def availability(campaign: Campaign, panel: Panel, rows: Sequence[Row]) -> str:
    """Whether a panel was measured, emulated or cannot be had here, line by line where they differ, and why."""
    by_cell: dict[str, list[Row]] = {}
    for row in rows:
        by_cell.setdefault(row.cell, []).append(row)
    said: dict[str, list[str]] = {}
    for series, cells in panel_cells(campaign, panel).items():
        found = Counter(_available(row) for cell in cells for row in by_cell.get(cell.key, []))
        text = "; ".join(found) if found else "not tried yet"
        said.setdefault(text, []).append(series)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{', '.join(series)}: {text}" for text, series in said.items())


def _available(row: Row) -> str:
    if row.status in ("infeasible", "not possible"):
        return f"{row.status}: {row.reason}"
    if row.driver == "virtual":
        return "emulated"
    return {"attributed": "measured", "": "measured, but no joules"}.get(row.quality, row.quality)


def _worth(rows: Sequence[Row]) -> str:
    """What stands under every figure."""
    qualities = sorted({row.quality for row in rows if row.quality})
    return f"joules: {', '.join(qualities)}" if qualities else ""


def _page(
    campaign: Campaign,
    read: Read,
    shown: Mapping[str, str],
    analysed: Sequence[Section],
    method: Sequence[str],
    files: Sequence[Path],
) -> str:
    rows = read.rows
    parts = [
        f"<h1>{escape(campaign.title)}</h1>",
        f"<p>{escape(campaign.question)}</p>" if campaign.question else "",
        f"<p>{escape(campaign.source)}</p>" if campaign.source else "",
    ]
    if any(row.quality == "emulated" for row in rows):
        parts.append(f'<p class="note">{escape(methods.EMULATED)}</p>')
    if campaign.worth:
        said = "".join(f"<li>{escape(one)}</li>" for one in campaign.worth)
        parts.append(f"<h2>What this can say, and what it cannot</h2><ul>{said}</ul>")
    parts += ["<h2>What was claimed, and what was seen</h2>", _opening(campaign, rows)]
    if both := _accounts(campaign, rows):
        parts += ["<h2>Two accountings of the same work</h2>", both]
    parts.append("<h2>Figures</h2>")
    for panel in campaign.panels:
        parts.append(f"<h3>{escape(panel.figure)}</h3>")
        if panel.paper:
            parts.append(f"<blockquote>{escape(panel.paper)}</blockquote>")
        parts.append(shown.get(panel.figure) or f'<p class="not">{escape(availability(campaign, panel, rows))}</p>')
        parts.append(_sentences(campaign, panel, rows))
    for one in analysed:
        parts += [f"<h2>{escape(one.title)}</h2>", f"<blockquote>{escape(one.paper)}</blockquote>" if one.paper else ""]
        parts.append(f"<p>{escape(one.text)}</p>")
        if one.rows:
            parts.append(_table(one.heads, [[escape(cell) for cell in row] for row in one.rows]))
    parts += ["<h2>Methods</h2>", *(f"<p>{escape(paragraph)}</p>" for paragraph in method)]
    named = "".join(f"<li>{escape(str(file.name))}</li>" for file in files if file.suffix in (".csv", ".parquet"))
    parts.append(f"<h2>Data</h2><p>Beside this page:</p><ul>{named}</ul>")
    body = "\n".join(part for part in parts if part)
    head = f"<meta charset='utf-8'><title>{escape(campaign.title)}</title><style>{STYLE}</style>"
    head += f"<script>{interactive.script()}</script>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>"


def _opening(campaign: Campaign, rows: Sequence[Row]) -> str:
    found: list[list[str]] = []
    for panel in campaign.panels:
        judged = "".join(_finding(one) for one in findings(campaign, panel, rows))
        seen = f"<ul>{judged}</ul>" if judged else _sentences(campaign, panel, rows)
        found.append([escape(panel.figure), escape(availability(campaign, panel, rows)), escape(panel.paper), seen])
    return _table(("figure", "here", "the source says", "seen here"), found)


def _finding(one: Finding) -> str:
    style = "not" if one.verdict == "not seen" else one.verdict
    return (
        f"<li>{escape(one.series)} {escape(one.expected)}: <span class='{style}'>{one.verdict}</span>"
        f" ({escape(MEASURES[one.measure].title)}: {escape(one.seen)})</li>"
    )


def _accounts(campaign: Campaign, rows: Sequence[Row]) -> str:
    found: list[list[str]] = []
    for panel in campaign.panels:
        for one in accounts(campaign, panel, rows):
            if {one.paper.verdict, one.ours.verdict} == {"not seen"}:
                continue
            changed = "<span class='differs'>yes</span>" if one.changes else "no"
            found.append(
                [
                    escape(panel.figure),
                    escape(f"{MEASURES[one.ours.measure].title}: {one.paper.series} {one.paper.expected}"),
                    f"{one.paper.verdict}: {escape(one.paper.seen)}",
                    f"{one.ours.verdict}: {escape(one.ours.seen)}",
                    changed,
                ]
            )
    if not found:
        return ""
    heads = ("figure", "claim", "as the paper counts", "attributed, or over the window", "changes the finding")
    return _table(heads, found)


def _sentences(campaign: Campaign, panel: Panel, rows: Sequence[Row]) -> str:
    said = [
        f"<li>{escape(series)}, {escape(MEASURES[measure].title)}: {escape(sentence(points, measure))}</li>"
        for measure in panel.measures or ("gpu_busy_share", "gpu_busy_share_peak")  # what is shown over time
        for series, points in lines(campaign, panel, rows, measure).items()
    ]
    return f"<ul>{''.join(said)}</ul>" if said else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{one}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
