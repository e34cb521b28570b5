"""The turns of one call: what is heard and said, what the engine is asked, and what the history holds of it.

What a dead turn's generation still reports is dropped by the identity of its segment. Knows no transport and no
numbering of events.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from engine import records
from engine.session import Finish
from service import events
from service.config import CallConfig
from service.conversation import Conversation
from service.items import ToolCallItem, ToolResultItem
from service.problems import Problem, Reason, invalid
from service.reply import Phase, Reply, Segment
from service.store import LogEntry, SessionStore
from service.telemetry import CallRecorder, Telemetry, TurnRecord

log = logging.getLogger(__name__)

INTERRUPTED_RESULT = '{"status": "interrupted"}'
"""What the history holds as the result of a tool call that the caller spoke over and whose result never came."""

_ENDS = {Finish.LENGTH.value: events.TurnEnd.LENGTH, Finish.CONTEXT.value: events.TurnEnd.CONTEXT_FULL}


Record = records.Progress | records.Ended | records.Failed
"""What the engine says about one generation."""


class EnginePort(Protocol):
    """What a call needs of ``service.engine_client.EngineClient``."""

    def open(
        self, session: str, tokens: tuple[int, ...], seed: int, on_failed: Callable[[records.Failed], None]
    ) -> None: ...
    def sync(self, session: str, keep: int, tokens: tuple[int, ...]) -> None: ...
    def submit(self, command: records.Submit, sink: Callable[[Record], None]) -> None: ...
    def close(self, session: str) -> None: ...


@dataclass(frozen=True)
class CallServices:
    """What all calls on one model share. model: the name that clients see."""

    engine: EnginePort
    new_conversation: Callable[[events.Open], Conversation]
    store: SessionStore
    telemetry: Telemetry
    config: CallConfig
    model: str
    max_context_tokens: int


class Turns:
    """The turns of one open call.

    emit: sends a server event. on_over: called when a turn has ended. on_lost: called with what ended the call when
    the engine's log can no longer be known to be the history.
    """

    def __init__(
        self,
        services: CallServices,
        session: str,
        opening: events.Open,
        conversation: Conversation,
        recorder: CallRecorder,
        emit: Callable[[events.ServerEvent], int],
        on_over: Callable[[], None],
    ) -> None:
        """Raises Problem for stop tokens that are not in the vocabulary."""
        self._services = services
        self._session = session
        self._conversation = conversation
        self._recorder = recorder
        self._emit = emit
        self._on_over = on_over
        self.on_lost: Callable[[Problem | None], None] = lambda problem: None
        self.limits = _effective(opening.limits, services.config)
        self.generation = self._resolved(opening.generation, events.Generation())
        self._deadline_ms = opening.first_token_deadline_ms
        share = int(services.max_context_tokens * services.config.nearly_full)
        self._announce_at = share if opening.announce_at_tokens is None else opening.announce_at_tokens
        self._reply: Reply | None = None
        self._partial: events.Partial | None = None
        self._closed = False
        self._submissions = 0
        self._replies = 0
        self.last_turn = 0
        self.history_version = 1

    @property
    def generating(self) -> bool:
        return self._reply is not None and self._reply.phase is Phase.GENERATING

    def start(self, seed: int) -> None:
        """Open the call's session in the engine."""
        _, tokens = self._conversation.take_change()
        self._services.engine.open(self._session, tokens, seed, self._engine_failed)
        self._services.store.append(self._session, LogEntry(0, 0, tokens))

    def close(self, error: str) -> None:
        """The call is over; ``error``: why, or empty. Whatever is being generated stops."""
        self._closed = True
        self._services.engine.close(self._session)
        reply = self._reply
        if reply is not None and not reply.reported:
            self._account(reply)
            reply.record.end_reason = "session_closed"
            self._recorder.turn(reply.record)
        self._recorder.end(error)

    # From the client

    def hear(self, event: events.Partial) -> None:
        """Prefill what the recogniser has so far. While a reply is being made it waits for the end of that."""
        if event.turn_id <= self.last_turn:
            return
        last = self._partial
        if last is not None and (event.turn_id, event.revision) <= (last.turn_id, last.revision):
            return
        self._check_length(event.text, "partial.text")
        self._partial = event
        if self._reply is None or self._reply.phase is Phase.OVER:
            self._prefill_partial()

    def final(self, event: events.Final) -> None:
        """The caller's turn is complete: reply to it."""
        if not self._is_repeat(event.turn_id):
            self._check_length(event.text, "final.text")
            self._ask(event.turn_id, event.options, event)

    def respond(self, event: events.Respond) -> None:
        """Reply to the history as it stands."""
        if not self._is_repeat(event.turn_id):
            self._ask(event.turn_id, event.options, None)

    def say(self, event: events.Say) -> None:
        """Given text becomes the assistant's: a turn that needs no generation and is interrupted like any other."""
        if self._is_repeat(event.turn_id):
            return
        self._check_length(event.text, "say.text")
        conversation = self._conversation
        self._overtake()
        self._require_room(conversation.said_tokens(event.text))
        before, now = conversation.length, time.monotonic()
        segment = conversation.put_said(event.text, self._next_submission(), event.item_id)
        record = TurnRecord(event.turn_id, now, event.traceparent, event.tracestate)
        reply = Reply(event.turn_id, before, before, self.generation, record, generated=False, segments=[segment])
        self._reply = reply
        self.last_turn = event.turn_id
        self._partial = None
        self._end_turn(reply)
        self._flush()

    def interrupt(self, event: events.Interrupt) -> None:
        """The caller spoke over a turn: the last one, for what came before it is history."""
        reply = self._reply
        if reply is None or reply.turn_id != event.turn_id:
            if event.turn_id > self.last_turn:
                raise Problem(Reason.UNKNOWN_TURN, f"there is no turn {event.turn_id} yet", field="interrupt.turn_id")
            raise self._stale("interrupt.turn_id")
        self._cut(reply, reply.heard_chars(event.heard))
        self._flush()
        self._prefill_partial()

    def playback(self, event: events.Playback) -> None:
        """How far the newest turn was played. It never goes back."""
        reply = self._reply
        if reply is not None and reply.turn_id == event.turn_id:
            reply.played = max(reply.played or 0, reply.heard_chars(event.heard))

    def tool_result(self, event: events.ToolResult) -> None:
        """What a tool gave. With the last result that is waited for, the reply goes on."""
        reply = self._reply if self._reply is not None and self._reply.turn_id == event.turn_id else None
        segments = [] if reply is None else reply.segments
        made = [(segment, call) for segment in segments for call in segment.calls if call.call_id == event.call_id]
        if reply is None or not made:
            message = f"turn {event.turn_id} has no call {event.call_id}"
            raise Problem(Reason.UNKNOWN_TOOL_CALL, message, field="tool_result.call_id")
        segment, call = made[0]
        if call.call_id in segment.results:
            return
        item_id = event.item_id or self._conversation.new_id()
        segment.results[call.call_id] = ToolResultItem(item_id, call.call_id, call.name, event.output, event.is_error)
        segment.wants_reply |= not event.no_reply
        if segment.outstanding:
            return
        if reply.phase is Phase.WAITING:
            self._go_on(reply)
        elif reply.cut is not None:
            self._rewrite(reply, reply.cut)
            self._flush()

    # Turns

    def _is_repeat(self, turn_id: int) -> bool:
        """Whether this turn was taken already; raises Problem for one that is older than the last."""
        if turn_id < self.last_turn:
            raise self._stale("turn_id")
        return turn_id == self.last_turn

    def _stale(self, name: str) -> Problem:
        return Problem(Reason.STALE_TURN, f"turn {self.last_turn} has begun since", field=name)

    def _overtake(self) -> None:
        """A new turn begins: one that is still being made or spoken, or waits for tools, ends as far as heard."""
        reply = self._reply
        if reply is None:
            return
        unheard = reply.played is not None and reply.played < len(reply.text)
        if reply.phase is not Phase.OVER or (reply.cut is None and unheard):
            self._cut(reply, reply.heard_chars(None))
        if reply.segments and reply.current.outstanding:
            for call in reply.current.outstanding:
                result = ToolResultItem(self._conversation.new_id(), call.call_id, call.name, INTERRUPTED_RESULT)
                reply.current.results[call.call_id] = result
            self._rewrite(reply, reply.heard_chars(None) if reply.cut is None else reply.cut)

    def _ask(self, turn_id: int, options: events.TurnOptions, heard: events.Final | None) -> None:
        """Put the caller's turn into the history, if there is one, and ask for the reply to it."""
        committed = time.monotonic()
        generation = self._resolved(options.generation, self.generation)
        if self.limits.max_turns is not None and self._replies >= self.limits.max_turns:
            raise Problem(Reason.TOO_MANY_TURNS, f"the call has had its {self.limits.max_turns} turns")
        self._overtake()
        conversation = self._conversation
        asked = () if heard is None else conversation.user_tokens(heard.text)
        try:
            self._require_room(len(asked) + len(conversation.prompt))
        except Problem:
            self._flush()  # what was being said is overtaken all the same
            raise
        begin = conversation.length
        if heard is not None:
            conversation.put_user(heard.text, asked, heard.item_id)
        record = TurnRecord(turn_id, committed, options.traceparent, options.tracestate)
        record.sampling, record.max_tokens = generation.sampling, generation.max_tokens
        self._reply = reply = Reply(turn_id, begin, conversation.length, generation, record)
        deadline_ms = options.first_token_deadline_ms or self._deadline_ms
        reply.deadline = committed + deadline_ms / 1000 if deadline_ms else 0.0
        self.last_turn = turn_id
        self._replies += 1
        self._partial = None
        self._submit(reply)

    def _submit(self, reply: Reply) -> None:
        """Ask for the next generation of a reply: the first, or the one after its tool results."""
        conversation = self._conversation
        conversation.put_prompt()
        keep, tokens = conversation.take_change()
        segment = conversation.begin_segment(self._next_submission())
        generation = reply.generation
        command = records.Submit(
            session=self._session,
            turn=segment.number,
            keep=keep,
            tokens=tokens,
            sampling=generation.sampling,
            max_tokens=generation.max_tokens - reply.output_tokens,
            stop_tokens=conversation.stop_tokens | generation.stop_token_ids,
            stop_strings=generation.stop_strings,
            deadline=reply.deadline,
            drafting=generation.drafting,
            tools=conversation.has_tools,
        )
        reply.segments.append(segment)
        reply.phase = Phase.GENERATING
        self._services.engine.submit(command, partial(self._on_record, reply, segment))
        self._persist(keep, tokens)

    def _go_on(self, reply: Reply) -> None:
        """Every result is there: put them into the history and generate what follows."""
        reply.record.tool_wait_s += time.monotonic() - reply.record.stats[-1].ended
        segment = reply.current
        self._put_results(segment)
        if not segment.wants_reply or reply.generation.max_tokens <= reply.output_tokens:
            self._end_turn(reply)
        elif len(reply.segments) > self._services.config.max_tool_rounds:
            self._end_turn(reply, Problem(Reason.TOO_MANY_TOOL_ROUNDS, "the reply calls tools without end"))
        else:
            try:
                self._require_room(len(self._conversation.prompt))
            except Problem as problem:
                self._end_turn(reply, problem)
            else:
                self._submit(reply)

    def _cut(self, reply: Reply, chars: int) -> None:
        """The caller spoke over the reply: the history holds what was heard of it. Repeatable, and revisable."""
        phase, reply.phase = reply.phase, Phase.OVER
        repeated = reply.cut == chars
        reply.cut, reply.kept = chars, self._rewrite(reply, chars)
        self.history_version += not repeated
        self._emit(events.Interrupted(reply.turn_id, reply.kept, self._history()))
        if phase is Phase.WAITING:
            self._report(reply, events.TurnEnd.INTERRUPTED)

    def _rewrite(self, reply: Reply, chars: int) -> str:
        """Make the history hold the first ``chars`` code points of the reply, and the tools it has used.

        Returns the text that it holds then. A tool call whose result is still to come is put there with that.
        """
        conversation = self._conversation
        conversation.rewind(reply.before)
        text = ""
        for segment in reply.segments:
            heard = min(len(segment.text), max(0, chars))
            chars -= len(segment.text)
            calls = () if segment.outstanding else tuple(segment.calls)
            if heard > 0 or calls:
                text += conversation.put_heard(segment, heard, calls)
            if calls:
                self._put_results(segment)
        return text

    def _put_results(self, segment: Segment) -> None:
        self._conversation.put_results([segment.results[call.call_id] for call in segment.calls])

    def _prefill_partial(self) -> None:
        """Let the engine compute the caller's turn as far as it is known."""
        if self._partial is None:
            return
        conversation = self._conversation
        # With the prompt behind it: a final that says the same finds everything but one position computed.
        ahead = (*conversation.user_tokens(self._partial.text), *conversation.prompt)
        if conversation.length + len(ahead) < self._services.max_context_tokens:
            keep, tokens = conversation.take_change(ahead)
            self._services.engine.sync(self._session, keep, tokens)

    def _flush(self) -> None:
        """Tell the engine what the history is now. Whatever it was generating on the old one ends."""
        keep, tokens = self._conversation.take_change()
        self._services.engine.sync(self._session, keep, tokens)
        self._persist(keep, tokens)

    # From the engine

    def _on_record(self, reply: Reply, segment: Segment, record: Record) -> None:
        """Take one record of a generation."""
        if self._closed:
            return
        try:
            match record:
                case records.Progress():
                    if reply.phase is Phase.GENERATING and segment is reply.current:
                        self._progress(reply, segment, record)
                case records.Ended():
                    reply.record.stats.append(record.stats)
                    self._generated(reply, segment, record)
                case records.Failed():
                    self._conversation.rewind(segment.start - len(self._conversation.prompt))
                    self._end_turn(reply, _engine_problem(record.reason, record.message))
        except Exception:
            log.exception("engine record failed", extra={"session": self._session, "record": type(record).__name__})
            self.on_lost(Problem(Reason.INTERNAL, "the service failed on the engine's answer"))

    def _progress(self, reply: Reply, segment: Segment, record: records.Progress) -> None:
        offset, in_segment = len(reply.text), len(segment.text)
        spans = segment.grow(record.tokens, record.accepted, record.text)
        account = reply.record
        if record.text or record.clause_ends:
            now = time.monotonic()
            ends = tuple(offset - in_segment + end for end in record.clause_ends)
            gained = (len(record.tokens), record.accepted)
            since = now - account.committed
            self._emit(events.TextDelta(reply.turn_id, record.text, offset, ends, *gained, spans, since))
            account.first_text = account.first_text or now
            account.first_clause = account.first_clause or (now if ends else 0.0)
        for made in record.calls:
            call_id = f"{self._session}-{secrets.token_hex(6)}"
            call = ToolCallItem(self._conversation.new_id(), call_id, made.name, made.arguments)
            segment.calls.append(call)
            account.tool_calls += 1
            self._emit(events.ToolCalled(reply.turn_id, call, len(reply.text)))

    def _generated(self, reply: Reply, segment: Segment, record: records.Ended) -> None:
        """A generation is over: the turn with it, unless tools are to be asked first."""
        if reply.phase is not Phase.GENERATING or segment is not reply.current:
            if reply.cut is not None:
                self._report(reply, events.TurnEnd.INTERRUPTED)
            return
        del segment.tokens[record.reply_tokens :]
        reply.record.finish = record.finish
        if segment.tokens:
            self._conversation.adopt(segment)
            self._persist(segment.start, tuple(segment.tokens))
        else:
            self._conversation.rewind(segment.start - len(self._conversation.prompt))
        if record.finish == Finish.OUT_OF_PAGES.value:
            self._end_turn(reply, Problem(Reason.OUT_OF_PAGES, "no room for keys and values", retry_after_s=1.0))
        elif record.finish == Finish.FAILED.value:
            self._end_turn(reply, Problem(Reason.INTERNAL, f"the engine failed: {record.error}"))
        elif not segment.calls:
            self._end_turn(reply)
        elif segment.outstanding:
            reply.phase = Phase.WAITING
            self._account(reply)
            waiting = tuple(call.call_id for call in segment.outstanding)
            self._emit(events.TurnWaiting(reply.turn_id, waiting, reply.record, self._history()))
            self._on_over()
        else:
            self._go_on(reply)

    def _end_turn(self, reply: Reply, problem: Problem | None = None) -> None:
        """The reply has said all it will. What the recogniser has sent meanwhile is prefilled behind it."""
        reply.phase = Phase.OVER
        self.history_version += 1
        if problem is not None:
            reply.record.error = problem.reason.value
            self._emit(events.Failure(problem, reply.turn_id))
            self._report(reply, events.TurnEnd.FAILED)
        else:
            self._report(reply, _ENDS.get(reply.record.finish, events.TurnEnd.COMPLETED))
        if not self._closed:
            self._warn_when_nearly_full()
            self._prefill_partial()

    def _report(self, reply: Reply, reason: events.TurnEnd) -> None:
        """Say that a turn is over, to the client first and then to whoever measures. Once per turn."""
        if reply.reported:
            return
        reply.reported = True
        self._account(reply)
        reply.record.end_reason = "interrupted" if reason is events.TurnEnd.INTERRUPTED else "completed"
        history = self._history(self._conversation.item_ids(reply.begin) if reply is self._reply else ())
        model, text = self._services.model, reply.text if reply.kept is None else reply.kept
        self._emit(events.TurnEnded(reply.turn_id, reason, model, text, reply.generated, reply.record, history))
        if reply.generated:
            self._recorder.turn(reply.record)
        self._on_over()

    @staticmethod
    def _account(reply: Reply) -> None:
        reply.record.ended = time.monotonic()
        reply.record.output_tokens = reply.output_tokens if reply.generated else 0

    def _engine_failed(self, record: records.Failed) -> None:
        """A command failed that belongs to no generation: the engine's log may not be the history any more."""
        log.error("engine refused", extra={"session": self._session, "cause": record.reason, "detail": record.message})
        self.on_lost(_engine_problem(record.reason, record.message))

    # What all of them use

    def _next_submission(self) -> int:
        self._submissions += 1
        return self._submissions

    def _history(self, item_ids: tuple[str, ...] = ()) -> events.HistoryState:
        return events.HistoryState(self.history_version, self._conversation.length, item_ids)

    def _resolved(self, patch: events.GenerationPatch, to: events.Generation) -> events.Generation:
        """``to`` with what the client said, within the limits. Raises Problem for ids outside the vocabulary."""
        generation = patch.apply(to)
        if any(token >= self._conversation.vocab_size for token in generation.stop_token_ids):
            raise invalid("sampling.stop_token_ids", "holds an id that is not in the vocabulary")
        limit = self.limits.max_output_tokens_per_turn or self._services.config.max_reply_tokens_limit
        wanted = generation.max_tokens or self._services.config.max_reply_tokens
        return dataclasses.replace(generation, max_tokens=min(wanted, limit))

    def _check_length(self, text: str, name: str) -> None:
        limit = self.limits.max_input_code_points
        if limit is not None and len(text) > limit:
            raise Problem(Reason.INPUT_TOO_LONG, f"{len(text)} code points, of at most {limit}", field=name)

    def _require_room(self, more: int) -> None:
        """The policy for a full context: refuse. Raises Problem unless the tokens and one more fit."""
        used, limit = self._conversation.length, self._services.max_context_tokens
        if used + more >= limit:
            raise Problem(Reason.CONTEXT_FULL, f"the conversation has {used} tokens; {more} more do not fit {limit}")

    def _warn_when_nearly_full(self) -> None:
        """Once, so that the policy does not come as a surprise."""
        used, limit = self._conversation.length, self._services.max_context_tokens
        if used >= self._announce_at:
            self._announce_at = limit + 1
            self._emit(events.ContextNearlyFull(used, limit))

    def _persist(self, keep: int, tokens: tuple[int, ...]) -> None:
        self._services.store.append(self._session, LogEntry(0, keep, tokens))


def _effective(asked: events.Limits, config: CallConfig) -> events.Limits:
    """What the client asked for, where that is below the service's own."""

    def lower(wanted: int | None, own: int) -> int:
        return own if wanted is None else min(wanted, own)

    return events.Limits(
        max_turns=asked.max_turns,
        max_output_tokens_per_turn=lower(asked.max_output_tokens_per_turn, config.max_reply_tokens_limit),
        max_input_code_points=lower(asked.max_input_code_points, config.max_input_chars),
    )


def _engine_problem(reason: str, message: str) -> Problem:
    """What an error of ``engine.errors`` is to a client."""
    match reason:
        case "ContextFull":
            return Problem(Reason.CONTEXT_FULL, message)
        case "OutOfPages":
            return Problem(Reason.OUT_OF_PAGES, message, retry_after_s=1.0)
        case _:
            return Problem(Reason.INTERNAL, f"the engine failed: {reason}")
