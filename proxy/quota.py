"""What one key may ask for: requests and tokens a minute, and how many requests at once.

Sans-I/O: time is passed in. The rates are token buckets that hold a minute's worth and fill evenly, so a key that was
quiet may send a minute's requests at once and then goes on at its rate.
"""

import math
from dataclasses import dataclass

from proxy.refusal import Refusal

_SLACK_S = 1e-6  # what float seconds since 1970 cannot tell apart


class Bucket:
    """Fills with `per_minute` units a minute and holds no more. What is taken may leave it in debt."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at: float | None = None

    def wait_s(self, now: float) -> float:
        """Seconds until there is a unit to take, if nobody takes one before; 0.0 when there is one."""
        self._fill(now)
        wait_s = (1.0 - self._level) * 60.0 / self.per_minute
        return wait_s if wait_s > _SLACK_S else 0.0

    def take(self, units: int, now: float) -> None:
        self._fill(now)
        self._level -= units

    def _fill(self, now: float) -> None:
        if self._at is not None:
            grown = self._level + max(0.0, now - self._at) * self.per_minute / 60.0
            self._level = min(float(self.per_minute), grown)
        self._at = now


@dataclass(slots=True)
class Quota:
    """One key's allowance; None is no limit. Every `enter` that returned needs one `leave`."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    most_in_flight: int | None = None
    in_flight: int = 0

    def enter(self, now: float) -> None:
        """Let one request in. Raises Refusal (429), which costs nothing, with the seconds after which it would pass."""
        if self.most_in_flight is not None and self.in_flight >= self.most_in_flight:
            raise _over(f"{self.most_in_flight} requests in flight", 1.0)
        for bucket, what in ((self.requests, "requests"), (self.tokens, "tokens")):
            if bucket is not None and (wait_s := bucket.wait_s(now)):
                raise _over(f"{bucket.per_minute} {what} a minute", wait_s)
        if self.requests is not None:
            self.requests.take(1, now)
        self.in_flight += 1

    def change(self, to: "Quota") -> None:
        """Take the allowances of another one. Of a rate that stays, what was used counts on, and so do those inside."""
        if _rate(self.requests) != _rate(to.requests):
            self.requests = to.requests
        if _rate(self.tokens) != _rate(to.tokens):
            self.tokens = to.tokens
        self.most_in_flight = to.most_in_flight

    def leave(self, tokens: int, now: float) -> None:
        """The request is over and used so many tokens, which nobody could know before: they may leave a debt."""
        self.in_flight -= 1
        if self.tokens is not None:
            self.tokens.take(tokens, now)


def _rate(bucket: Bucket | None) -> int | None:
    return None if bucket is None else bucket.per_minute


def _over(allowance: str, wait_s: float) -> Refusal:
    retry_s = math.ceil(wait_s)
    message = f"this key may have {allowance}; try again in {retry_s} s"
    return Refusal(429, message, "rate_limit_exceeded", retry_after_s=retry_s)
