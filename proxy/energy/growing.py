"""Requests of which nothing changes but their joules, as all do that are in flight: added to the totals as they come.

Their rows are looked up once, and not summed anew every second: with a thousand in flight that is most of what the
ledger would have to do. What is known of them is forgotten when they end, when anything else of them changes, or some
seconds go by without a joule.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from proxy.energy.records import EnergyRecord
from proxy.energy.sums import TOTAL_ENERGY, WASTE

_ATTEMPTS = f"""
    SELECT request_id, n, tenant, workflow, step, engine, {WASTE}, requests.ended IS NOT NULL
    FROM json_each(?) CROSS JOIN attempts ON request_id = value
        CROSS JOIN requests ON requests.id = request_id CROSS JOIN runs ON uid = run_uid
"""
_ROWS = "SELECT request_id, attempt, device, quality FROM json_each(?) CROSS JOIN energy ON request_id = value"


_SECONDS = 5  # joules of a crowd come every third second


@dataclass(slots=True)
class _Request:
    """Its attempts' names in the totals, before and after component and quality, and the energy rows that it has."""

    grew: int  # in which second it did last
    over: bool = False  # it has ended: hardly any joules are still to come
    attempts: dict[int, tuple[tuple[str, str, str, str], str]] = field(default_factory=dict)
    rows: set[tuple[int, str, str]] = field(default_factory=set)


class Growing:
    """What one ledger file's totals need to know of such requests."""

    def __init__(self) -> None:
        self._known: dict[str, _Request] = {}
        self._second = 0

    def know(self, db: sqlite3.Connection, records: Sequence[EnergyRecord], changed: set[str]) -> None:
        """Look these up, before they are written. `changed` names the requests of which something else is new."""
        self._second += 1
        for one in changed & self._known.keys():
            del self._known[one]
        if self._second % _SECONDS == 0:
            self._known = {one: known for one, known in self._known.items() if known.grew > self._second - _SECONDS}
        if not (unknown := {record.request_id for record in records} - self._known.keys()):
            return
        self._known |= {one: _Request(self._second) for one in unknown}
        ids = (orjson.dumps(list(unknown)).decode(),)
        for request_id, n, tenant, workflow, step, engine, waste, over in db.execute(_ATTEMPTS, ids):
            known = self._known[request_id]
            known.attempts[n], known.over = ((tenant, workflow, step, engine), waste), bool(over)
        for request_id, attempt, device, quality in db.execute(_ROWS, ids):
            self._known[request_id].rows.add((attempt, device, quality))

    def add(self, db: sqlite3.Connection, records: Sequence[EnergyRecord]) -> None:
        """Add to the totals what was written of them."""
        sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for request_id, n, device, quality, component, prefill_uj, decode_uj, low_uj, high_uj in records:
            known = self._known[request_id]
            known.grew = self._second
            names, waste = known.attempts[n]
            of_kind = sums[*names, component, quality, waste]
            row = (n, device, quality)
            if row not in known.rows:
                known.rows.add(row)
                of_kind[0] += 1
            of_kind[1] += prefill_uj + decode_uj
            of_kind[2] += low_uj
            of_kind[3] += high_uj
        db.executemany(TOTAL_ENERGY.add_row, [(*key, *values) for key, values in sums.items()])
        self._known = {one: known for one, known in self._known.items() if not known.over}
