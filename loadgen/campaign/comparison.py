"""Two campaigns side by side: what changed in each cell that both have, and whether that is more than chance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from loadgen.campaign.rows import Row
from loadgen.measures import MEASURES
from loadgen.statistics import Change, holm, mean_interval, paired_change, unpaired_change

SURE = 0.05  # p below which a change is called one, after Holm's correction for all that is asked at once


@dataclass(frozen=True, slots=True)
class Difference:
    """A measure of a cell before and after. `change` is null, and `why` says why, where there is nothing to compare.

    `p` is the change's own, corrected for how many were compared; `of` is the workload, in a cell of several.
    """

    cell: str
    of: str
    measure: str
    before: float | None
    after: float | None
    change: Change | None
    p: float | None = None
    why: str = ""

    @property
    def is_sure(self) -> bool:
        return self.p is not None and self.p < SURE

    @property
    def is_worse(self) -> bool | None:
        """Whether the change is for the worse; null where the measure has no better, or nothing was compared."""
        less_is_better = MEASURES[self.measure].less_is_better
        if self.change is None or less_is_better is None or not self.change.share:
            return None
        return (self.change.share > 0) is less_is_better

    @property
    def worsening(self) -> float | None:
        """By which share it is worse, negative where better: of what the measure counts, in its bad direction."""
        if self.change is None or MEASURES[self.measure].less_is_better is None:
            return None
        return self.change.share if MEASURES[self.measure].less_is_better else 1 / (1 + self.change.share) - 1

    @property
    def verdict(self) -> str:
        """In words."""
        change = self.change
        if change is None:
            return self.why
        if self.p is None:
            return f"{_share(change.share)}: one repeat, so nobody can say"
        band = f"{change.share:+.1%} ({change.low:+.1%} to {change.high:+.1%})"
        word = {True: "worse", False: "better", None: "different"}[self.is_worse]
        if self.is_sure:
            return f"{word}: {band}"
        alone = change.p is not None and change.p < SURE
        return f"perhaps {word}, or chance among so many: {band}" if alone else f"no difference shown: {band}"


def differences(before: Sequence[Row], after: Sequence[Row], measures: Iterable[str]) -> list[Difference]:
    """The measures of every cell of either. Valid repeats are compared in pairs where both have the same ones.

    Repeats of one number had the same runs in both, if the campaigns have the same seed: they belong together.
    """
    first, second = _by_cell(before), _by_cell(after)
    found = [
        _difference(*key, measure, first.get(key, []), second.get(key, []))
        for key in dict.fromkeys((*first, *second))
        for measure in measures
    ]
    asked = [index for index, one in enumerate(found) if one.p is not None]
    for index, p in zip(asked, holm([found[index].p or 0.0 for index in asked]), strict=True):
        found[index] = replace(found[index], p=p)
    return found


def _by_cell(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.cell, row.of), []).append(row)
    return found


def _difference(cell: str, of: str, measure: str, before: list[Row], after: list[Row]) -> Difference:
    first, second = (
        {row.repeat: value for row in rows if row.ok and (value := row.measures.get(measure)) is not None}
        for rows in (before, after)
    )
    mean, other_mean = (mean_interval(list(values.values())).mean if values else None for values in (first, second))
    if not first or not second:
        why = f"only in the {'first' if first else 'second'}"
        if not first and not second:
            why = "in neither"
        reasons = dict.fromkeys(f"{row.status}: {row.reason}" for row in (*before, *after) if not row.ok)
        return Difference(cell, of, measure, mean, other_mean, None, why="; ".join((why, *reasons)))
    if min(*first.values(), *second.values()) <= 0:
        same = first == second
        why = "both the same" if same else "values of 0 have no ratio"
        return Difference(cell, of, measure, mean, other_mean, None, why=why)
    shared = sorted(first.keys() & second.keys())
    if len(shared) == len(first) == len(second):
        change = paired_change([first[repeat] for repeat in shared], [second[repeat] for repeat in shared])
    else:
        change = unpaired_change(list(first.values()), list(second.values()))
    return Difference(cell, of, measure, mean, other_mean, change, change.p)


def _share(share: float) -> str:
    return f"{share:+.1%}"
