"""What comes of turns, as it is told: to the client first, then to whoever measures. Decides nothing."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from engine import records
from service.history import History
from service.items import ToolCallItem
from service.problems import Guardrail, Problem
from service.reply import Phase, Reply, Segment
from service.server_events import (
    AnswerSource,
    ContextNearlyFull,
    DeadlineAtRisk,
    Failure,
    FallbackTaken,
    HistoryCause,
    HistoryChanged,
    Interrupted,
    LimitReached,
    ModeChange,
    Notice,
    ServerEvent,
    TextDelta,
    ToolCalled,
    ToolTimedOut,
    TurnEnd,
    TurnEnded,
    TurnWaiting,
)
from service.telemetry import CallRecorder, ToolUse, TurnRecord
from service.terms import Terms


class Reporter:
    """The turns of one call, from their beginning to the word that they are over, which comes once for each.

    model: the name that clients see. emit: sends a server event. on_over: called when a turn has ended, or waits for
    the client.
    """

    def __init__(
        self,
        session: str,
        model: str,
        terms: Terms,
        history: History,
        recorder: CallRecorder,
        emit: Callable[[ServerEvent], int],
        on_over: Callable[[], None],
    ) -> None:
        self._session = session
        self._model = model
        self._terms = terms
        self._history = history
        self._recorder = recorder
        self._emit = emit
        self._on_over = on_over
        self._open: list[Reply] = []
        self._announced = False
        self._held = False

    @property
    def open(self) -> Sequence[Reply]:
        """Those whose end the client has not been told."""
        return self._open

    @property
    def announced(self) -> bool:
        """Whether the client knows that the context is nearly full."""
        return self._announced

    def restore(self, announced: bool, open_: Sequence[Reply]) -> None:
        """As it was in a call that was written down. The end of those that are over is told now."""
        self._announced = announced
        for reply in open_:
            self.begin(reply)
        for reply in open_:
            if reply.phase is Phase.OVER:
                self.ended(reply, reply.ending or reply.cut_by)

    @property
    def speaking(self) -> bool:
        """Whether there is more to come of a turn without another word of the client."""
        return any(reply.phase is not Phase.WAITING for reply in self._open)

    @property
    def busy(self) -> bool:
        """Whether a turn is in progress, be it that it waits for its tools."""
        return bool(self._open)

    def notice(self, notice: Notice) -> None:
        """Tell what is there to be shown, where the client wants to see it."""
        if self._terms.progress_notices:
            self._emit(notice)

    def announce(self, due_at: int | None = None) -> None:
        """Say once when the context is nearly full, so that the policy does not come as a surprise. due_at: tokens that
        were in use when it had to be applied, or prepared, however full the context is.
        """
        used = self._history.length if due_at is None else due_at
        full = due_at is not None or used >= self._terms.announce_at
        if full and not self._announced:
            self._emit(ContextNearlyFull(used, self._terms.max_context_tokens))
        self._announced = full

    def hold(self, held: bool) -> None:
        """Whether the client is too far behind to be told more of a reply."""
        if held:
            self._recorder.held()
            for reply in self._open:
                reply.record.late_reader |= not reply.record.first_clause
        self._held = held

    def begin(self, reply: Reply) -> None:
        """The end of this turn is to be told."""
        reply.record.late_reader = self._held
        reply.record.model, reply.record.deadline = self._model, reply.deadline
        self._open.append(reply)
        self._recorder.begun()

    def progress(self, reply: Reply, segment: Segment, steps: Sequence[records.Progress]) -> None:
        """Steps of a generation, told as one: more text, then tool calls."""
        before, in_segment = len(reply.text), len(segment.text)
        spans = [span for step in steps for span in segment.grow(step.tokens, step.accepted, step.text)]
        text = segment.text[in_segment:]
        ends = tuple(before - in_segment + end for step in steps for end in step.clause_ends)
        account = reply.record
        if text or ends:
            now = time.monotonic()
            segment.clause_ends += len(ends)
            gain, since_s = segment.take_unsent(), now - account.committed
            self._emit(TextDelta(reply.turn_id, text, before, ends, gain.tokens, gain.accepted, tuple(spans), since_s))
            account.first_text = account.first_text or now
            account.first_clause = account.first_clause or (now if ends else 0.0)
        for drafting in (step.drafting for step in steps):
            if drafting is not None and drafting[0] != reply.mode:
                if reply.mode:
                    self.notice(ModeChange(reply.turn_id, *drafting))
                reply.mode = drafting[0]
        segment.malformed_calls += sum(step.malformed_calls for step in steps)
        for made in (made for step in steps for made in step.calls):
            call_id = f"{self._session}-{secrets.token_hex(6)}"
            call = ToolCallItem(self._history.new_id(), call_id, made.name, made.arguments)
            segment.calls.append(call)
            segment.take_unsent()  # behind a call, not behind text
            account.tool_calls += 1
            account.tools.append(ToolUse(call.name, call_id, time.monotonic(), call.arguments))
            timeout_ms = self._terms.tool_timeout_ms(call.name)
            self._emit(ToolCalled(reply.turn_id, call, len(reply.text), timeout_ms))

    def said(self, reply: Reply, segment: Segment) -> None:
        """Given text is the whole answer."""
        now, length = time.monotonic(), len(segment.text)
        since_s = now - reply.record.committed
        self._emit(TextDelta(reply.turn_id, segment.text, 0, (length,), 0, 0, ((length, False),), since_s))
        reply.record.first_text = reply.record.first_clause = now

    def deadline_at_risk(self, reply: Reply, expected: float | None) -> None:
        """The first token will be late. expected: when it will be there, in monotonic seconds; None: nobody knows."""
        committed = reply.record.committed
        expected_s = None if expected is None else expected - committed
        self._emit(DeadlineAtRisk(reply.turn_id, reply.deadline - committed, expected_s))

    def fallback_taken(self, reply: Reply, index: int, model: str) -> None:
        """A link of the chain answers."""
        self._emit(FallbackTaken(reply.turn_id, index, model))

    def waiting(self, reply: Reply) -> None:
        """The reply goes on when its tools have answered."""
        call_ids = tuple(call.call_id for call in reply.current.outstanding)
        account = _account(reply).snapshot()
        self._emit(TurnWaiting(reply.turn_id, call_ids, account, self._history.state()))
        self._on_over()

    def spoken_over(self, reply: Reply, during: Phase) -> None:
        """The caller has spoken over the reply, which was in this phase, for the first time."""
        if during is not Phase.OVER:
            reply.record.interrupted = time.monotonic()
        self._recorder.spoken_over("playback" if during is Phase.OVER else during.value)

    def interrupted(self, reply: Reply) -> None:
        """The history holds a beginning of the reply."""
        assert reply.kept is not None
        self._emit(Interrupted(reply.turn_id, reply.kept, self._history.state()))

    def failed(self, reply: Reply, problem: Problem) -> None:
        """Why the turn will end."""
        reply.record.error = problem.reason.value
        self._emit(Failure(problem, reply.turn_id))

    def update_refused(self, problem: Problem) -> None:
        """An update that was taken cannot come into force."""
        self._emit(Failure(problem))

    def history_changed(self, cause: HistoryCause, kept: int, summary: str = "") -> None:
        """Something other than a turn has changed the history. kept: tokens at the front that stayed as they were."""
        ids = tuple(item.id for item in self._history.items)
        self._emit(HistoryChanged(cause, self._history.state(ids), kept, summary))
        self.announce()

    def tool_timed_out(self, reply: Reply, call: ToolCallItem, timeout_ms: int) -> None:
        """The reply goes on without the tool."""
        if (tool := reply.record.tool(call.call_id)) is not None:
            tool.outcome = "timed_out"
        self._emit(ToolTimedOut(reply.turn_id, call.call_id, timeout_ms))

    def limit_reached(self, reply: Reply, guardrail: Guardrail, limit: int) -> None:
        """Which guardrail the turn has come up against."""
        self._emit(LimitReached(guardrail, limit, reply.turn_id))

    def ended(self, reply: Reply, reason: TurnEnd) -> None:
        """The turn is over. Told once."""
        if reply not in self._open:
            return
        self._open.remove(reply)
        self._recorder.over()
        cut = {TurnEnd.INTERRUPTED: "interrupted", TurnEnd.LIMIT_REACHED: "limit_reached"}
        reply.record.end_reason = cut.get(reason, "completed")
        account = _account(reply)
        text = reply.text if reply.kept is None else reply.kept
        ids = self._history.item_ids(reply) if reply.item_ids is None else reply.item_ids
        history = self._history.state(ids)
        self._emit(TurnEnded(reply.turn_id, reason, reply.source, account.model, text, account, history))
        if reply.source is not AnswerSource.GIVEN_TEXT:
            self._recorder.turn(account)
        self._on_over()

    def close(self, error: str) -> None:
        """The call is over, and with it every turn that is not; ``error``: why, or empty."""
        for reply in self._open:
            reply.record.end_reason = "session_closed"
            self._recorder.over()
            self._recorder.turn(_account(reply))
        self._recorder.end(error)


def _account(reply: Reply) -> TurnRecord:
    """What is known of the turn by now."""
    reply.record.ended = time.monotonic()
    reply.record.source = reply.source.value
    reply.record.output_tokens = reply.output_tokens if reply.generated else 0
    reply.record.said = reply.text
    return reply.record
