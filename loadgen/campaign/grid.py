"""Cells and trials: which combinations a campaign needs, each once, and in which order they are tried."""

from dataclasses import dataclass
from itertools import product
from random import Random

from loadgen.campaign.definition import Campaign, Sweep
from loadgen.campaign.knobs import Value


@dataclass(frozen=True, slots=True)
class Cell:
    """A workload (or several, `a+b`) at one setting of every knob that the campaign names."""

    workload: str
    settings: tuple[tuple[str, Value], ...]  # in the order of the knobs' names

    @property
    def key(self) -> str:
        """What it is called in files, tables and on the command line."""
        return " ".join([self.workload, *(f"{knob}={value}" for knob, value in self.settings)])

    @property
    def parts(self) -> tuple[str, ...]:
        """The workloads side by side."""
        return tuple(self.workload.split("+"))

    def get(self, knob: str) -> Value:
        """The setting of a knob; None where the campaign does not name it."""
        return dict(self.settings).get(knob)


@dataclass(frozen=True, slots=True)
class Trial:
    """One repeat of a cell. Repeats count from 1."""

    cell: Cell
    repeat: int


def cells_of(campaign: Campaign, sweep: Sweep) -> list[Cell]:
    """The cells of one sweep, in the order of its file."""
    found: list[Cell] = []
    for label in sweep.workloads:
        for values in product(*sweep.knobs.values()):
            settings = {**campaign.fixed, **sweep.fixed, **dict(zip(sweep.knobs, values, strict=True))}
            found.append(Cell(label, tuple(sorted(settings.items()))))
    return found


def cells(campaign: Campaign) -> list[Cell]:
    """All cells, one that several sweeps need once."""
    return list(dict.fromkeys(cell for sweep in campaign.sweeps.values() for cell in cells_of(campaign, sweep)))


def trials(campaign: Campaign) -> list[Trial]:
    """Every repeat of every cell, in random order within each repeat.

    Randomised blocks: what drifts meanwhile (temperature, the neighbours' work) falls on no cell more than on the
    others, and a campaign that is interrupted has whole repeats.
    """
    order: list[Trial] = []
    for repeat in range(1, campaign.repeats + 1):
        block = [Trial(cell, repeat) for cell in cells(campaign)]
        Random(f"{campaign.seed} order {repeat}").shuffle(block)
        order += block
    return order
