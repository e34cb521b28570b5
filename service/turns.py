"""The turns of one call: which one it is, what is heard and what overtakes what.

Knows no transport and no numbering of events; how a reply is made is ``service.speaking``'s, what the history holds
``service.history``'s, and what is told of turns ``service.reporter``'s.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from engine import records
from service import client_events
from service.admission import AskAside
from service.call_services import Later
from service.call_state import CallState
from service.client_events import Final, Respond, Say
from service.compaction import Compaction, Moved
from service.editing import Editing
from service.history import History
from service.items import ToolResultItem
from service.listening import Hypothesis, Listening
from service.options import Fallback, TurnOptions
from service.problems import Problem, Reason, engine_problem
from service.reply import Phase, Reply
from service.reporter import Reporter
from service.server_events import AnswerSource, HistoryCause, TurnEnd
from service.speaking import Speaking
from service.speaking_rate import SpeakingRate
from service.telemetry import TurnRecord
from service.terms import Terms

log = logging.getLogger(__name__)

T = TypeVar("T")


class Turns:
    """The turns of one open call.

    later: runs something after a time. fallbacks: the chain for late first tokens; serving: whether the engine is
    there. admit: raises Problem where there is no room for what is generated aside. on_lost: called with what ended
    the call when the engine's log can no longer be known to be the history.
    """

    def __init__(
        self,
        session: str,
        terms: Terms,
        history: History,
        reporter: Reporter,
        later: Later,
        fallbacks: Sequence[Fallback],
        serving: Callable[[], bool],
        admit: AskAside,
        on_lost: Callable[[Problem], None],
    ) -> None:
        self._session = session
        self._terms = terms
        self._history = history
        self._reporter = reporter
        self._on_lost = on_lost
        self._rate = SpeakingRate()
        self._listening = Listening(
            terms, history, reporter, later, self._may_listen, self._may_answer_ahead, self._rate
        )
        self._reply: Reply | None = None
        self._taken: dict[int, str] = {}
        self._editing = Editing(terms, history, reporter.history_changed, reporter.update_refused, self._put_late)
        self._speaking = Speaking(
            session,
            terms,
            history,
            reporter,
            later,
            fallbacks,
            serving,
            self._over,
            self._settle,
            self._put_late_results,
            self._with_room,
            on_lost,
        )
        self._compaction = Compaction(terms, history, reporter, admit, self._summarised)
        self._closed = False
        self._replies = 0
        self.last_turn = 0

    @property
    def reply(self) -> Reply | None:
        """The newest turn's."""
        return self._reply

    @property
    def replies(self) -> int:
        """How many were asked for."""
        return self._replies

    @property
    def taken(self) -> Mapping[int, str]:
        """What each turn was asked for with, by its number, in order."""
        return self._taken

    @property
    def answered(self) -> Mapping[str, None]:
        """Tool calls that have their results, in order."""
        return self._speaking.tools.ids_answered

    @property
    def tool_calls(self) -> int:
        """How many were made."""
        return self._speaking.tools.made

    @property
    def tokens_aside(self) -> int:
        """Of what is generated beside the call's own."""
        return self._compaction.tokens

    @property
    def waiting(self) -> tuple[client_events.Update, ...]:
        """What is to come into force when no turn is in progress."""
        return self._editing.waiting

    @property
    def late(self) -> tuple[ToolResultItem, ...]:
        """Results that are to take their place in the history when no turn is in progress."""
        return self._editing.late

    def start(self, seed: int) -> None:
        """Open the call's session in the engine."""
        self._history.open(seed, self._terms.generation, self._engine_failed)

    def restore(self, state: CallState, replies: Sequence[Reply]) -> None:
        """As they were in a call that was written down, whose replies these are, the newest first. Raises Problem where
        they cannot be.
        """
        status, newest = state.status, replies[0] if replies else None
        self._reply, self._replies, self.last_turn = newest, status.replies, status.last_turn
        self._taken = dict(state.taken)
        for update in status.waiting:
            self._editing.update(update)
        for result in status.late:
            self._editing.put_late(result)
        self._speaking.tools.restore(status.tool_calls, state.answered, () if newest is None else newest.outstanding)

    def go_on(self) -> None:
        """With what was being done in a call that was written down."""
        if self._reply is not None:
            self._speaking.restore(self._reply)
        if self._reply is None or self._reply.phase is Phase.OVER:
            self._settle()

    def close(self, error: str) -> None:
        """The call is over; ``error``: why, or empty. Whatever is being generated stops."""
        self._closed = True
        self._listening.abandon()
        self._speaking.close()
        self._compaction.close()
        self._history.close()
        self._reporter.close(error)

    def hold(self, held: bool) -> None:
        """Whether replies stand still, for the client does not read them."""
        self._history.hold(held)

    # From the client

    def speech_started(self) -> None:
        """The caller makes a sound: there will be a turn to hear."""
        self._history.wake()

    def hear(self, event: client_events.Partial) -> None:
        """Prefill what the recogniser has so far. While a reply is being made it waits for the end of that."""
        if self._is_heard(event, "partial"):
            self._terms.check_input(event.text, "partial.text")
            self._listening.suppose(event)

    def eager(self, event: client_events.EagerEndOfTurn) -> None:
        """The caller has probably finished: make the reply ahead, as soon as nothing of the last one is open."""
        if self._is_heard(event, "eager_end_of_turn"):
            self._terms.check_input(event.text, "eager_end_of_turn.text")
            self._editing.terms.for_turn(event.options, "eager_end_of_turn")
            self._listening.suppose(event)

    def resume(self, event: client_events.TurnResumed) -> None:
        """The caller went on after an eager end of turn."""
        self._listening.resume(event)

    def final(self, event: Final) -> None:
        """The caller's turn is complete: reply to it."""
        if self._is_new(event, "final"):
            self._terms.check_input(event.text, "final.text")
            self._ask(event, event.options, "final")

    def respond(self, event: Respond) -> None:
        """Reply to the history as it stands."""
        if self._is_new(event, "respond"):
            self._ask(event, event.options, "respond")

    def say(self, event: Say) -> None:
        """Given text becomes the assistant's: a turn that needs no generation and is interrupted like any other."""
        if not self._is_new(event, "say"):
            return
        self._terms.check_input(event.text, "say.text")
        now = time.monotonic()
        self._listening.abandon()
        self._overtake()
        put = partial(self._history.put_said, event.text, event.item_id)
        try:
            segment = self._with_room(put, lambda: self._history.said_tokens(event.text))
        except Problem:
            self._history.flush()  # what was being said is overtaken all the same
            raise
        record = TurnRecord(event.turn_id, now, event.traceparent, event.tracestate)
        before = segment.start - self._history.prompt_tokens
        reply = Reply(event.turn_id, before, before, self._terms.generation, record, source=AnswerSource.GIVEN_TEXT)
        reply.segments.append(segment)
        self._begin(event, reply)
        self._history.flush()
        self._speaking.end(reply)

    def interrupt(self, event: client_events.Interrupt) -> None:
        """The caller spoke over a turn: the last one, for what came before it is history.

        They have done so also where nobody can tell from the event what they heard: then it is cut as far as it was
        certainly played, before that Problem is raised.
        """
        reply = self._reply
        if reply is None or reply.turn_id != event.turn_id:
            if event.turn_id > self.last_turn:
                raise Problem(Reason.UNKNOWN_TURN, f"there is no turn {event.turn_id} yet", field="interrupt.turn_id")
            raise self._stale("interrupt.turn_id")
        if reply.settled:
            self._reporter.interrupted(reply)
            return
        unusable = None
        try:
            chars = self._heard_chars(reply, event.heard, "interrupt.heard")
        except Problem as problem:
            chars, unusable = (reply.played or 0) if reply.cut is None else reply.cut, problem
        self._listening.abandon()
        self._cut(reply, chars)
        self._settle()
        if unusable is not None:
            raise unusable

    def playback(self, event: client_events.Playback) -> None:
        """How far the newest turn was played. It never goes back."""
        reply = self._reply
        if reply is not None and reply.turn_id == event.turn_id:
            was_open = reply.is_open
            heard = self._heard_chars(reply, event.heard, "playback_progress.heard")
            reply.played = max(reply.played or 0, heard)
            if was_open and not reply.is_open:  # heard to its end: what is made ahead now is not made in vain
                self._listening.reconsider()
            if not any(segment.calls or segment.foreign for segment in reply.segments):  # all tokens are its text's
                now = time.monotonic()
                self._rate.played(reply.turn_id, reply.played, len(reply.text), reply.output_tokens, now)

    def _heard_chars(self, reply: Reply, heard: client_events.Heard | None, path: str) -> int:
        """As of ``Reply``. Raises Problem also for more than an event may have: to compare it would take long."""
        if heard is not None:
            self._terms.check_heard(heard, path)
        return reply.heard_chars(heard, path)

    def tool_result(self, event: client_events.ToolResult) -> None:
        """What a tool gave. With the last result that is waited for, the reply goes on."""
        if event.turn_id < self.last_turn or self._speaking.is_answered(event.call_id):
            self._late_result(event)
            return
        reply = self._reply if self._reply is not None and self._reply.turn_id == event.turn_id else None
        segments = [] if reply is None else reply.segments
        made = [(segment, call) for segment in segments for call in segment.calls if call.call_id == event.call_id]
        if reply is None or not made:
            message = f"turn {event.turn_id} has no call {event.call_id}"
            raise Problem(Reason.UNKNOWN_TOOL_CALL, message, field="tool_result.call_id")
        if reply.settled:
            self._late_result(event)
            return
        self._terms.check_input(event.output, "tool_result.output")
        segment, call = made[0]
        result = self._history.results.of(call, event.output, is_error=event.is_error, item_id=event.item_id)
        self._speaking.take_result(reply, segment, result, wants_reply=not event.no_reply)

    def _late_result(self, event: client_events.ToolResult) -> None:
        """Nobody waits for it any more, but the model must not go on believing that nothing has come of its call."""
        call_id, history = event.call_id, self._history.results.standing_in(event.call_id)
        segments = [] if self._reply is None or self._reply.settled else self._reply.segments
        segment = next((segment for segment in segments if segment.stands_in_for(call_id)), None)
        standing = history or (None if segment is None else segment.results[call_id])
        if standing is None or self._editing.knows(call_id):
            if self._speaking.is_answered(call_id) or self._history.results.has(call_id):
                return
            if event.turn_id < self.last_turn:
                raise self._stale("tool_result.turn_id")
            message = f"the history has no call {call_id} any more"
            raise Problem(Reason.UNKNOWN_TOOL_CALL, message, field="tool_result.call_id")
        self._terms.check_input(event.output, "tool_result.output")
        self._speaking.tools.answered(call_id)
        result = replace(standing, id=event.item_id, output=event.output, is_error=event.is_error, stands_in=False)
        if history is None and segment is not None:  # the turn waits for another call, or is still at it
            segment.answer(result)
            return
        self._editing.put_late(result)
        self._listening.abandon()
        if self._reply is None or self._reply.phase is Phase.OVER:
            self._settle()
        elif self._reply.phase is Phase.WAITING:
            self._put_late_results()

    def _put_late_results(self) -> None:
        """The turn waits for its tools: what came of earlier ones is known to what it says next, and prefilled now."""
        if self._editing.late and not self._closed:
            self._move(self._editing.apply_late())
            self._history.flush()

    def _put_late(self, result: ToolResultItem) -> None:
        """The history has a late result: a reply that is cut later must not put back what stood there."""
        for segment in [] if self._reply is None else self._reply.segments:
            if segment.stands_in_for(result.call_id):
                segment.answer(result)

    # Edits

    def update(self, event: client_events.Update) -> None:
        """New instructions, from the next turn on."""
        self._terms.check_input(event.system or "", "update.system_prompt")
        self._editing.update(event)
        self._listening.abandon()
        if self._reply is None or self._reply.phase is Phase.OVER:
            self._settle()

    def items(self, event: client_events.Items) -> None:
        """The conversation as the client sees it. What it has in common with the history stays."""
        self._terms.check_items(event.items, "items.items")
        self._editing.require_version(event)
        event = self._editing.completed(event)
        same = self._editing.agreeing(event)
        if same is None:
            renamed = self._editing.rename(event)
            if self._reply is not None:
                self._reply.rename(renamed)
            return
        reply = self._reply
        if reply is not None:
            event = self._editing.completed(event, self._speaking.given(reply))
        self._editing.require_room(event, same)
        self._listening.abandon()
        if reply is not None:
            if reply.phase is not Phase.OVER:
                self._overtake()  # it was a reply to another conversation, and what the client holds of it counts
                same = min(same, self._history.items_before(reply.before))
            self._speaking.abandon(reply)
            reply.settle(self._history.item_ids(reply), self._editing.left_of(event, same, reply))
        self._editing.replace(event, same)
        self._settle()

    def _settle(self) -> None:
        """No turn is in progress, and the history is another: what has waited for that comes into force, the engine is
        told, and what is being heard is computed behind it.
        """
        self._change()
        self._history.flush()
        self._listening.work()

    def _change(self) -> None:
        """No turn is in progress: what has waited for that comes into force, and what a full context asks for."""
        self._put_into_force()
        if self._reply is None or not self._reply.outstanding:
            self._move(self._compaction.apply())

    def _put_into_force(self) -> None:
        """No turn is in progress: what has waited for that comes into force."""
        self._move(self._editing.apply())

    def _move(self, changes: Iterable[Moved]) -> None:
        """The history before the last reply becomes another."""
        for moved in changes:
            if (reply := self._reply) is not None and not reply.settled:
                reply.begin, reply.before = moved(reply.begin), moved(reply.before)

    def _summarised(self) -> None:
        """A summary is there: it comes into force now, or where somebody speaks when the turn is over."""
        quiet = self._reply is None or (self._reply.phase is Phase.OVER and not self._reply.outstanding)
        if quiet and not self._closed and not self._listening.hears:
            self._move(self._compaction.put_summary())
            self._history.flush()

    # Listening

    def _is_heard(self, event: Hypothesis, name: str) -> bool:
        """Whether a hypothesis is to be taken. Raises Problem where its turn was overtaken."""
        if event.turn_id < self.last_turn:
            raise self._stale(f"{name}.turn_id")
        return event.turn_id != self.last_turn and self._listening.is_newer(event)

    def _may_listen(self) -> bool:
        return not self._closed and (self._reply is None or self._reply.phase is Phase.OVER)

    def _may_answer_ahead(self) -> bool:
        """Whether a turn committed now would find the history as it is, and be answered."""
        reply = self._reply
        if reply is None:
            return self._terms.may_reply(self._replies)
        return not reply.is_open and not reply.outstanding and self._terms.may_reply(self._replies)

    # Turns

    def _is_new(self, event: Final | Respond | Say, name: str) -> bool:
        """Whether this turn is to begin: not where it did already. Raises Problem where it was overtaken before."""
        if self._taken.get(event.turn_id) == _content(event):
            return False
        if event.turn_id == self.last_turn:
            message = f"turn {self.last_turn} has begun with something else"
            raise Problem(Reason.STALE_TURN, message, field=f"{name}.turn_id")
        if event.turn_id < self.last_turn:
            raise self._stale(f"{name}.turn_id")
        return True

    def _stale(self, name: str) -> Problem:
        return Problem(Reason.STALE_TURN, f"turn {self.last_turn} has begun since", field=name)

    def _overtake(self) -> None:
        """A new turn begins: one that is still being made or spoken, or waits for tools, ends as far as heard."""
        reply = self._reply
        if reply is None or reply.settled:
            self._put_into_force()
            return
        abandoned = self._speaking.abandon(reply)
        if reply.is_open:
            self._cut(reply, reply.heard_chars(None))
        elif abandoned and reply.cut is not None and (kept := self._history.put_stand_ins(reply)) is not None:
            self._reporter.history_changed(HistoryCause.TOOL_RESULT, kept)
        reply.item_ids = self._history.item_ids(reply)
        self._put_into_force()

    def _ask(self, event: Final | Respond, options: TurnOptions, name: str) -> None:
        """Put the caller's turn into the history, if there is one, and ask for the reply to it."""
        committed = time.monotonic()
        generation = self._editing.terms.for_turn(options, name)
        self._terms.check_replies(self._replies)
        held = None
        if isinstance(event, Final):
            held = self._listening.take(event, generation)
        else:
            self._listening.abandon()
        self._overtake()
        history = self._history
        try:
            if isinstance(event, Respond):
                begin = self._with_room(history.require_prompt, lambda: history.prompt_tokens)
            elif held is not None:
                begin = history.put_answered(held, event.item_id)
            else:
                put, text = partial(history.put_user, event.text, event.item_id), event.text
                begin = self._with_room(put, lambda: history.turn_tokens(text))
        except Problem:
            self._history.flush()  # what was being said is overtaken all the same
            raise
        record = TurnRecord(event.turn_id, committed, options.traceparent, options.tracestate)
        record.sampling, record.max_tokens = generation.sampling, generation.max_tokens
        record.heard = event.text if isinstance(event, Final) else ""
        deadline = self._terms.deadline(options, committed)
        rate = self._rate.tokens_per_s
        reply = Reply(event.turn_id, begin, self._history.length, generation, record, deadline, rate)
        self._begin(event, reply)
        self._replies += 1
        self._speaking.begin(reply, held)
        if held is not None:
            self._listening.released(held)

    def _with_room(self, put: Callable[[], T], more: Callable[[], int]) -> T:
        """Put something into the history, if need be in place of its oldest turns. more: tokens that it needs. Raises
        Problem, and changes nothing, where it does not fit.
        """
        try:
            return put()
        except Problem:
            version = self._history.version
            self._move(self._compaction.make_room(more()))
            if self._history.version == version:
                raise
            return put()

    def _begin(self, event: Final | Respond | Say, reply: Reply) -> None:
        self._reply = reply
        self._reporter.begin(reply)
        self._taken[reply.turn_id] = _content(event)
        self.last_turn = reply.turn_id
        reply.record.listened = self._listening.end_turn()

    def _cut(self, reply: Reply, chars: int) -> None:
        """The caller spoke over the reply: the history holds what was heard of it. Repeatable, and revisable."""
        phase, reply.phase = reply.phase, Phase.OVER
        if reply.cut is None:
            self._reporter.spoken_over(reply, phase)
        repeated = reply.cut == chars
        reply.cut, reply.kept = chars, self._history.cuts.rewrite(reply, chars)
        self._history.version += not repeated
        self._reporter.interrupted(reply)
        if phase is Phase.WAITING:
            self._reporter.ended(reply, TurnEnd.INTERRUPTED)

    def _over(self, reply: Reply) -> None:
        """The reply has said all it will. What the recogniser has sent meanwhile is prefilled behind it."""
        version = self._history.version
        self._change()
        if self._history.version != version:
            self._history.flush()
        self._listening.work()

    def _engine_failed(self, record: records.Failed) -> None:
        """A command failed that belongs to no generation: the engine's log may not be the history any more."""
        # Its message is the client's: it may quote a schema.
        log.error("engine refused", extra={"session": self._session, "cause": record.reason})
        self._on_lost(engine_problem(record.reason, record.message))


def _content(event: Final | Respond | Say) -> str:
    """What makes two events with the same turn id the same event, in short."""
    content = f"{type(event).__name__} {'' if isinstance(event, Respond) else event.text}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]
