"""Counters that wrap around: turning them into ones that only rise.

Both classes are plain: values and times go in. A fall that cannot be explained by a wrap is passed on as it is: it is a
reset, and what was spent across a reset is unknown.
"""

from dataclasses import dataclass

_MOST_W = 2000.0  # no package draws more: a fall that would need more than this is a reset, not a wrap
_HOLD_S = 2.0  # Zeus and zeusd look for a wrap once a second


@dataclass(slots=True)
class Unwrap:
    """A raw counter that begins again at 0 after `range_uj` microjoules, as RAPL's do."""

    range_uj: int
    _last_uj: int | None = None
    _last_t: float = 0.0
    _wrapped_uj: int = 0

    def at(self, raw_uj: int, t: float) -> int:
        """The rising value in microjoules; it must be asked for more often than the counter wraps."""
        if self._last_uj is not None and raw_uj < self._last_uj:
            spent_uj = raw_uj + self.range_uj - self._last_uj
            if spent_uj <= _MOST_W * 1e6 * (t - self._last_t):
                self._wrapped_uj += self.range_uj
            else:
                self._wrapped_uj = 0
        self._last_uj, self._last_t = raw_uj, t
        return self._wrapped_uj + raw_uj


@dataclass(slots=True)
class Steady:
    """A counter unwrapped by somebody who notices a wrap only up to a second late, and shows a dip until then.

    Taken as it comes, the dip would look like a reset and its end like 262 kJ spent within a tenth of a second.
    """

    _last_uj: int | None = None
    _fell_t: float | None = None

    def at(self, value_uj: int, t: float) -> int | None:
        """The value, or None while it is below an earlier one for less than two seconds."""
        if self._last_uj is not None and value_uj < self._last_uj:
            if self._fell_t is None:
                self._fell_t = t
            if t - self._fell_t < _HOLD_S:
                return None
        self._last_uj, self._fell_t = value_uj, None
        return value_uj
