"""A bound on how often something is said to others (RFC 4443 2.4 (f))."""

from __future__ import annotations

SECOND = 1_000_000_000


class TokenBucket:
    """``rate`` times a second in the long run, ``burst`` times at once. Times are in nanoseconds."""

    __slots__ = ("_burst", "_filled", "_interval", "_tokens")

    def __init__(self, rate: int, burst: int) -> None:
        self._interval = SECOND // rate
        self._burst = burst
        self._tokens = burst
        self._filled = 0

    def take(self, now: int) -> bool:
        """Whether it may be said now; counts as said if so."""
        new = (now - self._filled) // self._interval
        if new > 0:
            self._tokens = min(self._burst, self._tokens + new)
            self._filled += new * self._interval
        if not self._tokens:
            return False
        self._tokens -= 1
        return True
