"""Which session's work comes next. Knows deadlines and waiting, no model and no cost of its own.

A caller who waits for a first token comes first, then replies in progress, the least recently served first, then
prefill of what has been heard but not yet asked about.
"""

from __future__ import annotations

import time

from engine.engine import Engine, Work
from engine.session import Session


class Scheduler:
    """Plans one step at a time over an engine's sessions."""

    def __init__(self, prefill_chunk_tokens: int) -> None:
        self._chunk = prefill_chunk_tokens
        self._deadlines: dict[str, float] = {}
        self._served: dict[str, float] = {}

    def expect(self, session: str, deadline: float) -> None:
        """A reply was asked for whose first token is wanted by ``deadline`` (monotonic seconds; 0: at once)."""
        self._deadlines[session] = deadline

    def forget(self, session: str) -> None:
        self._deadlines.pop(session, None)
        self._served.pop(session, None)

    def plan(self, engine: Engine) -> list[Work]:
        """The most urgent piece of work, or nothing. One item a step, so that none waits for another's forward."""
        best: tuple[tuple[int, float], Session] | None = None
        for session in engine.sessions.values():
            urgency = self._urgency(session)
            if urgency is not None and (best is None or urgency < best[0]):
                best = (urgency, session)
        if best is None:
            return []
        (_, deadline), session = best
        self._served[session.name] = time.monotonic()
        return [Work(session, deadline=deadline, max_tokens=self._chunk)]

    def _urgency(self, session: Session) -> tuple[int, float] | None:
        turn = session.turn
        if turn is not None and turn.stats.first_token == 0.0:
            return 0, self._deadlines.get(session.name, 0.0) or turn.stats.submitted
        if turn is not None:
            return 1, self._served.get(session.name, 0.0)
        if session.num_pending > 1:
            return 2, self._served.get(session.name, 0.0)
        return None
