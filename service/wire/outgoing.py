"""Writes what a call says."""

from __future__ import annotations

import dataclasses

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import error_pb2 as error_pb
from firstword.v1 import notices_pb2 as notices_pb
from firstword.v1 import options_pb2 as options_pb
from firstword.v1 import resume_pb2 as resume_pb
from firstword.v1 import server_events_pb2 as server_pb
from service import __version__
from service import server_events as events
from service.errors import STATUS
from service.problems import Guardrail
from service.wire import report
from service.wire.options import PLAIN

_CAUSES = {
    events.HistoryCause.ITEMS: server_pb.HISTORY_CAUSE_ITEMS,
    events.HistoryCause.UPDATE: server_pb.HISTORY_CAUSE_UPDATE,
    events.HistoryCause.DROPPED_OLDEST: server_pb.HISTORY_CAUSE_DROPPED_OLDEST,
    events.HistoryCause.SUMMARISED: server_pb.HISTORY_CAUSE_SUMMARISED,
    events.HistoryCause.TOOL_RESULT: server_pb.HISTORY_CAUSE_TOOL_RESULT,
}
_SOURCES = {
    events.AnswerSource.MODEL: server_pb.ANSWER_SOURCE_MODEL,
    events.AnswerSource.FALLBACK_MODEL: server_pb.ANSWER_SOURCE_FALLBACK_MODEL,
    events.AnswerSource.FALLBACK_PHRASE: server_pb.ANSWER_SOURCE_FALLBACK_PHRASE,
    events.AnswerSource.GIVEN_TEXT: server_pb.ANSWER_SOURCE_GIVEN_TEXT,
}
_TURN_ENDS = {
    events.TurnEnd.COMPLETED: server_pb.TURN_END_REASON_COMPLETED,
    events.TurnEnd.LENGTH: server_pb.TURN_END_REASON_LENGTH,
    events.TurnEnd.CONTEXT_FULL: server_pb.TURN_END_REASON_CONTEXT_FULL,
    events.TurnEnd.INTERRUPTED: server_pb.TURN_END_REASON_INTERRUPTED,
    events.TurnEnd.LIMIT_REACHED: server_pb.TURN_END_REASON_LIMIT_REACHED,
    events.TurnEnd.FAILED: server_pb.TURN_END_REASON_FAILED,
}
_GUARDRAILS = {
    Guardrail.TOOL_CALLS_PER_TURN: notices_pb.GUARDRAIL_TOOL_CALLS_PER_TURN,
    Guardrail.TOOL_CALLS_PER_CALL: notices_pb.GUARDRAIL_TOOL_CALLS_PER_CALL,
    Guardrail.CALL_DURATION: notices_pb.GUARDRAIL_CALL_DURATION,
    Guardrail.IDLE_TIME: notices_pb.GUARDRAIL_IDLE_TIME,
    Guardrail.OUTPUT_TOKENS_PER_TURN: notices_pb.GUARDRAIL_OUTPUT_TOKENS_PER_TURN,
    Guardrail.TURNS: notices_pb.GUARDRAIL_TURNS,
    Guardrail.INPUT_SIZE: notices_pb.GUARDRAIL_INPUT_SIZE,
}
_AHEAD_STATES = {
    events.AheadState.STARTED: notices_pb.ANSWER_AHEAD_STATE_STARTED,
    events.AheadState.RELEASED: notices_pb.ANSWER_AHEAD_STATE_RELEASED,
    events.AheadState.MISMATCHED: notices_pb.ANSWER_AHEAD_STATE_MISMATCHED,
    events.AheadState.RESUMED: notices_pb.ANSWER_AHEAD_STATE_RESUMED,
    events.AheadState.EXPIRED: notices_pb.ANSWER_AHEAD_STATE_EXPIRED,
    events.AheadState.ABANDONED: notices_pb.ANSWER_AHEAD_STATE_ABANDONED,
}


def response(envelope: events.Envelope) -> call_pb.CallResponse:
    """The message of a server event."""
    message = call_pb.CallResponse(
        generation=envelope.generation,
        seq=envelope.seq,
        durable_seq=envelope.durable_seq,
        client_seq=envelope.client_seq,
        record=envelope.record,
        whole_seq=envelope.whole_seq,
    )
    event = envelope.event
    match event:
        case events.TextDelta():
            _fill_delta(message.text_delta, event)
        case events.Opened():
            message.opened.CopyFrom(_opened(event))
        case events.Heartbeat():
            message.heartbeat.SetInParent()
        case events.ToolCalled():
            message.tool_called.CopyFrom(_tool_called(event))
        case events.TurnEnded():
            message.turn_ended.CopyFrom(_turn_ended(event))
        case events.TurnWaiting():
            message.turn_waiting.CopyFrom(_turn_waiting(event))
        case events.Interrupted():
            message.interrupted.CopyFrom(_interrupted(event))
        case events.Generated():
            message.generated.CopyFrom(_generated(event))
        case events.HistoryChanged():
            message.history_changed.CopyFrom(_history_changed(event))
        case events.Failure():
            message.error.CopyFrom(_error(event))
        case _:
            message.notice.CopyFrom(_notice(event))
    return message


