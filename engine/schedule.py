"""What comes next, and what shares a step with it. Knows deadlines, the pace of steps and the playback clock.

Every piece of work has a moment at which it is due, and the earliest comes first:

- a turn that was committed, until its caller has a first clause: as soon as it is asked;
- the rest of the reply: when what was said of it will have been spoken;
- prefill of what is being heard: soon enough for the final that will ask for it;
- what is generated aside: once in a while, so that it comes to its end.

A moment that has passed lies the further back the longer something waits, and what is ``LATE_S`` behind it has a small
part of the next step whoever else waits, so nothing of that starves. What is read for a reply that is made ahead counts
as heard, and is wanted whatever becomes of that reply, which shares the steps of callers who wait only where these have
little to read, and until it has a first clause: its own caller will wait for that in a moment.
What is due is served together, as long as the step does not become so long that the next caller who commits a turn
would have to wait for it, and a long prompt is cut into chunks that the others hardly notice.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Protocol

from engine.engine import Engine, Work
from engine.pace import Pace
from engine.playback import Clause, PlaybackClock
from engine.session import Session

CLAUSE_S = 0.1
"""From being asked, by when a first clause is wanted where nobody gave a deadline."""
PREFILL_S = 0.2
HEARD_S = 2.0
"""Of ``SHORT_PROMPT`` tokens and less that are heard: a final finds little more to read for their lateness, and what is
heard meanwhile is read with them, or replaces them.
"""
AHEAD_S = 0.3
"""A final follows an eager end after a third of a second."""
ASIDE_S = 1.0
LEAD_S = 0.5
"""A clause that the synthesiser must have so long before it is spoken."""
COMFORT_S = 2.0
"""With so much left to be spoken nobody waits for a reply's next tokens, and one that is made ahead stands still where
there are other calls: every third caller speaks on (331 of 907 eager ends in ``evals/calls``), and then it was made in
vain. A tool call behind so much speech is written while that is spoken.
"""
LONGEST_STEP_S = 0.05
"""Where nobody waits, whoever comes next is not to wait for longer, or for ``ROOMY`` plain steps if that is more."""
ROOMY = 3.0
LATE_S = 1.0
"""What is so far behind has up to ``SHORT_PROMPT`` tokens read however many others wait: a step, one prompt that a
caller waits for and one of what is heard, or asked ahead or aside.
"""
CROWD = 1.5
"""Times that those with a lead may lengthen a step of those without; ``CROWD_WAITING`` of those without a clause."""
CROWD_WAITING = 1.1
NOTICED = 1.4
"""Times that prefill may lengthen a step that others speak in, if it is longer than ``SHORT_PROMPT`` tokens."""
SHORT_PROMPT = 32
_SLOWEST, _FASTEST = 0.5, 2.5
"""Of the usual speaking rate: what is measured beyond says more of how playback was reported than of a voice."""


class Scheduler(Protocol):
    """Plans one step at a time over an engine's sessions."""

    chunk_tokens: int
    """Most tokens of one prefill step."""

    def heard(self, session: Session) -> None:
        """The session's log was changed, and nobody has asked for a reply to it yet."""
        ...

    def expect(self, session: str, deadline: float, *, aside: bool = False, rate: float = 0.0) -> None:
        """A reply was asked for whose first token is wanted by ``deadline`` (monotonic seconds; 0: at once).

        aside: no caller waits for any of it. rate: tokens of it that are spoken in a second; 0 where nobody knows.
        """
        ...

    def spoke(self, session: str, tokens: int) -> Clause:
        """A clause of the reply has ended, and it has so many tokens by now; how it came."""
        ...

    def served(self, session: str) -> None:
        """A step has done something for the session: what was planned may yet have found no pages."""
        ...

    def forget(self, session: str) -> None: ...

    def voices(self, making: Container[str]) -> tuple[int, float]:
        """How many voices speak, and how many tokens a second each, in the mean: of the sessions whose replies are
        being made for a caller, and of those whose latest one has not been spoken to its end.
        """
        ...

    def expected(self, engine: Engine, session: Session) -> float:
        """Seconds until a reply that was just asked for will have its first token."""
        ...

    def plan(self, engine: Engine) -> list[Work]:
        """What shares the next step; nothing where there is nothing to do."""
        ...


