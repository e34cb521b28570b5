"""How often something may happen.

A bucket of our own: the libraries for it (aiolimiter, limits, pyrate-limiter) await, lock or look a store up with each
event, and this is asked with every event of every call. It is the generic cell rate algorithm (ITU-T I.371), whose
state is one number.
"""

from __future__ import annotations

ROUNDING_S = 1e-8
"""What rounding may make of nothing, where clocks count from long ago."""


class TokenBucket:
    """``rate`` times a second in the long run, ``burst`` (at least 1) at once. Times are seconds of a clock of the
    caller's.
    """

    __slots__ = ("_burst_s", "_free_at", "_step_s")

    def __init__(self, rate: float, burst: float) -> None:
        self._step_s = 1.0 / rate
        self._burst_s = burst * self._step_s
        self._free_at = float("-inf")

    def take(self, now: float) -> float:
        """0 where it may happen now, and it counts; else how many seconds it is too early, and it does not count."""
        free_at = max(self._free_at, now) + self._step_s
        early = free_at - now - self._burst_s
        if early > self._step_s * 1e-6 + ROUNDING_S:
            return early
        self._free_at = free_at
        return 0.0

    def charge(self, then: float, number: int) -> None:
        """So many happened then, whether they might or not. Not before what was taken last."""
        self._free_at = max(self._free_at, then) + number * self._step_s

    def full(self, now: float) -> bool:
        """Whether as much may happen at once as ever: a new one would be no different."""
        return self._free_at <= now
