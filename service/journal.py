"""What has changed of a call since it was last written down. Reads all of a call's parts, and changes none.

Most events are more text of one reply: those cost a comparison of a few numbers. Whatever else has changed is written
anew, part by part.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from service.call_state import Delta, Growth, Opening, ReplyState, SegmentState, Status
from service.history import History
from service.reply import Reply, Segment
from service.reporter import Reporter
from service.side_questions import SideQuestions
from service.terms import Terms
from service.turns import Turns


class Journal:
    """Of one call. Its first delta is the whole call."""

    def __init__(
        self,
        opening: Opening,
        terms: Terms,
        history: History,
        turns: Turns,
        reporter: Reporter,
        questions: SideQuestions,
    ) -> None:
        self._opening = opening
        self._terms = terms
        self._history = history
        self._turns = turns
        self._reporter = reporter
        self._questions = questions
        self._begun = False
        self._status: Status | None = None
        self._mark: tuple[Any, ...] = ()
        self._grown = (0, 0, 0)
        self._taken = self._answered = self._asked = 0

    def whole(self, client_seq: int) -> Delta:
        """The whole call as it is now. What ``delta`` gives next is not touched."""
        replies = self._replies()
        return Delta(
            client_seq,
            self._opening,
            self._history.written,
            self._history.whole_log(),
            self._current_status(),
            tuple(map(self._reply_state, replies)),
            None,
            dict(self._turns.taken),
            tuple(self._turns.answered),
            tuple(self._questions.asked),
        )

    def begin(self, client_seq: int) -> Delta:
        """The whole call, which the next ``delta`` starts from."""
        self._begun = True
        self._history.take_entry()
        found, replies = self.whole(client_seq), self._replies()
        self._status, self._mark, self._grown = found.status, _mark(replies, self._reporter), _grown(replies)
        self._count()
        return found

    def delta(self, client_seq: int) -> Delta:
        """What has changed since the last one. client_seq: the last client event that was wholly handled."""
        if not self._begun:
            return self.begin(client_seq)
        written, log = self._history.take_entry()
        status = self._current_status()
        replies = self._replies()
        mark, grown = _mark(replies, self._reporter), _grown(replies)
        states, growth = None, None
        if mark != self._mark:
            states = tuple(map(self._reply_state, replies))
        elif grown != self._grown:
            growth = _growth(replies[0].current, self._grown)
        turns, questions = self._turns, self._questions
        found = Delta(
            client_seq,
            None,
            written,
            log,
            None if status == self._status else status,
            states,
            growth,
            dict(islice(turns.taken.items(), self._taken, None)),
            _since(turns.answered, self._answered),
            _since(questions.asked, self._asked),
        )
        self._status, self._mark, self._grown = status, mark, grown
        self._count()
        return found

    def _count(self) -> None:
        self._taken, self._answered = len(self._turns.taken), len(self._turns.answered)
        self._asked = len(self._questions.asked)

    def _replies(self) -> list[Reply]:
        """Those that are still of interest, the newest first."""
        newest = self._turns.reply
        if newest is None:
            return []
        return [newest, *(reply for reply in self._reporter.open if reply is not newest)]

    def _current_status(self) -> Status:
        turns, terms = self._turns, self._terms
        version, submissions, made_ids, may_call = self._history.counts
        return Status(
            version,
            submissions,
            made_ids,
            may_call,
            self._reporter.announced,
            turns.tool_calls,
            turns.last_turn,
            turns.replies,
            terms.generation,
            dict(terms.tools),
            turns.waiting,
            self._questions.open,
            turns.late,
        )

    def _reply_state(self, reply: Reply) -> ReplyState:
        return ReplyState(
            turn_id=reply.turn_id,
            begin=reply.begin,
            before=reply.before,
            generation=reply.generation,
            source=reply.source,
            model="" if reply.answerer is None else reply.answerer.resident.name,
            phase=reply.phase,
            segments=tuple(map(_segment_state, reply.segments)),
            played=reply.played,
            words=reply.hearing.words,
            cut=reply.cut,
            kept=reply.kept,
            cut_by=reply.cut_by,
            item_ids=reply.item_ids,
            settled=reply.settled,
            ending=reply.ending,
            told=reply not in self._reporter.open,
        )


def _segment_state(segment: Segment) -> SegmentState:
    return SegmentState(
        number=segment.number,
        start=segment.start,
        item_id=segment.item_id,
        foreign=segment.foreign,
        may_call=segment.may_call,
        tokens=tuple(segment.tokens),
        text=segment.text,
        clause_ends=segment.clause_ends,
        calls=tuple(segment.calls),
        malformed_calls=segment.malformed_calls,
        results=tuple(segment.results.values()),
        wants_reply=segment.wants_reply,
        standing_in=tuple(sorted(segment.standing_in)),
    )


def _mark(replies: list[Reply], reporter: Reporter) -> tuple[Any, ...]:
    """What differs when anything of the replies has changed, but for how much of the newest generation there is."""
    open_ = reporter.open
    return tuple(
        (
            reply.turn_id,
            reply.begin,
            reply.before,
            reply.source,
            reply.answerer,
            reply.phase,
            reply.played,
            reply.hearing.words,
            reply.cut,
            reply.kept,
            reply.cut_by,
            reply.item_ids,
            reply.settled,
            reply.ending,
            reply in open_,
            tuple(map(_segment_mark, reply.segments)),
        )
        for reply in replies
    )


def _segment_mark(segment: Segment) -> tuple[Any, ...]:
    results = tuple(segment.results.values()), len(segment.standing_in)
    told = tuple(call.id for call in segment.calls), segment.malformed_calls
    return segment.number, segment.item_id, *told, *results, segment.wants_reply


def _grown(replies: list[Reply]) -> tuple[int, int, int]:
    """(tokens, code points, clause ends) of the newest generation."""
    if not replies or not replies[0].segments:
        return 0, 0, 0
    segment = replies[0].current
    return len(segment.tokens), len(segment.text), segment.clause_ends


def _growth(segment: Segment, before: tuple[int, int, int]) -> Growth:
    """``before``: as ``_grown`` gave it. It may have shrunk since, by a stop string that was taken back."""
    tokens, text = min(before[0], len(segment.tokens)), min(before[1], len(segment.text))
    return Growth(tokens, tuple(segment.tokens[tokens:]), text, segment.text[text:], segment.clause_ends)


def _since(names: Iterable[Any], count: int) -> tuple[Any, ...]:
    return tuple(islice(names, count, None))
