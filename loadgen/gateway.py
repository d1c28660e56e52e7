"""What a gateway says of a load: the joules of its runs, and the counters of its devices. JSON in, records out; no I/O.

The paths are `/energy/runs/{id}` and `/energy/balance` (`proxy/api/answers.py` has their shapes).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from loadgen.record import Energy, Sample

COMPONENTS = ("gpu", "cpu", "dram")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the gateway knows of a request: its id there, and its joules, null where nobody knows them."""

    id: str
    energy: Energy | None


def settled_run(body: bytes) -> dict[str, Receipt] | None:
    """The receipts of a run's requests by node; None while some of them are not settled.

    Raises ValueError for what is not the answer of a gateway.
    """
    run = _parse(body)
    try:
        if not run["settled"]:
            return None
        return {one["node"] or one["id"]: Receipt(one["id"], _energy(one)) for one in run["requests"]}
    except (KeyError, TypeError):
        raise ValueError("not a run as a gateway has it") from None


def balance(body: bytes, at_s: float, before_j: Mapping[str, float] | None = None) -> list[Sample]:
    """Every device's counter, less what it had `before_j` by its name. Raises ValueError for another answer."""
    try:
        return [
            Sample(
                at_s=at_s,
                device=device,
                component=_component(device),
                energy_j=books["counter_j"] - (before_j or {}).get(device, 0.0),
                quality=books["quality"],
            )
            for device, books in _parse(body).items()
        ]
    except (KeyError, TypeError):
        raise ValueError("not a balance as a gateway has it") from None


def _energy(request: Mapping[str, Any]) -> Energy | None:
    if request["joules"] is None:
        return None
    return Energy(
        joules=request["joules"],
        joules_low=request["joules_low"],
        joules_high=request["joules_high"],
        quality=request["quality"],
        by_component=request["by_component"],
        active_joules=request["active_joules"],
    )


def _component(device: str) -> str:
    """`h1/gpu:0` is a gpu."""
    kind = device.rpartition("/")[2].partition(":")[0]
    return kind if kind in COMPONENTS else "other"


def _parse(body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except ValueError:
        raise ValueError(f"not JSON: {body[:80]!r}") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"not a JSON object: {body[:80]!r}")
    return parsed