def _fill_delta(delta: server_pb.TextDelta, event: events.TextDelta) -> None:
    delta.turn_id, delta.text, delta.offset_code_points = event.turn_id, event.text, event.offset
    delta.clause_end_code_points.extend(event.clause_ends)
    delta.completion_tokens, delta.drafted_tokens = event.tokens, event.accepted
    for length, drafted in event.spans:
        delta.spans.add(code_points=length, drafted=drafted)
    delta.since_commit_us = round(event.since_commit_s * 1e6)


def _opened(event: events.Opened) -> server_pb.Opened:
    generation, sampling = event.generation, event.generation.sampling
    return server_pb.Opened(
        session_id=event.session_id,
        model=event.model,
        max_context_tokens=event.max_context_tokens,
        used_tokens=event.used_tokens,
        sampling=options_pb.Sampling(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            max_output_tokens=generation.max_tokens,
            stop_strings=generation.stop_strings,
            stop_token_ids=sorted(generation.stop_token_ids),
        ),
        seed=event.seed,
        limits=options_pb.Limits(**dataclasses.asdict(event.limits)),
        history_version=event.history_version,
        item_ids=event.item_ids,
        drafting_modes=[PLAIN],
        service_version=__version__,
        resume_token=_resume_token(event.token),
        resumed=event.resumed,
        unfinished=_unfinished(event.unfinished),
    )


def _resume_token(event: events.ResumeToken) -> resume_pb.ResumeToken:
    return resume_pb.ResumeToken(token=event.token, expires_in_ms=round(event.ttl_s * 1000))


def _unfinished(event: events.Unfinished | None) -> resume_pb.UnfinishedTurn | None:
    if event is None:
        return None
    return resume_pb.UnfinishedTurn(turn_id=event.turn_id, text_code_points=event.chars, waiting_call_ids=event.waiting)


def _tool_called(event: events.ToolCalled) -> server_pb.ToolCalled:
    call = event.call
    return server_pb.ToolCalled(
        turn_id=event.turn_id,
        call=conversation_pb.ToolCall(call_id=call.call_id, name=call.name, arguments_json=call.arguments),
        item_id=call.id,
        offset_code_points=event.offset,
        timeout_ms=event.timeout_ms,
    )


def _turn_ended(event: events.TurnEnded) -> server_pb.TurnEnded:
    account = event.account
    models = (events.AnswerSource.MODEL, events.AnswerSource.FALLBACK_MODEL)
    by_model = event.source in models and account.output_tokens > 0
    answered = by_model or event.source not in models
    message = server_pb.TurnEnded(
        turn_id=event.turn_id,
        reason=_TURN_ENDS[event.reason],
        source=_SOURCES[event.source] if answered else server_pb.ANSWER_SOURCE_UNSPECIFIED,
        model=event.model if by_model else "",
        text=event.text,
        usage=report.usage(account),
        timings=report.timings(account),
        answered_ahead=account.released > 0,
        history_version=event.history.version,
        item_ids=event.history.item_ids,
        used_tokens=event.history.used_tokens,
    )
    if by_model:
        message.drafting.CopyFrom(report.drafting(account.stats))
    return message


def _turn_waiting(event: events.TurnWaiting) -> server_pb.TurnWaiting:
    return server_pb.TurnWaiting(
        turn_id=event.turn_id,
        call_ids=event.call_ids,
        usage=report.usage(event.account),
        timings=report.timings(event.account),
        drafting=report.drafting(event.account.stats),
        history_version=event.history.version,
    )


def _history_changed(event: events.HistoryChanged) -> server_pb.HistoryChanged:
    return server_pb.HistoryChanged(
        cause=_CAUSES[event.cause],
        history_version=event.history.version,
        item_ids=event.history.item_ids,
        kept_tokens=event.kept_tokens,
        summary=event.summary,
        used_tokens=event.history.used_tokens,
    )


