"""Two more views of busy joules: what lies above the loaded idle, and what the whole machine took for them.

By host, over everything that its ledger holds, with the sums over the host's devices:

    full   = joules · PUE · Σ counter / Σ (workflow + foreign)
    active = joules · Σ active / Σ workflow                          (`floor`)

So the full joules of all workflows and of foreign work sum to the counters times the PUE, whatever the work was: what
was spent idle, in a gap or by devices that no engine works on is shared in proportion to busy joules. Estimated devices
carry their own idle joules, and measured ones theirs. Only busy joules are in the books.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from proxy.energy.floor import Floor
from proxy.energy.receipts import share_quality
from proxy.energy.records import Quality

Place = tuple[str, str]  # (host, quality of a request's share there)


class Moved(NamedTuple):
    """What became of a device's counter (microjoules), and the quality of a request's share of it."""

    quality: str
    workflow_uj: int
    idle_uj: int
    foreign_uj: int
    gap_uj: int


class Factors(NamedTuple):
    """What to multiply busy joules by; None where that is not known."""

    active: float | None
    full: float | None


class Views:
    """The factors of all hosts at one moment."""

    def __init__(
        self,
        devices: Mapping[str, Moved],
        floors: Mapping[str, Floor],
        pue: Mapping[str, float],
        engines: Mapping[str, str],
    ) -> None:
        """`pue` is by host, 1 where it is not given; `engines` names the host of each."""
        self._engines = engines
        self._hosts = {name.partition("/")[0] for name in devices}
        places: dict[Place, list[str]] = defaultdict(list)
        for name, moved in devices.items():
            places[name.partition("/")[0], moved.quality].append(name)
        self.factors: dict[Place, Factors] = {}
        for place, names in places.items():
            of_place = {name: devices[name] for name in names}
            self.factors[place] = Factors(_active(of_place, floors), _full(of_place, pue.get(place[0], 1.0)))

    def of_engines(self, uj: Mapping[tuple[str, str], int]) -> dict[str, float | None]:
        """Both views of microjoules by (engine, quality)."""
        by_place: dict[Place, int] = defaultdict(int)
        only = next(iter(self._hosts)) if len(self._hosts) == 1 else ""
        for (engine, quality), amount in uj.items():
            by_place[self._engines.get(engine, only), quality] += amount
        return self.of_places(by_place)

    def of_places(self, uj: Mapping[Place, int]) -> dict[str, float | None]:
        """Both views of microjoules by (host, quality); null where a part of them has none."""
        factors = [(amount, self.factors.get(place, Factors(None, None))) for place, amount in uj.items() if amount]
        return {
            "active_joules": _sum([(amount, factor.active) for amount, factor in factors]) if uj else None,
            "full_joules": _sum([(amount, factor.full) for amount, factor in factors]) if uj else None,
        }


def moved(balance: Mapping[str, Mapping[str, Any]]) -> dict[str, Moved]:
    """The ledger's balance (joules by device) as what `Views` takes."""
    parts = ("workflow", "idle", "foreign", "gap")
    return {
        device: Moved(
            share_quality(Quality(row["quality"])).value, *(round((row[f"{part}_j"] or 0.0) * 1e6) for part in parts)
        )
        for device, row in balance.items()
    }


def _full(devices: Mapping[str, Moved], pue: float) -> float | None:
    counter_uj = sum(one.workflow_uj + one.idle_uj + one.foreign_uj + one.gap_uj for one in devices.values())
    busy_uj = sum(one.workflow_uj + one.foreign_uj for one in devices.values())
    return pue * counter_uj / busy_uj if busy_uj else None


def _active(devices: Mapping[str, Moved], floors: Mapping[str, Floor]) -> float | None:
    at_work = [floors.get(name) for name, one in devices.items() if one.workflow_uj]
    known = [floor for floor in at_work if floor is not None and floor.workflow_uj > 0]
    if not known or len(known) < len(at_work):
        return None
    return sum(floor.active_uj for floor in known) / sum(floor.workflow_uj for floor in known)


def _sum(parts: list[tuple[int, float | None]]) -> float | None:
    if any(factor is None for _, factor in parts):
        return None
    return round(sum(amount * (factor or 0.0) for amount, factor in parts)) / 1e6
