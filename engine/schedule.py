"""What comes next, and what shares a step with it. Knows deadlines, the pace of steps and the playback clock.

Every piece of work has a moment at which it is due, and the earliest comes first:

- a turn that was committed, until its caller has a first clause: as soon as it is asked;
- the rest of the reply: when what was said of it will have been spoken;
- prefill of what is being heard, and replies made ahead: soon enough for the final that will ask for them;
- what is generated aside: once in a while, so that it comes to its end.

A moment that has passed lies the further back the longer something waits, so nothing starves. What is due is served
together, as long as the step does not become so long that the next caller who commits a turn would have to wait for it,
and a long prompt is cut into chunks that the others hardly notice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from engine.engine import Engine, Work
from engine.pace import Pace
from engine.session import Session

CLAUSE_S = 0.1
"""From being asked, by when a first clause is wanted where nobody gave a deadline."""
PREFILL_S = 0.2
AHEAD_S = 0.3
"""A final follows an eager end after a third of a second."""
ASIDE_S = 1.0
LEAD_S = 0.5
"""A clause that the synthesiser must have so long before it is spoken."""
COMFORT_S = 2.0
"""With so much left to be spoken nobody waits for a reply's next tokens."""
LONGEST_STEP_S = 0.05
"""Where nobody waits, whoever comes next is not to wait for longer, or for ``ROOMY`` plain steps if that is more."""
ROOMY = 3.0
CROWD = 1.5
"""Times that those with a lead may lengthen a step of those without; ``CROWD_WAITING`` of those without a clause."""
CROWD_WAITING = 1.1
NOTICED = 1.4
"""Times that prefill may lengthen a step that others speak in, if it is longer than ``SHORT_PROMPT`` tokens."""
SHORT_PROMPT = 32


class Scheduler(Protocol):
    """Plans one step at a time over an engine's sessions."""

    chunk_tokens: int
    """Most tokens of one prefill step."""

    def expect(self, session: str, deadline: float, *, aside: bool = False, rate: float = 0.0) -> None:
        """A reply was asked for whose first token is wanted by ``deadline`` (monotonic seconds; 0: at once).

        aside: no caller waits for any of it. rate: tokens of it that are spoken in a second; 0 where nobody knows.
        """
        ...

    def spoke(self, session: str, tokens: int, clauses: bool) -> None:
        """A reply has so many tokens by now; whether a clause of it ended since the last time."""
        ...

    def forget(self, session: str) -> None: ...

    def before(self, engine: Engine, session: Session) -> list[Session]:
        """Those whose callers wait for a first token as well, and get theirs before this one does."""
        ...

    def plan(self, engine: Engine) -> list[Work]:
        """What shares the next step; nothing where there is nothing to do."""
        ...


def has_work(session: Session) -> bool:
    """Whether a step would do anything for the session."""
    if session.turn is not None:
        return not session.turn.waits
    return session.num_pending > 1 and not session.waits_for_pages


@dataclass
class _Order:
    """What is known of a session's latest reply. Times are monotonic seconds; 0 for what has not come.

    since: when it was asked, released or heard, or last served.
    """

    deadline: float = 0.0
    aside: bool = False
    rate: float = 0.0
    asked: float = 0.0
    since: float = 0.0
    began_to_speak: float = 0.0
    spoken_tokens: int = 0
    """Up to the last clause that ended."""

    @property
    def spoken_until(self) -> float:
        """When all that was said will have been spoken."""
        return self.began_to_speak + self.spoken_tokens / self.rate if self.rate else self.began_to_speak