def _generated(event: events.Generated) -> server_pb.Generated:
    return server_pb.Generated(
        request_id=event.request_id,
        text=event.text,
        reason=_TURN_ENDS[event.reason],
        model=event.model,
        usage=report.usage(event.account),
        timings=report.timings(event.account),
        drafting=report.drafting(event.account.stats),
    )


def _interrupted(event: events.Interrupted) -> server_pb.Interrupted:
    return server_pb.Interrupted(
        turn_id=event.turn_id,
        text=event.text,
        text_code_points=len(event.text),
        history_version=event.history.version,
        used_tokens=event.history.used_tokens,
    )


def _notice(event: events.Notice) -> notices_pb.Notice:
    match event:
        case events.Draining():
            draining = notices_pb.Draining(grace_ms=event.grace_ms, successor_address=event.successor)
            return notices_pb.Notice(message="the service is about to stop", draining=draining)
        case events.ModeChange():
            change = notices_pb.ModeChange(mode=event.mode, reason=event.reason)
            return notices_pb.Notice(message=f"drafted by {event.mode}", turn_id=event.turn_id, mode_change=change)
        case events.Durability():
            message = "the store keeps up" if event.durable else "the store does not keep up; the call goes on"
            return notices_pb.Notice(message=message, durability=notices_pb.Durability(durable=event.durable))
        case events.ResumeToken():
            return notices_pb.Notice(message="a new resume token", resume_token=_resume_token(event))
        case events.DeadlineAtRisk():
            deadline_ms, expected = round(event.deadline_s * 1000), event.expected_s
            expected_us = None if expected is None else round(expected * 1e6)
            risk = notices_pb.DeadlineAtRisk(deadline_ms=deadline_ms, expected_first_token_us=expected_us)
            when = "nobody knows when it will be there" if expected is None else f"it will take {expected * 1000:.0f}"
            message = f"the first token was wanted within {deadline_ms} ms; {when}"
            return notices_pb.Notice(message=message, turn_id=event.turn_id, deadline_at_risk=risk)
        case events.FallbackTaken():
            taken = notices_pb.FallbackTaken(index=event.index, model=event.model)
            message = f"{event.model or 'a holding phrase'} answers"
            return notices_pb.Notice(message=message, turn_id=event.turn_id, fallback_taken=taken)
        case events.ContextNearlyFull():
            used, limit = event.used_tokens, event.max_context_tokens
            full = notices_pb.ContextNearlyFull(used_tokens=used, max_context_tokens=limit)
            return notices_pb.Notice(message=f"{used} of {limit} tokens are in use", context_nearly_full=full)
        case events.PrefilledAhead():
            prefilled = notices_pb.PrefilledAhead(
                revision=event.revision,
                hypothesis_tokens=event.tokens,
                rewound_tokens=event.rewound,
                computed_tokens=event.computed,
            )
            message = f"{event.computed} tokens computed ahead, {event.rewound} rewound"
            return notices_pb.Notice(message=message, turn_id=event.turn_id, prefilled_ahead=prefilled)
        case events.AnsweringAhead():
            ahead = notices_pb.AnswerAheadProgress(state=_AHEAD_STATES[event.state], held_tokens=event.tokens)
            message = f"a reply made ahead, {event.tokens} tokens: {event.state.value}"
            return notices_pb.Notice(message=message, turn_id=event.turn_id, answer_ahead=ahead)
        case events.EngineRestarted():
            message = "the engine was restarted; replies go on where they were"
            return notices_pb.Notice(message=message, engine_restarted=notices_pb.EngineRestarted(model=event.model))
        case events.ToolTimedOut():
            late = notices_pb.ToolTimedOut(call_id=event.call_id, timeout_ms=event.timeout_ms)
            message = f"tool call {event.call_id} had no result after {event.timeout_ms} ms"
            return notices_pb.Notice(message=message, turn_id=event.turn_id, tool_timed_out=late)
        case events.LimitReached():
            reached = notices_pb.LimitReached(guardrail=_GUARDRAILS[event.guardrail], limit=event.limit)
            message = f"{event.guardrail.value} has reached its limit of {event.limit}"
            return notices_pb.Notice(message=message, turn_id=event.turn_id, limit_reached=reached)


def _error(event: events.Failure) -> error_pb.Error:
    problem = event.problem
    retry = None if problem.retry_after_s is None else round(problem.retry_after_s * 1000)
    return error_pb.Error(
        code=error_pb.ErrorCode.ValueType(STATUS[problem.reason].value[0]),
        reason=problem.reason.value,
        message=problem.message,
        field=problem.field,
        metadata=problem.metadata,
        retry_after_ms=retry,
        turn_id=event.turn_id,
        client_seq=event.client_seq,
        request_id=event.request_id or None,
    )
