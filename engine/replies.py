"""Replies in progress: what reads their text, and what is told of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from engine import records
from engine.engine import Step
from engine.schedule import Scheduler
from engine.session import Finish, Turn
from engine.text.reply import ReplyReader


@dataclass
class Reply:
    """A reply in progress, with what reads its text."""

    number: int
    turn: Turn
    reader: ReplyReader
    clauses: int = 0
    """That have ended."""
    phases: int = 0
    """Of its drafting that were told."""
    held_at: float | None = None
    """Since when it stands still for its reader's sake; None: it does not."""
    stood_still: bool = False
    """Whether it did since its last clause, which then says nothing of those that it was made beside."""

    def stand_still(self) -> None:
        """No more of it is made; its first token, where that is not there yet, is."""
        self.turn.hold, self.held_at = max(1, self.turn.num_tokens), time.monotonic()

    def go_on(self) -> None:
        """It stands still no longer."""
        if self.held_at is not None:
            self.turn.stats.held_seconds += time.monotonic() - self.held_at
            self.turn.hold = self.held_at = None
            self.stood_still = True

    def progress(self, step: Step, scheduler: Scheduler) -> records.Progress:
        """What is to be told of what it gained; the scheduler hears of clauses that ended."""
        cut = step.finish in (Finish.LENGTH, Finish.CONTEXT)
        read = self.reader.take(final=step.finish is not None, cut=cut)
        self.clauses += len(read.clause_ends)
        if read.clause_ends:
            clause = scheduler.spoke(step.session, self.turn.num_tokens)
            if self.turn.hold is None and not self.stood_still:
                self.turn.stats.heard(clause)
            if self.turn.hold is not None and clause.suffices:
                self.turn.hold = self.turn.num_tokens
            self.stood_still = False
        return records.Progress(
            session=step.session,
            turn=self.number,
            tokens=step.tokens,
            text=read.text,
            clause_ends=tuple(read.clause_ends),
            accepted=step.accepted,
            at=time.monotonic(),
            calls=tuple(records.ToolCall(call.name, call.arguments) for call in read.calls),
            malformed_calls=len(read.malformed),
            drafting=self._news_of_drafting(),
        )

    def account(self, error: str = "") -> records.Ended:
        """What it was, now that it is over."""
        turn = self.turn
        assert turn.finish is not None
        return records.Ended(
            session=turn.session.name,
            turn=self.number,
            finish=turn.finish.value,
            log_tokens=len(turn.session.tokens),
            reply_tokens=len(turn.session.tokens) - turn.start,
            stats=turn.stats,
            error=error,
        )

    def _news_of_drafting(self) -> tuple[str, str] | None:
        """How it is drafted, and why, where that was not told yet."""
        phases = self.turn.stats.phases
        if len(phases) <= self.phases:
            return None
        self.phases = len(phases)
        return phases[-1].mode, phases[-1].reason