class DeadlineScheduler:
    """The earliest deadline first. speaking_rate: tokens a second, where a call brings none of its own."""

    def __init__(self, chunk_tokens: int, pace: Pace | None = None, speaking_rate: float = 3.5) -> None:
        self.chunk_tokens = chunk_tokens
        self._pace = pace or Pace()
        self._speaking_rate = speaking_rate
        self._orders: dict[str, _Order] = {}

    def expect(self, session: str, deadline: float, *, aside: bool = False, rate: float = 0.0) -> None:
        now = time.monotonic()
        self._orders[session] = _Order(deadline, aside, rate or self._speaking_rate, now, now)

    def spoke(self, session: str, tokens: int, clauses: bool) -> None:
        order = self._order(session)
        if clauses:
            order.began_to_speak = order.began_to_speak or time.monotonic()
            order.spoken_tokens = tokens

    def forget(self, session: str) -> None:
        self._orders.pop(session, None)

    def before(self, engine: Engine, session: Session) -> list[Session]:
        now = time.monotonic()
        mine = self._due(session, now)
        others = (other for other in engine.sessions.values() if other is not session and has_work(other))
        return [other for other in others if self._waits(other) and self._due(other, now) < mine]

    def plan(self, engine: Engine) -> list[Work]:
        now = time.monotonic()
        due = {session: self._due(session, now) for session in engine.sessions.values() if has_work(session)}
        if not due:
            return []
        earliest_first = sorted(due, key=due.__getitem__)
        waiting = any(self._waits(session) for session in earliest_first)
        plan = self._speakers([s for s in earliest_first if _decodes(s)], due, now, waiting)
        readers = [s for s in earliest_first if not _decodes(s)]
        if waiting:
            readers = [s for s in readers if self._waits(s) or (due[s] < now and not _is_ahead(s))]
        plan += self._readers(readers, due, len(plan), now)
        for work in plan:
            self._order(work.session.name).since = now
        return plan

    def _speakers(self, speakers: list[Session], due: dict[Session, float], now: float, waiting: bool) -> list[Work]:
        """Replies that a step goes on with: all that somebody waits for, and of the others as many as do no harm."""
        urgent = [session for session in speakers if self._is_urgent(session, due[session], now)]
        others = [session for session in speakers if session not in urgent]
        chosen = [Work(session, self.chunk_tokens) for session in urgent]
        if chosen:
            limit = (CROWD_WAITING if waiting else CROWD) * self._pace.forward(len(chosen), len(chosen))
        elif waiting:
            return []
        else:
            limit = max(LONGEST_STEP_S, ROOMY * self._pace.forward(1, 1))
        for session in others:
            count = len(chosen) + 1
            if count > 1 and self._pace.forward(count, count) > limit:
                break
            chosen.append(Work(session, self.chunk_tokens, urgent=False))
        return chosen

    def _readers(self, readers: list[Session], due: dict[Session, float], speakers: int, now: float) -> list[Work]:
        """Prefill that shares the step of so many speakers: the earliest due first, as much as nobody minds."""
        if speakers:
            alone = self._pace.forward(speakers, speakers)
            limit = max(NOTICED * alone, self._pace.forward(speakers + 1, speakers + SHORT_PROMPT))
        else:
            limit = max(LONGEST_STEP_S, ROOMY * self._pace.forward(1, 1))
        chosen: list[Work] = []
        windows = nodes = speakers
        for session in readers:
            wanted = min(_unread(session), self.chunk_tokens)
            tokens = self._most(wanted, windows + 1, nodes, limit)
            if not chosen:
                tokens = max(tokens, min(wanted, SHORT_PROMPT))
            if tokens == 0:
                break
            chosen.append(Work(session, tokens))
            windows, nodes = windows + 1, nodes + tokens
        return chosen

    def _most(self, wanted: int, windows: int, nodes: int, limit: float) -> int:
        """How many of the tokens fit a step of so many seconds."""
        low, high = 0, wanted
        while low < high:
            middle = (low + high + 1) // 2
            if self._pace.forward(windows, nodes + middle) <= limit:
                low = middle
            else:
                high = middle - 1
        return low

    def _due(self, session: Session, now: float) -> float:
        """The monotonic second at which the session's next step should be done."""
        order, turn = self._order(session.name), session.turn
        order.since = order.since or now
        if order.aside:
            return order.since + ASIDE_S
        if turn is None:
            return order.since + PREFILL_S
        if turn.hold is not None:
            return order.since + AHEAD_S
        if order.began_to_speak:
            return order.spoken_until - LEAD_S
        # What is long cannot be there at once: a short one that is asked meanwhile need not wait for it.
        due = order.asked + CLAUSE_S + self._pace.prefill(max(0, session.num_pending - 1), self.chunk_tokens)
        return min(due, order.deadline) if order.deadline else due

    def _waits(self, session: Session) -> bool:
        """Whether a caller waits for the reply's first clause."""
        turn, order = session.turn, self._order(session.name)
        return turn is not None and turn.hold is None and not order.aside and not order.began_to_speak

    def _is_urgent(self, session: Session, due: float, now: float) -> bool:
        """Whether what the session's step gains is wanted now; a reply made ahead never is."""
        if session.turn is None or _is_ahead(session):
            return False
        order = self._order(session.name)
        speaks = order.began_to_speak and not order.aside
        return due < now or self._waits(session) or bool(speaks and order.spoken_until - now < COMFORT_S)

    def _order(self, session: str) -> _Order:
        return self._orders.setdefault(session, _Order(rate=self._speaking_rate))


class ArrivalScheduler:
    """First come, first served: replies that are being made share every step, and prefill has a budget of
    ``chunk_tokens`` a step in the order in which it was asked for. What continuous batching does without deadlines;
    here to be compared with.
    """

    def __init__(self, chunk_tokens: int) -> None:
        self.chunk_tokens = chunk_tokens
        self._asked: dict[str, float] = {}

    def expect(self, session: str, deadline: float, *, aside: bool = False, rate: float = 0.0) -> None:
        self._asked[session] = time.monotonic()

    def spoke(self, session: str, tokens: int, clauses: bool) -> None:
        pass

    def forget(self, session: str) -> None:
        self._asked.pop(session, None)

    def before(self, engine: Engine, session: Session) -> list[Session]:
        mine = self._since(session)
        others = (other for other in engine.sessions.values() if other is not session and has_work(other))
        return [other for other in others if not _decodes(other) and self._since(other) < mine]

    def plan(self, engine: Engine) -> list[Work]:
        working = sorted((s for s in engine.sessions.values() if has_work(s)), key=self._since)
        plan = [Work(session, 1) for session in working if _decodes(session)]
        room = self.chunk_tokens
        for session in working:
            if room and not _decodes(session):
                tokens = min(_unread(session), room)
                plan.append(Work(session, tokens))
                room -= tokens
        return plan

    def _since(self, session: Session) -> float:
        return self._asked.setdefault(session.name, time.monotonic())


def _decodes(session: Session) -> bool:
    """Whether the session's next step chooses a token rather than reads given ones."""
    return session.turn is not None and session.num_pending <= 1


def _is_ahead(session: Session) -> bool:
    """Whether the session's reply was not asked for yet."""
    return session.turn is not None and session.turn.hold is not None


def _unread(session: Session) -> int:
    """Given tokens that the session's steps have still to read."""
    return session.num_pending - (session.turn is None)
