"""Coding as a named DAG against call by call, on an emulated H200: latency and joules a run, with 95 % intervals.

    python -m benchmarks.named_dag OUT_DIR [--repeats 10] [--in-flight 4] [...]     as benchmarks/real_nodes.py has them
    python -m benchmarks.named_dag OUT_DIR --table                                  of what is there, a real card's too

`real_nodes.py` on an emulated host, in real time, and a table of what it wrote: the change from `calls` to `nodes` in
pairs of trials with the same plans. All joules of the emulated host are a model's figures, and say nothing of hardware.
"""

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.real_nodes import MODES, measure, parser
from benchmarks.rehearsal import MODEL, emulated_host
from loadgen.campaign.comparison import SURE
from loadgen.statistics import Change, holm, mean_interval, paired_change

Row = dict[str, Any]
FIGURES = {  # of a trial
    "latency of a run (s)": lambda row: fmean(row["latency_s"]),
    "joules a run (machine, idle included)": lambda row: row["j_per_run"],
    "joules a run (receipts)": lambda row: row["receipts_j"],
    "prompt tokens": lambda row: row["prompt_tokens"],
    "output tokens": lambda row: row["output_tokens"],
}
ASKED = tuple(FIGURES)[:3]  # that may differ; the counts of tokens are there to show that they do not


def read(folder: Path) -> list[Row]:
    """The trials, each with the mean of its runs' receipts; null where one of them is not settled."""
    rows, receipts = (
        [json.loads(line) for line in (folder / file).read_text().splitlines()] if (folder / file).exists() else []
        for file in ("trials.jsonl", "receipts.jsonl")
    )
    joules = {one["run"]: one["joules"] for one in receipts if one["settled"]}
    for row in rows:
        known = [joules[run] for run in row["runs"] if run in joules]
        row["receipts_j"] = fmean(known) if len(known) == len(row["runs"]) else None
    return rows


Cases = dict[tuple[int, float], dict[str, dict[int, Row]]]


def by_case(rows: Sequence[Row]) -> Cases:
    cases: Cases = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        cases[row["users"], row["rtt_ms"]][row["mode"]][row["repeat"]] = row
    return cases


def sure(rows: Sequence[Row]) -> str:
    """Which changes of seconds and joules are more than chance, corrected for how many were asked for (Holm)."""
    asked: dict[str, float] = {}
    for (users, rtt_ms), by_mode in by_case(rows).items():
        for name in ASKED:
            calls, nodes = pairs(by_mode, name)
            if calls and (p := paired_change(calls, nodes).p) is not None:
                asked[f"{name}, {users} at once, {rtt_ms:g} ms away"] = p
    found = [what for what, p in zip(asked, holm(list(asked.values())), strict=True) if p < SURE]
    return f"More than chance among the {len(asked)} changes (p < {SURE:g} after Holm): {'; '.join(found) or 'none'}."


def table(rows: Sequence[Row]) -> str:
    """Markdown: for each case and figure the mean of both ways, and the change with its interval."""
    cases = by_case(rows)
    lines = [
        "| runs at once | client away | figure | call by call | named DAG | change, 95 % | pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    for (users, rtt_ms), by_mode in cases.items():
        for name in FIGURES:
            calls, nodes = pairs(by_mode, name)
            if calls:
                said = [f"{mean_interval(values).mean:,.2f}" for values in (calls, nodes)]
                change = words(paired_change(calls, nodes))
                lines.append(f"| {users} | {rtt_ms:g} ms | {name} | {said[0]} | {said[1]} | {change} | {len(calls)} |")
    return "\n".join((*lines, "", sure(rows)))


def pairs(by_mode: Mapping[str, Mapping[int, Row]], figure: str) -> tuple[list[float], list[float]]:
    """A figure of the repeats that both ways have."""
    calls, nodes = (by_mode.get(mode, {}) for mode in MODES)
    both = [(FIGURES[figure](calls[repeat]), FIGURES[figure](nodes[repeat])) for repeat in calls if repeat in nodes]
    known = [(before, after) for before, after in both if before is not None and after is not None]
    return [before for before, _ in known], [after for _, after in known]


def words(change: Change) -> str:
    if change.low is None or change.high is None:
        return f"{change.share:+.2%}"
    return f"{change.share:+.2%} ({change.low:+.2%} to {change.high:+.2%})"


def rehearse(arguments: list[str], out: Path) -> None:
    """The same on an emulated host, which is started for it."""
    with emulated_host(out) as config:
        zeusd = config["hosts"]["emulated"]["zeusd"]
        ones = [config["engines"][0]["url"], MODEL, str(out), "--zeusd", zeusd, "--minutes", "30", *arguments]
        asyncio.run(measure(parser().parse_args(ones)))


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise SystemExit(__doc__)
    out, rest = Path(arguments[0]), arguments[1:]
    if rest != ["--table"]:
        rehearse(rest, out)
    print(table(read(out)))


if __name__ == "__main__":
    main(sys.argv[1:])