def has_work(session: Session) -> bool:
    """Whether a step would do anything for the session."""
    if (turn := session.turn) is not None:
        return not turn.waits and (turn.awaited or not session.stalled)
    return session.num_pending > 1 and not session.waits_for_pages


@dataclass
class _Order:
    """What is known of a session's latest reply, or of what is heard. Times are monotonic seconds; 0 for what has not
    come.

    since: when it was first heard or asked, or last served. playback: of the reply; None where none was asked.
    first_due: when its first clause was due, as the first plan had it.
    """

    deadline: float = 0.0
    aside: bool = False
    asked: float = 0.0
    since: float = 0.0
    playback: PlaybackClock | None = None
    first_due: float = 0.0

    @property
    def speaks(self) -> bool:
        """Whether a clause of the reply was said."""
        return self.playback is not None and self.playback.speaks

    @property
    def spoken_until(self) -> float:
        """When all that was said will have been spoken."""
        return 0.0 if self.playback is None else self.playback.spoken_until


class DeadlineScheduler:
    """The earliest deadline first. speaking_rate: tokens a second, where a call brings none of its own."""

    def __init__(self, chunk_tokens: int, speaking_rate: float = 3.5) -> None:
        self.chunk_tokens = chunk_tokens
        self._speaking_rate = speaking_rate
        self._orders: dict[str, _Order] = {}

    def heard(self, session: Session) -> None:
        known = self._orders.get(session.name)
        waits = known is not None and session.num_pending > 1
        self._orders[session.name] = _Order(since=known.since if known is not None and waits else time.monotonic())

    def expect(self, session: str, deadline: float, *, aside: bool = False, rate: float = 0.0) -> None:
        now, usual = time.monotonic(), self._speaking_rate
        rate = min(max(rate, usual * _SLOWEST), usual * _FASTEST) if rate > 0.0 else usual
        # A caller who pauses again and again asks ahead each time: that makes what is read for it none the younger.
        since = now if (known := self._orders.get(session)) is None else known.since
        self._orders[session] = _Order(deadline, aside, now, since, PlaybackClock(rate))

    def spoke(self, session: str, tokens: int) -> Clause:
        order, now = self._orders.get(session), time.monotonic()
        if order is None or order.playback is None:
            return Clause()
        due = order.spoken_until - LEAD_S if order.speaks else order.first_due
        silence = order.playback.spoke(tokens, now)
        others = len(self._orders) > 1
        return Clause(0.0 < due < now, silence, others and order.playback.speech_s >= COMFORT_S)

    def served(self, session: str) -> None:
        if (order := self._orders.get(session)) is not None:
            order.since = time.monotonic()

    def forget(self, session: str) -> None:
        self._orders.pop(session, None)

    def voices(self, making: Container[str]) -> tuple[int, float]:
        replies = {name: order.playback for name, order in self._orders.items() if order.playback and not order.aside}
        return voices_of(replies, making, self._speaking_rate)

    def expected(self, engine: Engine, session: Session) -> float:
        now, pace = time.monotonic(), engine.pace
        due = self._all_due(engine, now)
        mine = not self._is_brief(session), due.get(session, now)
        waiting = [s for s in due if not decodes(s) and self._waits(s)]
        readers = [s for s in waiting if s is session or (not self._is_brief(s), due[s]) < mine]
        beside = self._is_brief(session)
        speakers = sum(decodes(s) and (self._is_urgent(s, due[s], now) or (beside and self._hurries(s))) for s in due)
        tokens = sum(session.num_unread for session in readers)
        if not tokens:
            return pace.forward(speakers, speakers)
        limit = self._limit(pace, speakers, speakers)
        chunk = self._most(pace, min(tokens, self.chunk_tokens), speakers + 1, speakers, limit)
        chunk = max(chunk, min(tokens, SHORT_PROMPT))
        whole, rest = divmod(tokens, chunk)
        seconds = whole * pace.forward(speakers + 1, speakers + chunk)
        return seconds + (pace.forward(speakers + 1, speakers + rest) if rest else 0.0)

    def plan(self, engine: Engine) -> list[Work]:
        now = time.monotonic()
        due = self._all_due(engine, now)
        if not due:
            return []
        earliest_first = sorted(due, key=due.__getitem__)
        waiting = [s for s in earliest_first if self._waits(s)]
        plan = self._speakers(engine.pace, [s for s in earliest_first if decodes(s)], due, now, waiting)
        readers = [s for s in earliest_first if not decodes(s)]
        if plan or waiting:
            readers = [s for s in readers if not self._can_wait(s, due[s], now, bool(waiting))]
        # Whoever waits and has little to read does not wait for a step that a long prompt has filled before.
        briefly_first = sorted(readers, key=lambda s: (self._is_brief(s), self._waits(s)), reverse=True)
        reading = self._readers(engine.pace, briefly_first, len(plan))
        late = [s for s in readers if waiting and due[s] < now - LATE_S]
        for waits in (True, False):
            latest = next((s for s in late if self._waits(s) == waits), None)
            if latest is not None and all(work.session is not latest for work in reading):
                reading.append(Work(latest, min(SHORT_PROMPT, self.chunk_tokens)))
        return plan + reading

    def _all_due(self, engine: Engine, now: float) -> dict[Session, float]:
        """When the next step of every session that has work is due."""
        return {s: self._due(engine.pace, s, now) for s in engine.sessions.values() if has_work(s)}

    def _speakers(
        self, pace: Pace, speakers: list[Session], due: dict[Session, float], now: float, waiting: list[Session]
    ) -> list[Work]:
        """Replies that a step goes on with: all that somebody waits for, and of the others as many as do no harm, those
        whose callers will wait in a moment before those with a lead.
        """
        urgent: list[Session] = []
        hurrying: list[Session] = []
        leading: list[Session] = []
        for session in speakers:
            hurries = hurrying if self._hurries(session) else leading
            (urgent if self._is_urgent(session, due[session], now) else hurries).append(session)
        chosen = [Work(session, self.chunk_tokens) for session in urgent]
        with_lead, with_hurry = self._crowd(pace, len(urgent), waiting)
        for group, limit, wanted in ((hurrying, with_hurry, True), (leading, with_lead, False)):
            for session in group:
                count = len(chosen) + 1
                if limit == 0.0 or (count > 1 and pace.forward(count, count) > limit):
                    break
                chosen.append(Work(session, self.chunk_tokens, urgent=wanted))
        return chosen

    def _crowd(self, pace: Pace, urgent: int, waiting: list[Session]) -> tuple[float, float]:
        """Seconds that a step of so many urgent replies may take with replies that have a lead, and with those that
        hurry; 0 for none of them.
        """
        if not urgent and not waiting:
            return (self._limit(pace, 0, 0),) * 2
        step = pace.forward(max(1, urgent), max(1, urgent))
        leading = (CROWD_WAITING if waiting else CROWD) * step if urgent else 0.0
        # Beside somebody's long prompt every step of others is one of many.
        brief = all(decodes(session) or self._is_brief(session) for session in waiting)
        return leading, CROWD * step if brief else leading

    def _readers(self, pace: Pace, readers: list[Session], speakers: int) -> list[Work]:
        """Prefill that shares the step of so many speakers, in the order given, as much as nobody minds."""
        limit = self._limit(pace, speakers, speakers)
        chosen: list[Work] = []
        windows = nodes = speakers
        for session in readers:
            wanted = min(session.num_unread, self.chunk_tokens)
            tokens = self._most(pace, wanted, windows + 1, nodes, limit)
            if not chosen:
                tokens = max(tokens, min(wanted, SHORT_PROMPT))
            if tokens < min(wanted, SHORT_PROMPT):  # a little less each step would keep it from being late, and last
                break
            brings = tokens == session.num_unread and self._replies(session)
            if brings and not self._waits(session):
                alone = self._limit(pace, speakers + 1, speakers + tokens)
                if pace.forward(windows + 1, nodes + tokens) > alone:
                    continue  # its token comes in a shorter step
            chosen.append(Work(session, tokens))
            windows, nodes = windows + 1, nodes + tokens
            if brings:
                limit = min(limit, self._limit(pace, windows, nodes))
        return chosen

    def _limit(self, pace: Pace, windows: int, nodes: int) -> float:
        """Seconds that a step may take which somebody waits for as it is, if something is read in it besides."""
        if not windows:
            return max(LONGEST_STEP_S, ROOMY * pace.forward(1, 1))
        short = pace.forward(windows + 1, nodes + SHORT_PROMPT)
        return max(NOTICED * pace.forward(windows, nodes), short)

    def _most(self, pace: Pace, wanted: int, windows: int, nodes: int, limit: float) -> int:
        """How many of the tokens fit a step of so many seconds."""
        low, high = 0, wanted
        while low < high:
            middle = (low + high + 1) // 2
            if pace.forward(windows, nodes + middle) <= limit:
                low = middle
            else:
                high = middle - 1
        return low

    def _due(self, pace: Pace, session: Session, now: float) -> float:
        """The monotonic second at which the session's next step should be done."""
        order, turn = self._orders.get(session.name), session.turn
        if order is None:
            self._orders[session.name] = order = _Order(since=now)
        if order.aside:
            return order.since + ASIDE_S
        if turn is None:
            return order.since + (HEARD_S if session.num_unread <= SHORT_PROMPT else PREFILL_S)
        if turn.hold is not None:
            return order.since + (CLAUSE_S if self._hurries(session) else AHEAD_S)
        if order.speaks:
            return order.spoken_until - LEAD_S
        # What is long cannot be there at once: a short one that is asked meanwhile need not wait for it.
        due = order.asked + CLAUSE_S + pace.prefill(max(0, session.num_pending - 1), self.chunk_tokens)
        due = min(due, order.deadline) if order.deadline else due
        order.first_due = order.first_due or due  # what is left of it shrinks with what is read
        return due

    def _waits(self, session: Session) -> bool:
        """Whether a caller waits for the reply's first clause."""
        if session.turn is None or _is_ahead(session):
            return False
        order = self._orders.get(session.name)
        return order is None or not (order.aside or order.speaks)

    def _hurries(self, session: Session) -> bool:
        """Whether the session's reply is made ahead and has no clause yet: if its caller was heard out, they will wait
        for one in a moment.
        """
        order = self._orders.get(session.name)
        begins = order is not None and not (order.aside or order.speaks)
        return begins and _is_ahead(session) and session.num_unread <= SHORT_PROMPT

    def _can_wait(self, session: Session, due: float, now: float, waiting: bool) -> bool:
        """Whether what is read for the session yields to those who speak, until it is overdue: all that is heard where
        a caller waits, else what is so little that it is better read with what comes next.
        """
        if due < now or self._hurries(session) or self._is_urgent(session, due, now):
            return False
        return waiting or (session.turn is None and session.num_unread <= SHORT_PROMPT)

    def _replies(self, session: Session) -> bool:
        """Whether the session makes a reply for a caller, who may not have asked for it yet."""
        order = self._orders.get(session.name)
        return session.turn is not None and not (order is not None and order.aside)

    def _is_brief(self, session: Session) -> bool:
        """Whether one short reading brings what a caller waits for."""
        return self._waits(session) and session.num_unread <= SHORT_PROMPT

    def _is_urgent(self, session: Session, due: float, now: float) -> bool:
        """Whether what the session's step gains is wanted now; a reply made ahead never is."""
        if session.turn is None or _is_ahead(session):
            return False
        order = self._orders.get(session.name)
        soon = order is not None and order.speaks and not order.aside and order.spoken_until - now < COMFORT_S
        return due < now or soon or self._waits(session)


def voices_of(replies: Mapping[str, PlaybackClock], making: Container[str], usual: float) -> tuple[int, float]:
    """As ``Scheduler.voices``. usual: rate where nobody speaks."""
    now = time.monotonic()
    rates = [clock.rate for name, clock in replies.items() if name in making or clock.spoken_until > now]
    return len(rates), sum(rates) / len(rates) if rates else usual


def decodes(session: Session) -> bool:
    """Whether the session's next step chooses a token rather than reads given ones."""
    return session.turn is not None and session.num_pending <= 1


def _is_ahead(session: Session) -> bool:
    """Whether the session's reply was not asked for yet."""
    return session.turn is not None and session.turn.hold is not None
