"""The clock of a synthesiser that is not there: when what was sent is spoken, and when it has nothing to speak.

Clauses are handed to it whole and spoken at a fixed rate. Where all of them have been spoken before the next one is
there, the caller hears a gap: an underrun. No time is read here: every moment is given, in seconds on any one clock.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

RATE = 3.5
"""Tokens that are spoken in a second: 160 English words a minute at 1.3 tokens a word."""


@dataclass(frozen=True)
class Gap:
    """Silence in the middle of a reply. at: when it began."""

    at: float
    seconds: float


class Playback:
    """One reply as it is spoken, at ``rate`` tokens a second.

    A tool is waited for in silence, and what comes after it is a beginning of its own: from the moment at which the
    reply asked for one until the next clause nothing is owed. gaps: the underruns so far, in order. ends_at: when all
    that is there will be spoken; None before the first clause.
    """

    def __init__(self, rate: float = RATE) -> None:
        self.rate = rate
        self.gaps: list[Gap] = []
        self.ends_at: float | None = None
        self._tokens = 0.0
        self._asked_at: float | None = None
        self._stopped = False

    def clause(self, now: float, tokens: float) -> None:
        """The first ``tokens`` of the reply are there as whole clauses."""
        if self._stopped or tokens <= self._tokens:
            return
        if self.ends_at is None:
            self.ends_at = now
        self._silence(now)
        self._asked_at = None
        self.ends_at = max(self.ends_at, now) + (tokens - self._tokens) / self.rate
        self._tokens = tokens

    def asked_tool(self, now: float) -> None:
        """The reply has called a tool and waits for it."""
        if self._asked_at is None:
            self._asked_at = now

    def cut(self, now: float) -> None:
        """Nothing more of it is spoken. Idempotent, as ``broke_off`` is."""
        if self.ends_at is not None and now < self.ends_at and not self._stopped:
            self._tokens -= (self.ends_at - now) * self.rate
            self.ends_at = now
        self._stopped = True

    def broke_off(self, now: float) -> None:
        """There was more to come, for which nobody waits any more."""
        if not self._stopped:
            self._silence(now)
            self._stopped = True

    def when(self, tokens: float) -> float | None:
        """When so many tokens will have been spoken, as far as they are there and were not spoken before the last gap.

        None where they are not there.
        """
        if self.ends_at is None or tokens > self._tokens:
            return None
        return self.ends_at - (self._tokens - tokens) / self.rate

    def spoken_seconds(self, now: float) -> float:
        """Speech until ``now``, gaps not included."""
        ahead = 0.0 if self.ends_at is None else max(0.0, self.ends_at - now)
        return max(0.0, self._tokens / self.rate - ahead)

    def _silence(self, now: float) -> None:
        """Count the silence until ``now`` in which something was owed."""
        until = now if self._asked_at is None else min(now, self._asked_at)
        if self.ends_at is not None and until > self.ends_at:
            self.gaps.append(Gap(self.ends_at, until - self.ends_at))


class Said:
    """A reply's text as it comes: how many tokens are behind how many of its code points."""

    def __init__(self) -> None:
        self._ends = [0]
        self._tokens = [0]

    @property
    def length(self) -> int:
        """Code points so far."""
        return self._ends[-1]

    @property
    def tokens(self) -> int:
        return self._tokens[-1]

    def grow(self, code_points: int, tokens: int) -> None:
        """More text."""
        if code_points:
            self._ends.append(self._ends[-1] + code_points)
            self._tokens.append(self._tokens[-1] + tokens)
        else:
            self._tokens[-1] += tokens

    def tokens_at(self, code_points: int) -> float:
        """Tokens behind the first ``code_points``, spread evenly over each piece of the text."""
        at = min(bisect_left(self._ends, code_points), len(self._ends) - 1)
        if at == 0:
            return 0.0
        begin, end = self._ends[at - 1], self._ends[at]
        share = min(1.0, (code_points - begin) / (end - begin))
        return self._tokens[at - 1] + share * (self._tokens[at] - self._tokens[at - 1])
