"""What each tenant's settled requests have cost, hour by hour, as far back as a month can reach."""

from collections.abc import Mapping

HOUR_S = 3600
MONTH_H = 31 * 24 + 1  # hours of the longest month, and one more
_STARTS = 8  # sums that are kept for each tenant: of an hour, a day, a month, and of some that are over


class Spent:
    """Microjoules by tenant and hour (since 1970, UTC). What is older than a month is forgotten."""

    def __init__(self, before: Mapping[str, Mapping[int, int]] | None = None) -> None:
        """`before` is what earlier processes booked."""
        self._hours = {tenant: dict(hours) for tenant, hours in (before or {}).items()}
        self._sums: dict[str, dict[float, int]] = {}

    def add(self, tenant: str, t: float, uj: int) -> None:
        """Joules that were spent at Unix time `t`."""
        hours, hour = self._hours.setdefault(tenant, {}), int(t // HOUR_S)
        if hour not in hours:
            for old in [old for old in hours if old < hour - MONTH_H]:
                del hours[old]
        hours[hour] = hours.get(hour, 0) + uj
        sums = self._sums.get(tenant, {})
        for first in sums:
            if hour >= first:
                sums[first] += uj

    def since(self, tenant: str, t: float) -> int:
        """Microjoules of a tenant since Unix time `t`, which begins an hour."""
        sums, first = self._sums.setdefault(tenant, {}), t / HOUR_S
        if first not in sums:
            if len(sums) >= _STARTS:
                sums.clear()
            sums[first] = sum(uj for hour, uj in self._hours.get(tenant, {}).items() if hour >= first)
        return sums[first]
