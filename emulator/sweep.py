"""A measured sweep, and its rows emulated as what they were.

The CSV is what `docs/results/h200/emulator/README.md` tells of: whole rounds of `batch` requests at once, each of
`n_in` prompt tokens (`shared` of them the same for all), that answer `n_out` tokens; the next round begins when all are
done.
"""

import csv
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from emulator.core.machine import Observed
from emulator.core.presets import GpuPreset, ModelPreset
from emulator.core.prompt import Text
from emulator.replay import COUNTER_S, Call, Replay, Task

KEYS = ("kind", "batch", "n_in", "n_out", "shared", "rounds", "requests")
WARM_UP_TOKENS = 8


class SweepError(ValueError):
    """A sweep that cannot be used: one line to act on."""


@dataclass(frozen=True, slots=True)
class Row:
    """`seconds` and `joules` are from one movement of NVML's counter to another, with the idle time at the end."""

    kind: str
    batch: int
    n_in: int
    n_out: int
    shared: int
    rounds: int
    requests: int
    seconds: float
    joules: float
    itl_s: float | None  # median; None where nothing was decoded

    @property
    def key(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in KEYS}


@dataclass(frozen=True, slots=True)
class Outcome:
    seconds: float
    joules: float
    itl_s: float | None


def read_sweep(file: Path) -> list[Row]:
    """The rows of a sweep. Raises SweepError."""
    try:
        with file.open(newline="") as lines:
            reader = csv.DictReader(lines)
            missing = [name for name in (*KEYS, "seconds", "joules") if name not in (reader.fieldnames or ())]
            if missing:
                raise SweepError(f"{file} lacks the columns {', '.join(missing)}")
            rows = [_row(cells, f"{file}, line {reader.line_num}") for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SweepError(f"{file} cannot be read: {error}") from None
    if not rows:
        raise SweepError(f"{file} has no rows")
    return rows


def _row(cells: dict[str, Any], place: str) -> Row:
    try:
        counts = {name: int(cells[name]) for name in KEYS[1:]}
        seconds, joules = float(cells["seconds"]), float(cells["joules"])
        itl_s = float(cells.get("itl_p50_ms") or 0) / 1e3
    except (TypeError, ValueError) as error:
        raise SweepError(f"{place}: {error}") from None
    row = Row(cells["kind"], **counts, seconds=seconds, joules=joules, itl_s=itl_s or None)
    if not (seconds > 0 and joules > 0 and itl_s >= 0):
        raise SweepError(f"{place}: seconds and joules must be above 0, not {seconds:g} and {joules:g}")
    if min(row.batch, row.n_in, row.n_out, row.rounds) < 1 or not 0 <= row.shared <= row.n_in:
        raise SweepError(f"{place}: batch, n_in, n_out and rounds are at least 1, shared is 0 to n_in")
    if row.requests != row.batch * row.rounds:
        raise SweepError(f"{place}: requests ({row.requests}) must be batch x rounds ({row.batch * row.rounds})")
    return row


def emulate(row: Row, gpu: GpuPreset, model: ModelPreset, *, whole_ticks: bool = True) -> Outcome:
    """What the row's work takes on an emulated card, measured as the script did: a short round to warm up, then from
    one movement of the counter to the first after the last round. Without `whole_ticks` the wait for that movement is
    its mean, so that the outcome is a smooth function of the factors. Raises PresetError, OutOfMemory.
    """
    steps: list[tuple[float, int]] = []

    def observe(step: Observed) -> None:
        steps.append((step.seconds, sum(part.decode_sequences for part in step.parts.values())))

    replay = Replay(gpu, model, max_model_len=max(4096, row.n_in + row.n_out), observer=observe)
    replay.run(*_round(row, "warm-up", min(row.n_out, WARM_UP_TOKENS)))
    before_j = replay.counter_moves()
    start = replay.now
    steps.clear()
    for number in range(row.rounds):
        replay.run(*_round(row, number, row.n_out))
    if whole_ticks:
        joules = replay.counter_moves() - before_j
    else:
        replay.rest(replay.now + COUNTER_S / 2)
        joules = replay.energy_j - before_j
    return Outcome(replay.now - start, joules, _median(steps))


def _round(row: Row, number: int | str, max_tokens: int) -> list[Task]:
    def client(name: int) -> Task:
        head = [Text("head", row.shared)] if row.shared else []
        tail = [Text((number, name), row.n_in - row.shared)] if row.n_in > row.shared else []
        yield Call([*head, *tail], max_tokens)

    return [client(name) for name in range(row.batch)]


def _median(steps: Sequence[tuple[float, int]]) -> float | None:
    """The median time between two tokens of a stream: of the steps, each weighted by its streams."""
    steps = sorted(steps)
    weights = list(accumulate(streams for _, streams in steps))
    if not weights or not weights[-1]:
        return None
    return steps[bisect_left(weights, weights[-1] / 2)][0]
