"""A reply as it is made: its generations, the tools between them, and who makes it where the model is late.

What a dead turn's generation still reports is dropped by the identity of its segment. Knows no client and no order of
turns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from engine import records
from engine.session import Finish
from service.ahead import HeldReply
from service.call_services import Later, Record
from service.fallbacks import Fallbacks
from service.history import History
from service.items import ToolCallItem, ToolResultItem
from service.options import Fallback
from service.problems import Guardrail, Problem, Reason, engine_problem, generation_problem
from service.reply import Phase, RecordSink, Reply, Segment, Steps
from service.reporter import Reporter
from service.server_events import AnswerSource, HistoryCause, TurnEnd
from service.terms import Terms
from service.tool_calls import ToolCalls
from service.tool_results import INTERRUPTED_RESULT, TIMED_OUT_RESULT, UNHELD_RESULT

log = logging.getLogger(__name__)


class Speaking:
    """The replies of one call, of which one at a time is made.

    fallbacks: the chain for late first tokens; serving: whether the call's own engine is there. on_over: called when a
    reply has said all it will. on_cut: called when the history has lost something of one. on_waiting: called when one
    waits for tools. with_room: does something that may not fit, given how many tokens it needs, if need be in place of
    the oldest turns; raises its Problem. on_lost: called with what ended the call when the engine's log can no longer
    be known to be the history.
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
        on_over: Callable[[Reply], None],
        on_cut: Callable[[], None],
        on_waiting: Callable[[], None],
        with_room: Callable[[Callable[[], None], Callable[[], int]], None],
        on_lost: Callable[[Problem], None],
    ) -> None:
        self._session = session
        self._terms = terms
        self._history = history
        self._reporter = reporter
        self._later = later
        self._on_over = on_over
        self._on_cut = on_cut
        self._on_waiting = on_waiting
        self._with_room = with_room
        self._on_lost = on_lost
        self._tools = ToolCalls(terms, later, self._tool_timed_out)
        self._fallbacks = Fallbacks(fallbacks, history, reporter, serving, later, self._sink, self.end)
        self._reply: Reply | None = None
        self._closed = False
        if self._tools.exhausted:
            history.forbid_calls()

    @property
    def tools(self) -> ToolCalls:
        """The call's tool calls."""
        return self._tools

    def restore(self, reply: Reply) -> None:
        """Go on with a reply that was written down."""
        self._reply = reply
        if reply.phase is Phase.GENERATING and reply.source is AnswerSource.FALLBACK_PHRASE:
            self.end(reply)  # the phrase is all of it
        elif reply.phase is Phase.GENERATING:
            try:
                self._history.generations.go_on(reply, self._sink(reply))
            except Problem as unanswered:
                self._break_off(reply, unanswered)

    def begin(self, reply: Reply, held: HeldReply | None) -> None:
        """Make a reply to the history as it stands, or release the one that was made ahead."""
        self._reply = reply
        if held is None:
            self._submit(reply)
        else:
            self._release(reply, held)
        self._fallbacks.watch(reply)

    def abandon(self, reply: Reply) -> list[ToolCallItem]:
        """Nobody waits for the reply's tools any more; returns the calls that were open."""
        abandoned = reply.outstanding
        for call in abandoned:
            self._tools.forget(call.call_id)
            standing = reply.current.results.get(call.call_id)
            reply.current.answer(standing or self._history.results.stand_in(call, INTERRUPTED_RESULT))
        return abandoned

    def given(self, reply: Reply) -> list[ToolResultItem]:
        """What has come of the newest generation's calls and is not in the history, or stands for it."""
        if not reply.segments:
            return []
        results = reply.current.results
        given = [
            results.get(call.call_id) or self._history.results.stand_in(call, INTERRUPTED_RESULT)
            for call in reply.current.calls
        ]
        return [result for result in given if result.stands_in or reply.phase is not Phase.OVER]

    def is_answered(self, call_id: str) -> bool:
        """Whether a tool call has its result."""
        return self._tools.is_answered(call_id)

    def close(self) -> None:
        """The call is over."""
        self._closed = True
        self._tools.close()
        self._fallbacks.close()

    def take_result(self, reply: Reply, segment: Segment, result: ToolResultItem, *, wants_reply: bool) -> None:
        """A tool's result, or what stands for it. With the last that is waited for the reply goes on; where that was
        cut, the history is another. Raises Problem, and changes nothing, where it has no room.
        """
        cut = reply.phase is Phase.OVER and reply.cut is not None
        kept = self._history.put_behind_cut(reply, segment, result) if cut else 0
        self._tools.answered(result.call_id)
        if (tool := reply.record.tool(result.call_id)) is not None:
            tool.answered, tool.result = time.monotonic(), result.output
            if tool.outcome == "abandoned":
                tool.outcome = "failed" if result.is_error else "answered"
        if cut:
            self._reporter.history_changed(HistoryCause.TOOL_RESULT, kept)
            self._on_cut()
            return
        segment.answer(result)
        segment.wants_reply |= wants_reply
        if reply.phase is Phase.WAITING and not segment.outstanding:
            self._go_on(reply)

    def _tool_timed_out(self, call: ToolCallItem, timeout_ms: int) -> None:
        """The model is told that its tool did not answer, and goes on. What was overtaken since waits for nothing."""
        reply = self._reply
        segments = [] if reply is None else [segment for segment in reply.segments if _waits_for(segment, call)]
        if reply is None or reply.settled or not segments:
            return
        self._reporter.tool_timed_out(reply, call, timeout_ms)
        result = self._history.results.stand_in(call, TIMED_OUT_RESULT, is_error=True)
        try:
            self.take_result(reply, segments[0], result, wants_reply=True)
        except Problem:  # no room behind the cut: what the history holds of the call is all there can be
            log.warning("no room to say that a tool timed out", extra={"session": self._session})

    def _release(self, reply: Reply, held: HeldReply) -> None:
        """The reply was made ahead: all of its text that is there goes out at once."""
        reply.segments.append(held.segment)
        self._history.generations.release(held, reply)
        reply.record.released = time.monotonic()
        held.release(self._sink(reply), self._later)

    def _submit(self, reply: Reply) -> None:
        reply.phase = Phase.GENERATING
        self._history.generations.submit(reply, self._sink(reply))

    def _sink(self, reply: Reply) -> RecordSink:
        return partial(self._on_record, reply)

    def _go_on(self, reply: Reply) -> None:
        """Every result is there: put them into the history and generate what follows."""
        reply.record.tool_wait_s += time.monotonic() - reply.record.stats[-1].ended
        segment, problem = reply.current, None
        results, wants_reply = list(segment.results.values()), segment.wants_reply
        require = partial(self._history.require_results, results, reply=wants_reply)
        try:
            self._with_room(require, lambda: self._history.results_tokens(results, reply=wants_reply))
        except Problem as no_room:
            problem = no_room
            segment.results = {call.call_id: self._history.results.of(call, UNHELD_RESULT) for call in segment.calls}
        self._history.put_results(segment)
        goes_on = problem is None and wants_reply
        if goes_on and reply.generation.max_tokens <= reply.output_tokens:
            reply.record.finish, goes_on = Finish.LENGTH.value, False
        if not goes_on:
            self._history.flush()  # so that nobody waits for the results to be computed, later
            self.end(reply, problem)
            return
        try:
            self._submit(reply)
        except Problem as unanswered:  # by another model, which has no room for what the tools gave
            self.end(reply, unanswered)

    def _progress(self, reply: Reply, segment: Segment, steps: Sequence[records.Progress]) -> None:
        """Steps of the newest generation, as in ``Steps``. A tool call above a limit is not made, and ends the turn."""
        *earlier, record = steps
        made = sum(len(segment.calls) for segment in reply.segments)
        allowed, broken = self._tools.admit(len(record.calls), made)
        if broken is not None:
            dropped = len(record.calls) - allowed
            malformed = record.malformed_calls + dropped  # the history must not hold what it wrote of them either
            record = replace(record, calls=record.calls[:allowed], malformed_calls=malformed)
        before = len(segment.calls)
        self._reporter.progress(reply, segment, (*earlier, record))
        for call in segment.calls[before:]:
            self._tools.sent(call)
        exhausted = self._tools.exhausted if record.calls else None
        if exhausted is not None and self._history.forbid_calls() and exhausted != broken:
            self._reporter.limit_reached(reply, *exhausted)
        if broken is not None:
            self._reporter.limit_reached(reply, *broken)
            self._cut_off(reply, TurnEnd.LIMIT_REACHED)
            self._history.version += 1
            self._on_cut()

    def _cut_off(self, reply: Reply, cut_by: TurnEnd) -> None:
        """Something other than the caller has cut the reply. Its calls are not gone on from, but their results stay."""
        reply.phase, reply.cut_by, reply.cut = Phase.OVER, cut_by, len(reply.text)
        reply.kept = self._history.cuts.rewrite(reply, reply.cut)

    # From the engine

    def _on_record(self, reply: Reply, segment: Segment, record: Record | Steps) -> None:
        """Take one record of a generation, or several that are told as one."""
        if self._closed or segment not in reply.segments:
            return
        alive = reply.phase is Phase.GENERATING and segment is reply.current
        try:
            match record:
                case records.Expected():
                    self._fallbacks.expect(reply, record.at)
                case records.Progress():
                    if alive:
                        self._progress(reply, segment, (record,))
                case Steps(steps):
                    if alive:
                        self._progress(reply, segment, steps)
                case records.Ended():
                    reply.record.stats.append(record.stats)
                    if alive:
                        self._generated(reply, segment, record)
                case records.Failed():
                    if alive:
                        self._failed(reply, segment, engine_problem(record.reason, record.message))
            if not alive and isinstance(record, records.Ended | records.Failed):
                self._reporter.ended(reply, reply.cut_by)
        except Exception:
            log.exception("engine record failed", extra={"session": self._session, "record": type(record).__name__})
            self._on_lost(Problem(Reason.INTERNAL, "the service failed on the engine's answer"))

    def _failed(self, reply: Reply, segment: Segment, problem: Problem) -> None:
        """The engine could not do what was asked: another model may, unless what was asked is at fault."""
        hopeless = reply.answerer is None and problem.reason in (Reason.CONTEXT_FULL, Reason.INVALID_FIELD)
        if hopeless or not self._fallbacks.rescue(reply):
            self._history.drop(segment)
            self.end(reply, problem)

    def _generated(self, reply: Reply, segment: Segment, record: records.Ended) -> None:
        """A generation is over: the turn with it, unless tools are to be asked first."""
        del segment.tokens[record.reply_tokens :]
        problem = generation_problem(record.finish, record.error)
        if problem is not None and self._fallbacks.rescue(reply):
            return
        reply.record.finish = record.finish
        if problem is not None:
            self._break_off(reply, problem)
            return
        self._history.adopt(segment)
        if segment.malformed_calls and not segment.calls:
            self._end_without_calls(reply)
        elif not segment.calls:
            self.end(reply)
        elif segment.outstanding:
            reply.phase = Phase.WAITING
            self._history.version += 1
            self._reporter.waiting(reply)
            self._on_waiting()
        else:
            self._go_on(reply)

    def _break_off(self, reply: Reply, problem: Problem) -> None:
        """The newest generation has failed half-way. What was told of it stays."""
        self._history.adopt(reply.current, broken_off=True)
        if reply.current.calls:
            self._cut_off(reply, TurnEnd.FAILED)
            self._history.flush()
        self.end(reply, problem)

    def _end_without_calls(self, reply: Reply) -> None:
        """All the tools the reply wrote are no calls: nobody can run them.

        Where the reply was cut off inside of one, that is how the turn ended; otherwise the model failed, and the
        client may ask again.
        """
        if TurnEnd.of(reply.record.finish) is TurnEnd.COMPLETED:
            self.end(reply, Problem(Reason.MALFORMED_TOOL_CALL, "the model's tool call is no JSON call"))
        else:
            self.end(reply)

    def end(self, reply: Reply, problem: Problem | None = None) -> None:
        """The reply has said all it will. problem: what it failed of."""
        reply.phase = Phase.OVER
        self._history.version += reply.source is not AnswerSource.GIVEN_TEXT
        end = reply.ending = TurnEnd.FAILED if problem is not None else TurnEnd.of(reply.record.finish)
        if problem is not None:
            self._reporter.failed(reply, problem)
        limit = self._terms.max_output_tokens
        if end is TurnEnd.LENGTH and reply.generation.max_tokens == limit:
            self._reporter.limit_reached(reply, Guardrail.OUTPUT_TOKENS_PER_TURN, limit)
        self._reporter.ended(reply, end)
        if not self._closed:
            self._on_over(reply)


def _waits_for(segment: Segment, call: ToolCallItem) -> bool:
    """Whether the call, which may have another name by now, has no result."""
    return any(waiting.call_id == call.call_id for waiting in segment.outstanding)
