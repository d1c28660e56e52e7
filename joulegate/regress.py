"""`joulegate gate`: whether a change made things worse, as an exit status for a CI job."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from joulegate.compare import compared
from loadgen.campaign.comparison import Difference
from loadgen.campaign.faults import CampaignError

STANDARD = ("joules_per_token", "latency_s")
PASSED, REGRESSED, UNDECIDED = 0, 1, 3  # 2 is what a wrong command line gives


def share_of(text: str) -> float:
    """`5%` or `0.05` as 0.05. Raises CampaignError for what is neither."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise CampaignError(f"the regression that is allowed is a share such as 5%, got {text!r}")
    return share


def judge(found: Sequence[Difference], allowed: float) -> tuple[int, list[str]]:
    """The exit status, and a line for each difference that is not simply within what is allowed.

    A cell has regressed if it is worse by more than `allowed` on average and its interval leaves no doubt that it is
    worse; where it is worse by so much but that may be chance, nobody can decide. What is gone from the second
    campaign has regressed.
    """
    lines: list[str] = []
    status = PASSED
    for one in found:
        name = f"{one.cell}{'' if one.of == one.cell.split()[0] else f' of it {one.of}'}, {one.measure}"
        worsening = one.worsening
        if one.change is None:
            if one.before is not None and one.after is None:
                lines.append(f"regressed: {name}: {one.why}")
                status = REGRESSED
        elif worsening is not None and worsening > allowed:
            low, high = one.change.low, one.change.high
            if low is not None and high is not None and (low > 0 or high < 0):
                lines.append(f"regressed: {name}: {one.verdict}")
                status = REGRESSED
            else:
                lines.append(f"undecided: {name}: {one.verdict}; more repeats would tell")
                status = status or UNDECIDED
    return status, lines


def run(base: Path, new: Path, max_regression: str, measures: Sequence[str], out: Console) -> int:
    """Print what regressed; the exit status. Raises CampaignError."""
    allowed = share_of(max_regression)
    found = compared(base, new, measures or STANDARD)
    status, lines = judge(found, allowed)
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True, markup=False)
    told = {PASSED: "passed", REGRESSED: "regressed", UNDECIDED: "undecided"}[status]
    out.print(f"{told}: {len(found)} comparisons, {allowed:.1%} worse allowed", highlight=False)
    return status
