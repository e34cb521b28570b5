"""Which session's work comes next. Knows deadlines and waiting, no model and no cost of its own.

A caller who waits for a first token comes first, then replies in progress, the least recently served first, then
prefill of what has been heard but not yet asked about, replies that are made ahead of being asked for, and last what is
generated aside of any conversation. Whoever has
waited beyond the patience of their kind comes first as well, so that neither a long prompt stops the replies of others
nor a long reply what is being heard.
"""

from __future__ import annotations

import time

from engine.engine import Engine, Work
from engine.session import Session

REPLY_PATIENCE_S = 0.1
"""Speech plays at three to four tokens a second: a reply that stands still for this long is not heard to."""
PREFILL_PATIENCE_S = 0.2
ASIDE_PATIENCE_S = 1.0
"""A side question has one step in so long however busy the machine is: it comes to its end, if slowly."""


class Scheduler:
    """Plans one step at a time over an engine's sessions."""

    def __init__(self, prefill_chunk_tokens: int) -> None:
        self.chunk_tokens = prefill_chunk_tokens
        self._deadlines: dict[str, float] = {}
        self._served: dict[str, float] = {}
        self._aside: set[str] = set()

    def expect(self, session: str, deadline: float, *, aside: bool = False) -> None:
        """A reply was asked for whose first token is wanted by ``deadline`` (monotonic seconds; 0: at once).

        aside: no caller waits for any of it.
        """
        self._deadlines[session] = deadline
        self._served.pop(session, None)
        (self._aside.add if aside else self._aside.discard)(session)

    def forget(self, session: str) -> None:
        self._aside.discard(session)
        self._deadlines.pop(session, None)
        self._served.pop(session, None)

    @staticmethod
    def has_work(session: Session) -> bool:
        """Whether a step would do anything for the session."""
        if session.turn is not None:
            return not session.turn.waits
        return session.num_pending > 1 and not session.waits_for_pages

    def before(self, engine: Engine, session: Session) -> list[Session]:
        """Those whose callers wait for a first token as well, and get theirs before this one does."""
        now = time.monotonic()
        mine = self._urgency(session, now)
        others = (other for other in engine.sessions.values() if other is not session and self.has_work(other))
        return [other for other in others if self._urgency(other, now) < min(mine, (1, 0.0))]

    def plan(self, engine: Engine) -> list[Work]:
        """The most urgent piece of work, or nothing. One item a step, so that none waits for another's forward."""
        now = time.monotonic()
        waiting = [session for session in engine.sessions.values() if self.has_work(session)]
        if not waiting:
            return []
        session = min(waiting, key=lambda session: self._urgency(session, now))
        deadline = self._deadlines.get(session.name, 0.0)
        self._served[session.name] = now
        return [Work(session, deadline=deadline, max_tokens=self.chunk_tokens)]

    def _urgency(self, session: Session, now: float) -> tuple[int, float]:
        """Class, and within it what is wanted first. Times are monotonic seconds."""
        if session.name in self._aside:
            served = self._served.setdefault(session.name, now)
            due = served + ASIDE_PATIENCE_S
            return (0, due) if due < now else (3, served)
        turn = session.turn
        if turn is not None and turn.hold is not None:
            turn = None  # nobody waits for it yet
        if turn is not None and turn.stats.first_token == 0.0:
            # One chunk of a long prompt is as urgent as the time at which the chunk before it was done.
            asked = self._deadlines.get(session.name, 0.0) or turn.stats.submitted
            return 0, max(asked, self._served.get(session.name, 0.0))
        served = self._served.setdefault(session.name, now)
        due = served + (PREFILL_PATIENCE_S if turn is None else REPLY_PATIENCE_S)
        return (0, due) if due < now else (2 if turn is None else 1, served)
