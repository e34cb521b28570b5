"""Steps without deadlines: what continuous batching does, to be compared with."""

from __future__ import annotations

import time
from collections.abc import Container

from engine.engine import Engine, Work
from engine.playback import Clause, PlaybackClock
from engine.schedule import decodes, has_work, voices_of
from engine.session import Session


class ArrivalScheduler:
    """First come, first served: replies that are being made share every step, and prefill has a budget of
    ``chunk_tokens`` a step in the order in which it was asked for.
    """

    def __init__(self, chunk_tokens: int, speaking_rate: float = 3.5) -> None:
        self.chunk_tokens = chunk_tokens
        self._speaking_rate = speaking_rate
        self._came: dict[str, float] = {}
        self._playback: dict[str, PlaybackClock] = {}

    def heard(self, session: Session) -> None:
        if session.num_pending <= 1 or session.name not in self._came:
            self._came[session.name] = time.monotonic()
        self._playback.pop(session.name, None)  # its reply is over

    def expect(self, session: str, deadline: float, *, aside: bool = False, rate: float = 0.0) -> None:
        if session not in self._playback:  # else it is released, and came when it was asked for ahead
            self._came[session] = time.monotonic()
        self._playback[session] = PlaybackClock(rate or self._speaking_rate)

    def spoke(self, session: str, tokens: int) -> Clause:
        playback = self._playback.get(session)
        return Clause() if playback is None else Clause(silence_s=playback.spoke(tokens, time.monotonic()))

    def served(self, session: str) -> None:
        pass

    def forget(self, session: str) -> None:
        self._came.pop(session, None)
        self._playback.pop(session, None)

    def voices(self, making: Container[str]) -> tuple[int, float]:
        return voices_of(self._playback, making, self._speaking_rate)

    def expected(self, engine: Engine, session: Session) -> float:
        mine = self._since(session)
        working = [s for s in engine.sessions.values() if has_work(s)]
        speakers = sum(map(decodes, working))
        tokens = sum(s.num_unread for s in working if not decodes(s) and self._since(s) <= mine)
        steps = max(1, -(-tokens // self.chunk_tokens))
        return steps * engine.pace.forward(speakers + 1, speakers + -(-tokens // steps))

    def plan(self, engine: Engine) -> list[Work]:
        working = sorted((s for s in engine.sessions.values() if has_work(s)), key=self._since)
        plan = [Work(session, 1) for session in working if decodes(session)]
        room = self.chunk_tokens
        for session in working:
            if room and not decodes(session):
                tokens = min(session.num_unread, room)
                plan.append(Work(session, tokens))
                room -= tokens
        return plan

    def _since(self, session: Session) -> float:
        return self._came.setdefault(session.name, time.monotonic())
