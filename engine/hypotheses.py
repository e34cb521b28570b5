"""What a session's log holds ahead of its history, and what that cost: the books of computing hypotheses."""

from __future__ import annotations

from dataclasses import dataclass

from engine import records
from engine.session import Session, TurnStats


@dataclass
class Hypothesis:
    """The one of a session: tokens ``start`` to ``end`` of its log; none where the two are the same.

    number: of the command to answer when it is computed; 0 for none. found: tokens of it that were computed already.
    rewound: tokens of the one before it that were computed in vain; wasted: of all since the last reply.
    """

    start: int = 0
    end: int = 0
    number: int = 0
    found: int = 0
    rewound: int = 0
    wasted: int = 0

    def replace(self, session: Session, cached_before: int, ahead: int, number: int = 0) -> None:
        """The log was changed, and its last ``ahead`` tokens are the hypothesis now. cached_before: tokens in the cache
        until then.
        """
        cached = session.cache.length
        self.rewound = max(0, min(cached_before, self.end) - max(cached, self.start))
        self.wasted += self.rewound
        self.start, self.end, self.number = len(session.tokens) - ahead, len(session.tokens), number
        self.found = max(0, cached - self.start)

    def account(self, session: Session, stats: TurnStats, start: int | None) -> None:
        """Note what a reply to the log finds of it. start: where the hypotheses of its turn began; None: none."""
        stats.cached_tokens = min(session.cache.length, stats.prompt_tokens)
        stats.prefilled_ahead = 0 if start is None else max(0, stats.cached_tokens - start)
        stats.rewound = self.wasted

    def become_history(self, session: Session) -> None:
        """It was right."""
        self.start = self.end = len(session.tokens)
        self.number = self.wasted = 0

    def take_news(self, session: Session) -> records.Prefilled | None:
        """What is to be told once all of it is computed."""
        if not self.number or session.turn is not None or session.num_pending > 1:
            return None
        number, self.number = self.number, 0
        tokens = self.end - self.start
        return records.Prefilled(session.name, number, tokens, self.rewound, max(0, tokens - self.found))
