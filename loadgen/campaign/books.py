"""Whether a load's totals are those of the gateway: its ledger's, and its Prometheus counters', for the same window."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from prometheus_client.parser import text_string_to_metric_families

from loadgen.record import Result
from loadgen.wire import Server, WireError

COUNTS = ("requests", "prompt_tokens", "output_tokens")
METRICS = {"requests": "joulegate_requests_total", "joules": "joulegate_workflow_energy_joules_total"}


@dataclass(frozen=True, slots=True)
class Totals:
    """All that a gateway has counted so far: by its ledger, and by its counters."""

    ledger: Mapping[str, float]
    counters: Mapping[str, float]


class Books:
    """Reads a gateway's totals."""

    def __init__(self, url: str, key: str | None) -> None:
        self._server = Server(url, timeout_s=30.0)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def read(self) -> Totals | None:
        """None where there is no gateway that keeps books, or it does not show them."""
        try:
            answers = [self._server.get(path, self._headers) for path in ("/energy/workflows", "/metrics")]
        except WireError:
            return None
        finally:
            self._server.close()
        if any(status != 200 for status, _ in answers):
            return None
        try:
            return Totals(_of_ledger(orjson.loads(answers[0][1])), _of_metrics(answers[1][1].decode()))
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the load counted, and what the gateway counted meanwhile, by name; joules to the microjoule a request."""

    load: Mapping[str, float]
    ledger: Mapping[str, float]
    counters: Mapping[str, float]

    @classmethod
    def of(cls, result: Result, before: Totals | None, after: Totals | None) -> "Agreement | None":
        """None without books. Where others used the gateway too, it does not agree."""
        if before is None or after is None:
            return None
        requests = result.requests
        load = {
            "requests": float(len(requests)),
            "prompt_tokens": float(sum(request.prompt_tokens or 0 for request in requests)),
            "output_tokens": float(sum(request.output_tokens or 0 for request in requests)),
            "joules": sum(request.energy.joules for request in requests if request.energy),
        }
        return cls(load, _less(after.ledger, before.ledger), _less(after.counters, before.counters))

    @property
    def agrees(self) -> bool:
        joules = 1e-6 * (1 + self.load["requests"])
        return all(
            abs(theirs[name] - self.load[name]) <= (joules if name == "joules" else 0)
            for theirs in (self.ledger, self.counters)
            for name in theirs
        )

    def said(self) -> dict[str, Any]:
        """For the record."""
        parts = {"load": self.load, "ledger": self.ledger, "counters": self.counters}
        return {"agrees": self.agrees} | {name: dict(part) for name, part in parts.items()}


def _of_ledger(answer: Any) -> dict[str, float]:
    rows = answer["workflows"]
    found = {name: float(sum(row[name] or 0 for row in rows)) for name in COUNTS}
    return found | {"joules": sum(row["joules"] or 0.0 for row in rows)}


def _of_metrics(page: str) -> dict[str, float]:
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            counted[sample.name] += sample.value  # pyright: ignore[reportArgumentType]
    return {name: float(counted[metric]) for name, metric in METRICS.items()}


def _less(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}
