"""The methods section: what was really done, from the records, in sentences that a paper can take over."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from loadgen.campaign.definition import Campaign
from loadgen.campaign.grid import cells
from loadgen.campaign.knobs import KNOBS
from loadgen.report.tables import Read
from loadgen.statistics import CONFIDENCE, RESAMPLES

EMULATED = (
    "All joules and times are those of an emulator: a model's figures, not a machine's. Its power caps and clocks are"
    " uncalibrated. Nothing here is a saving on hardware."
)


def paragraphs(campaign: Campaign, read: Read, sittings: Sequence[dict[str, Any]]) -> list[str]:
    """The section, a paragraph each."""
    virtual = {row.driver for row in read.rows if row.driver} == {"virtual"}
    return [
        *([EMULATED] if any(row.quality == "emulated" for row in read.rows) else []),
        _design(campaign, read),
        _load(campaign, read, virtual),
        _figures(campaign, read, virtual),
        _validity(read, virtual),
        *_machine(read, sittings),
        *([f"Left open by the source, and taken here: {'; '.join(campaign.unsaid)}."] if campaign.unsaid else []),
    ]


def _design(campaign: Campaign, read: Read) -> str:
    found = cells(campaign)
    tried = Counter(row.cell for row in read.rows if row.of == row.workload)
    sweeps = "; ".join(
        f"{name}: {', '.join(f'{KNOBS[knob].title} {_values(values)}' for knob, values in sweep.knobs.items())}"
        f" for {', '.join(sweep.workloads)}"
        for name, sweep in campaign.sweeps.items()
    )
    fixed = ", ".join(f"{knob} {value}" for knob, value in campaign.fixed.items())
    return (
        f"{len(found)} cells ({sweeps}), {campaign.repeats} repeats planned of each and"
        f" {min(tried.values(), default=0)} to {max(tried.values(), default=0)} there."
        f" Fixed: {fixed or 'nothing'}."
        f" Cells were tried in random order within each repeat (seed {campaign.seed}); all cells of a repeat had the"
        " same runs, which makes differences between cells differences of pairs. Every repeat had other runs and a"
        " cache salt of its own."
    )


def _load(campaign: Campaign, read: Read, virtual: bool) -> str:
    users = {label: spec.runs_per_user or campaign.runs_per_user for label, spec in campaign.workloads.items()}
    others = ", ".join(f"{label} {runs}" for label, runs in users.items())
    window = (
        "from the first request to the last answer"
        if campaign.window == "whole"
        else "in the steady window, after"
        f" {campaign.warm_up_s:g} s of warm-up and until the first user found no run left"
    )
    driver = "the driver in virtual time" if virtual else "HTTP"
    lengths = "exactly those that the workload names" if read.exact_lengths else "about right: four characters a token"
    return (
        f"The load came through {driver}: each user began the next run when the last had ended,"
        f" {campaign.runs_per_user} a user{f' ({others})' if others else ''}. Counted is what ended {window}."
        f" Lengths of prompts are {lengths}."
    )


def _figures(campaign: Campaign, read: Read, virtual: bool) -> str:
    qualities = Counter(row.quality or "unknown" for row in read.rows if row.ok)
    said = ", ".join(f"{quality} in {count} trials" for quality, count in qualities.most_common())
    how = "Student's t" if campaign.interval == "t" else f"the bootstrap (bias-corrected, {RESAMPLES} resamples)"
    spread = " Repeats differ by their runs alone: the emulator has no noise of its own." if virtual else ""
    return (
        f"Figures are means over repeats with {CONFIDENCE:.0%} intervals by {how}.{spread} Quality of the joules:"
        f" {said}. Attributed joules count nothing twice; the paper's accounting gives each run all that the machine"
        " drew over its interval. Throughput is over the seconds in which something was generated, and beside it over"
        " the window."
    )


def _validity(read: Read, virtual: bool) -> str:
    statuses = Counter(row.status for row in read.rows if row.of == row.workload)
    said = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    reasons = list(dict.fromkeys(row.reason for row in read.rows if row.status == "invalid"))
    why = f" Invalid, and left out: {'; '.join(reasons)}." if reasons else ""
    books = ""
    if not virtual:
        books = " No gateway kept books beside the load."
    if read.books:
        books = (
            f" In {sum(read.books)} of {len(read.books)} trials with a gateway the load's totals of requests, tokens"
            " and joules were those of its ledger and of its Prometheus counters."
        )
    late = "" if virtual else f" The generator was at most {read.start_delay_max_s * 1e3:.0f} ms late."
    return f"Trials: {said or 'none'}.{why}{late}{books}"


def _machine(read: Read, sittings: Sequence[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    for sitting in sittings:
        day, end = (
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(sitting[name])) for name in ("began_unix_s", "ended_unix_s")
        )
        packages = ", ".join(
            f"{name} {sitting[name]}" for name in ("python", "joulegate", "numpy", "scipy") if name in sitting
        )
        found.append(f"{sitting['trials']} trials from {day} to {end} UTC on {sitting['system']}; {packages}.")
    if read.temperatures_c:
        found.append(f"GPU temperatures {min(read.temperatures_c):.0f} to {max(read.temperatures_c):.0f} °C.")
    if read.facts:
        found.append("What the drivers said: " + " · ".join(str(facts) for facts in read.facts[:5]))
    return found


def _values(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)
