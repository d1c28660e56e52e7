"""The ledger's tables of sums, and the SQL that adds to them."""

from dataclasses import dataclass

_TOKENS = ("prompt_tokens", "cached_tokens", "output_tokens")
_ENERGY = ("records", "uj", "low_uj", "high_uj")
_PARTS = ("workflow_uj", "idle_uj", "foreign_uj", "gap_uj")
_OF_REQUESTS = ("tenant", "workflow", "step", "outcome", "saved_quality")
_OF_ENERGY = ("tenant", "workflow", "step", "engine", "component", "quality", "waste")

# Why an attempt's joules bought nothing, as `records.waste_of` says it; '' where they did, or nobody knows yet.
WASTE = """
    CASE
        WHEN attempts.outcome IN ('failed', 'error') THEN
            CASE WHEN requests.outcome IS NULL THEN '' WHEN requests.outcome = 'ok' THEN 'retried' ELSE 'failed' END
        WHEN attempts.outcome IN ('cancelled', 'orphaned') THEN attempts.outcome
        WHEN attempts.outcome = 'refused' THEN 'stopped'
        ELSE ''
    END
"""


@dataclass(frozen=True, slots=True)
class Sums:
    """A table whose columns are `keys` and then `sums`: a row for a key that is there adds to it."""

    table: str
    keys: tuple[str, ...]
    sums: tuple[str, ...]

    def add(self, rows: str) -> str:
        """A statement that adds the rows of a SELECT."""
        grow = ", ".join(f"{name} = {name} + excluded.{name}" for name in self.sums)
        return f"INSERT INTO {self.table} {rows} ON CONFLICT ({', '.join(self.keys)}) DO UPDATE SET {grow}"

    @property
    def add_row(self) -> str:
        """A statement that adds one row, given as parameters."""
        return self.add(f"VALUES ({', '.join('?' * len(self.keys + self.sums))})")


TOTAL_RUNS = Sums("total_runs", ("tenant", "workflow", "state"), ("runs", "duration_us"))
TOTAL_REQUESTS = Sums("total_requests", _OF_REQUESTS, ("requests", *_TOKENS, "saved_uj"))
TOTAL_ENERGY = Sums("total_energy", _OF_ENERGY, _ENERGY)
TOTAL_WINDOWS = Sums("total_windows", ("device", "quality"), _PARTS)
WINDOWS = Sums("windows", ("device", "second", "quality"), _PARTS)
DAY_RUNS = Sums("day_runs", ("day", "tenant", "workflow"), ("runs", "duration_us"))
DAY_REQUESTS = Sums("day_requests", ("day", *_OF_REQUESTS), ("requests", *_TOKENS, "saved_uj"))
DAY_ENERGY = Sums("day_energy", ("day", *_OF_ENERGY), _ENERGY)
DAY_WINDOWS = Sums("day_windows", ("day", "device", "quality"), _PARTS)
SPENT = Sums("spent", ("tenant", "hour"), ("uj",))
DROPPED = Sums("dropped", ("day",), ("requests", "uj"))
