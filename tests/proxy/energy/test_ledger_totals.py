"""Totals stay the sums of the detail, whether a batch brings requests with their joules or joules alone."""

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy.ledger import Ledger
from proxy.energy.ledger_file import LedgerError
from proxy.energy.records import AttemptRecord, Batch, EnergyRecord, Outcome, RequestRecord, RunRecord
from proxy.energy.sums import WASTE

RUN = RunRecord("u1", "default", "r1", "search", 100.0, 104.0, "open")
DEVICES = ("h1/gpu:0", "h1/cpu:0")
_DETAIL = f"""
    SELECT tenant, workflow, step, engine, component, quality, {WASTE} AS waste, count(*),
        sum(prefill_uj + decode_uj), sum(low_uj), sum(high_uj)
    FROM energy JOIN attempts ON attempts.request_id = energy.request_id AND n = attempt
        JOIN requests ON requests.id = energy.request_id JOIN runs ON uid = run_uid
    GROUP BY tenant, workflow, step, engine, component, quality, waste ORDER BY 1, 2, 3, 4, 5, 6, 7
"""


def request(n: int, outcome: Outcome | None = None) -> RequestRecord:
    return RequestRecord(
        *(f"q{n}", "u1", f"step-{n % 2}", None, "[]", "{}", "/v1/x", 100.0, "m", 0),
        *(None if outcome is None else 104.0, None, outcome, 30, 10, 8, "engine"),
    )


def attempt(n: int, number: int, outcome: Outcome | None = None) -> AttemptRecord:
    return AttemptRecord(f"q{n}", number, f"e{number}", 100.0, 100.0, 101.0, None, None, outcome)


def energy(n: int, number: int, device: str, uj: int) -> EnergyRecord:
    return EnergyRecord(f"q{n}", number, device, "attributed", device[3:6], uj, uj // 2, uj // 3, 2 * uj)


def check(path: Path) -> None:
    db = sqlite3.connect(path)
    detail = db.execute(_DETAIL).fetchall()
    totals = db.execute("SELECT * FROM total_energy WHERE records <> 0 ORDER BY 1, 2, 3, 4, 5, 6, 7").fetchall()
    db.close()
    assert totals == detail


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.lists(st.tuples(st.integers(0, 3), st.sampled_from(DEVICES)), max_size=5)),
        st.tuples(st.just("both"), st.integers(0, 3), st.sampled_from(DEVICES)),
        st.tuples(st.just("end"), st.integers(0, 3), st.sampled_from(list(Outcome))),
        st.tuples(st.just("retry"), st.integers(0, 3)),
        st.tuples(st.just("nothing")),
        st.tuples(st.just("broken")),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_totals_are_the_sums_of_the_detail(steps: list[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as folder:
        ledger = Ledger(path := Path(folder) / "ledger.sqlite")
        ledger.write(Batch([RUN], [request(n) for n in range(4)], [attempt(n, 1) for n in range(4)]))
        for number, step in enumerate(steps, start=1):
            apply(ledger, step, 1000 + number)
            check(path)
        ledger.close()


def apply(ledger: Ledger, step: tuple[Any, ...], uj: int) -> None:
    match step:
        case "grow", pairs:
            rows = {(n, device): energy(n, 1, device, uj) for n, device in pairs}
            ledger.write(Batch(energy=list(rows.values())))
        case "both", n, device:
            rows = [energy(n, 1, device, uj), energy((n + 1) % 4, 1, device, uj)]
            ledger.write(Batch([RUN], [request(n)], [attempt(n, 1)], rows))
        case "end", n, outcome:
            ledger.write(Batch([], [request(n, outcome)], [attempt(n, 1, outcome)], [energy(n, 1, DEVICES[0], uj)]))
        case "retry", n:
            ledger.write(Batch([], [], [attempt(n, 1, Outcome.FAILED), attempt(n, 2)], [energy(n, 2, DEVICES[1], uj)]))
        case ("broken",):
            with pytest.raises(LedgerError):
                ledger.write(Batch(energy=[energy(1, 1, DEVICES[0], uj), energy(9, 1, DEVICES[0], uj)]))
        case _:
            ledger.write(Batch())
