"""Which load to try next, to find how many calls a contender carries: doubled until it fails, then halved between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

MOST_CALLS = 256
"""Nobody is tried with more."""


@dataclass(frozen=True)
class Search:
    """first: the load to begin with; where it is too much, smaller ones are tried. parts: how close the smallest load
    that fails is brought to the largest that does not, as a part of it. most_runs: of one contender.
    """

    first: int
    parts: int
    most_runs: int

    def beginning(self, first: int) -> Search:
        """The same from another load on, with the runs that it takes to double a smaller one."""
        doublings = max(0, (self.first // first).bit_length() - 1)
        return replace(self, first=first, most_runs=self.most_runs + doublings)

    def next(self, tried: Mapping[int, bool]) -> int | None:
        """The number of calls to try now; None where enough is known, or enough was tried. tried: whether a load is in
        the SLO.
        """
        if not tried:
            return self.first
        if len(tried) >= self.most_runs:
            return None
        failing = min((calls for calls, meets in tried.items() if not meets), default=None)
        carried = max((calls for calls in tried if failing is None or calls < failing), default=0)
        if failing is None:
            return 2 * carried if 2 * carried <= MOST_CALLS else None
        if carried == 0 and failing > 1:
            return failing // 2
        if carried and failing - carried > max(1, carried // self.parts):
            return (carried + failing) // 2
        return None


FINE = Search(first=32, parts=4, most_runs=6)
"""Of so many callers a window of 100 s has some hundred turns whose first clauses count. Of 8 it has a quarter of that,
whose p95 lies between the two longest, as it does in windows of 40 s: that would judge the recorded calls, and every
contender alike. Finer parts than quarters are decided by what else the machine does.
"""
AGAIN = replace(FINE, most_runs=4)
"""From where a search of the same contender has ended, that went another way to the engine."""
