"""Between the values of this package and the messages of ``firstword.v1``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message as ProtoMessage

from firstword import events
from firstword.types import (
    AnswerAhead,
    ContextPolicy,
    Fallback,
    Item,
    Limits,
    Message,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    TurnOptions,
    WordTiming,
)
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import notices_pb2 as notices_pb
from firstword.v1 import options_pb2 as options_pb
from firstword.v1 import server_events_pb2 as server_pb
from firstword.v1 import turn_report_pb2 as report_pb

_ROLES: Mapping[Role, conversation_pb.Role.ValueType] = {
    "system": conversation_pb.ROLE_SYSTEM,
    "user": conversation_pb.ROLE_USER,
    "assistant": conversation_pb.ROLE_ASSISTANT,
}
_TOOL_MODES = {
    "auto": conversation_pb.TOOL_CHOICE_MODE_AUTO,
    "none": conversation_pb.TOOL_CHOICE_MODE_NONE,
    "required": conversation_pb.TOOL_CHOICE_MODE_REQUIRED,
}
_CONTEXT_ACTIONS = {
    "": options_pb.CONTEXT_FULL_ACTION_UNSPECIFIED,
    "refuse": options_pb.CONTEXT_FULL_ACTION_REFUSE,
    "drop_oldest": options_pb.CONTEXT_FULL_ACTION_DROP_OLDEST,
    "summarise": options_pb.CONTEXT_FULL_ACTION_SUMMARISE,
}
_END_REASONS = {
    server_pb.TURN_END_REASON_COMPLETED: events.EndReason.COMPLETED,
    server_pb.TURN_END_REASON_LENGTH: events.EndReason.LENGTH,
    server_pb.TURN_END_REASON_CONTEXT_FULL: events.EndReason.CONTEXT_FULL,
    server_pb.TURN_END_REASON_INTERRUPTED: events.EndReason.INTERRUPTED,
    server_pb.TURN_END_REASON_LIMIT_REACHED: events.EndReason.LIMIT_REACHED,
    server_pb.TURN_END_REASON_FAILED: events.EndReason.FAILED,
}
_CAUSES = {
    server_pb.HISTORY_CAUSE_ITEMS: events.HistoryCause.ITEMS,
    server_pb.HISTORY_CAUSE_UPDATE: events.HistoryCause.UPDATE,
    server_pb.HISTORY_CAUSE_DROPPED_OLDEST: events.HistoryCause.DROPPED_OLDEST,
    server_pb.HISTORY_CAUSE_SUMMARISED: events.HistoryCause.SUMMARISED,
    server_pb.HISTORY_CAUSE_TOOL_RESULT: events.HistoryCause.TOOL_RESULT,
}
_SOURCES = {
    server_pb.ANSWER_SOURCE_MODEL: events.AnswerSource.MODEL,
    server_pb.ANSWER_SOURCE_FALLBACK_MODEL: events.AnswerSource.FALLBACK_MODEL,
    server_pb.ANSWER_SOURCE_FALLBACK_PHRASE: events.AnswerSource.FALLBACK_PHRASE,
    server_pb.ANSWER_SOURCE_GIVEN_TEXT: events.AnswerSource.GIVEN_TEXT,
}


# What a client says


def item(given: Item) -> conversation_pb.Item:
    """Raises ValueError for a role that there is not, TypeError for arguments that are not JSON."""
    match given:
        case Message():
            if given.role not in _ROLES:
                raise ValueError(f"a message is of {', '.join(_ROLES)}, not of {given.role!r}")
            message = conversation_pb.Message(role=_ROLES[given.role], text=given.text, interrupted=given.interrupted)
            return conversation_pb.Item(item_id=given.item_id, message=message)
        case ToolCall():
            call = conversation_pb.ToolCall(
                call_id=given.call_id, name=given.name, arguments_json=json_text(given.arguments)
            )
            return conversation_pb.Item(item_id=given.item_id, tool_call=call)
        case ToolResult():
            output = conversation_pb.ToolOutput(
                call_id=given.call_id, output=given.output, is_error=given.is_error, name=given.name
            )
            return conversation_pb.Item(item_id=given.item_id, tool_output=output)


def tool(given: Tool) -> conversation_pb.Tool:
    return conversation_pb.Tool(
        name=given.name,
        description=given.description,
        parameters_json_schema=json_text(given.parameters) if given.parameters else "",
        timeout_ms=given.timeout_ms,
    )


def sampling(given: Sampling, *, seed: bool) -> options_pb.Sampling:
    """``seed``: with it; the call's seed stands elsewhere."""
    return options_pb.Sampling(
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        min_p=given.min_p,
        repetition_penalty=given.repetition_penalty,
        seed=given.seed if seed else None,
        max_output_tokens=given.max_tokens,
        stop_strings=given.stop,
        stop_token_ids=given.stop_token_ids,
    )


def limits(given: Limits) -> options_pb.Limits:
    return options_pb.Limits(**dataclasses.asdict(given))


def context_policy(given: ContextPolicy) -> options_pb.ContextPolicy:
    """Raises ValueError for an action that there is not."""
    if given.action not in _CONTEXT_ACTIONS:
        raise ValueError(f"a full context is met by {', '.join(filter(None, _CONTEXT_ACTIONS))}, not {given.action!r}")
    return options_pb.ContextPolicy(
        action=_CONTEXT_ACTIONS[given.action],
        announce_at_tokens=given.announce_at_tokens,
        keep_tokens=given.keep_tokens,
        summary_instructions=given.summary_instructions,
    )


def fallback(given: Fallback) -> options_pb.Fallback:
    """Raises ValueError unless it is a model or a phrase."""
    if bool(given.model) == bool(given.phrase):
        raise ValueError("a fallback is a model or a phrase")
    if given.phrase:
        return options_pb.Fallback(phrase=given.phrase, first_token_deadline_ms=given.first_token_deadline_ms)
    return options_pb.Fallback(model=given.model, first_token_deadline_ms=given.first_token_deadline_ms)


def answer_ahead(given: AnswerAhead) -> options_pb.AnswerAhead:
    rule = options_pb.MATCH_RULE_NORMALISED_TEXT if given.normalised else options_pb.MATCH_RULE_EXACT_TOKENS
    return options_pb.AnswerAhead(match_rule=rule, max_held_tokens=given.max_held_tokens, max_held_ms=given.max_held_ms)


def options(given: TurnOptions | None) -> options_pb.TurnOptions:
    given = given or TurnOptions()
    return options_pb.TurnOptions(
        traceparent=given.traceparent,
        tracestate=given.tracestate,
        first_token_deadline_ms=given.first_token_deadline_ms,
        sampling=sampling(given.sampling, seed=True),
        tool_choice=tool_choice(given.tool_choice),
        response_format=response_format(given.response_schema),
        drafting_mode=given.drafting_mode,
    )


def tool_choice(given: ToolChoice | None) -> conversation_pb.ToolChoice | None:
    if given is None:
        return None
    if given.tool:
        return conversation_pb.ToolChoice(tool_name=given.tool, parallel=given.parallel)
    return conversation_pb.ToolChoice(mode=_TOOL_MODES[given.mode], parallel=given.parallel)


def response_format(schema: Mapping[str, Any] | None) -> conversation_pb.ResponseFormat | None:
    """An empty schema asks for any text, whatever the call has."""
    if schema is None:
        return None
    return conversation_pb.ResponseFormat(json_schema=json_text(schema)) if schema else conversation_pb.ResponseFormat()


def heard(
    *, text: str | None, code_points: int | None, ms: int | None, words: Iterable[WordTiming]
) -> client_pb.Heard | None:
    """How much was heard; None where nothing is said about it. Raises ValueError for more than one measure."""
    measures = {"text": text, "code_points": code_points, "played_ms": ms}
    given = {name: measure for name, measure in measures.items() if measure is not None}
    timings = [
        client_pb.WordTiming(end_ms=word.end_ms, word=word.word)
        if word.end_code_points is None
        else client_pb.WordTiming(end_ms=word.end_ms, end_code_points=word.end_code_points)
        for word in words
    ]
    if len(given) > 1:
        raise ValueError(f"what was heard has one measure, not {' and '.join(given)}")
    if not given and timings:
        raise ValueError("word timings need a measure of what was heard")
    fields: dict[str, Any] = {**given, "words": timings}
    return client_pb.Heard(**fields) if given else None


def json_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# What the service says


def opened(message: server_pb.Opened) -> events.Opened:
    return events.Opened(
        session_id=message.session_id,
        model=message.model,
        max_context_tokens=message.max_context_tokens,
        used_tokens=message.used_tokens,
        sampling=Sampling(
            **_present(message.sampling, ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")),
            max_tokens=message.sampling.max_output_tokens,
            stop=tuple(message.sampling.stop_strings),
            stop_token_ids=tuple(message.sampling.stop_token_ids),
        ),
        seed=message.seed,
        limits=Limits(**_present(message.limits, [field.name for field in dataclasses.fields(Limits)])),
        history_version=message.history_version,
        item_ids=tuple(message.item_ids),
        drafting_modes=tuple(message.drafting_modes),
        service_version=message.service_version,
        resume_token=message.resume_token.token,
        resumed=message.resumed,
    )


def text_delta(message: server_pb.TextDelta, received_at: float) -> events.TextDelta:
    return events.TextDelta(
        turn_id=message.turn_id,
        text=message.text,
        offset=message.offset_code_points,
        clause_ends=tuple(message.clause_end_code_points),
        spans=tuple((span.code_points, span.drafted) for span in message.spans),
        completion_tokens=message.completion_tokens,
        drafted_tokens=message.drafted_tokens,
        since_commit_ms=message.since_commit_us / 1000,
        received_at=received_at,
    )


def tool_call(message: server_pb.ToolCalled, received_at: float) -> ToolCall:
    return ToolCall(
        call_id=message.call.call_id,
        name=message.call.name,
        arguments=json.loads(message.call.arguments_json or "{}"),
        item_id=message.item_id,
        turn_id=message.turn_id,
        offset=message.offset_code_points,
        timeout_ms=message.timeout_ms if message.HasField("timeout_ms") else None,
        received_at=received_at,
    )


def waiting(message: server_pb.TurnWaiting) -> events.Waiting:
    return events.Waiting(
        turn_id=message.turn_id,
        call_ids=tuple(message.call_ids),
        usage=_usage(message.usage),
        timings=_timings(message.timings),
        drafting=_drafting(message.drafting),
        history_version=message.history_version,
    )


def interrupted(message: server_pb.Interrupted) -> events.Interrupted:
    return events.Interrupted(message.turn_id, message.text, message.history_version, message.used_tokens)


def notice(message: notices_pb.Notice) -> events.Notice:
    kind = message.WhichOneof("kind")
    detail: ProtoMessage | None = getattr(message, kind) if kind else None
    return events.Notice(
        kind=kind or "",
        message=message.message,
        turn_id=message.turn_id if message.HasField("turn_id") else None,
        details={field.name: _detail(detail, field) for field in detail.DESCRIPTOR.fields} if detail else {},
    )


def _detail(message: ProtoMessage, field: Any) -> Any:
    """A field of a notice; an enum by its name, such as ``released`` for ``ANSWER_AHEAD_STATE_RELEASED``."""
    value = getattr(message, field.name)
    if field.enum_type is None or value not in field.enum_type.values_by_number:
        return value
    names = [known.name for known in field.enum_type.values]
    begin = len(os.path.commonprefix(names))  # noqa: RUF071 (of names, by characters)
    return field.enum_type.values_by_number[value].name[begin:].lower()


def turn_report(message: server_pb.TurnEnded) -> events.TurnReport:
    return events.TurnReport(
        turn_id=message.turn_id,
        reason=_END_REASONS.get(message.reason, events.EndReason.UNKNOWN),
        source=_SOURCES.get(message.source, events.AnswerSource.NOBODY),
        model=message.model,
        usage=_usage(message.usage),
        timings=_timings(message.timings),
        drafting=_drafting(message.drafting) if message.HasField("drafting") else None,
        answered_ahead=message.answered_ahead,
        history_version=message.history_version,
        item_ids=tuple(message.item_ids),
        used_tokens=message.used_tokens,
        text=message.text,
    )


def history_changed(message: server_pb.HistoryChanged) -> events.HistoryChanged:
    return events.HistoryChanged(
        cause=_CAUSES.get(message.cause, events.HistoryCause.UNKNOWN),
        history_version=message.history_version,
        item_ids=tuple(message.item_ids),
        kept_tokens=message.kept_tokens,
        used_tokens=message.used_tokens,
        summary=message.summary,
    )


def generated(message: server_pb.Generated) -> events.Generated:
    return events.Generated(
        request_id=message.request_id,
        text=message.text,
        reason=_END_REASONS.get(message.reason, events.EndReason.UNKNOWN),
        model=message.model,
        usage=_usage(message.usage),
        timings=_timings(message.timings),
        drafting=_drafting(message.drafting),
    )


def _usage(message: report_pb.TokenUsage) -> events.Usage:
    return events.Usage(**{field.name: getattr(message, field.name) for field in dataclasses.fields(events.Usage)})


def _timings(message: report_pb.TurnTimings) -> events.Timings:
    names = [field.name.removesuffix("_ms") for field in dataclasses.fields(events.Timings)]
    given = _present(message, [f"{name}_us" for name in names if name != "total"])
    optional = {name: given.get(f"{name}_us") for name in names if name != "total"}
    return events.Timings(
        **{f"{name}_ms": None if us is None else us / 1000 for name, us in optional.items()},
        total_ms=message.total_us / 1000,
    )


def _drafting(message: report_pb.DraftingStatistics) -> events.Drafting:
    return events.Drafting(
        steps=message.steps,
        drafted_tokens=message.drafted_tokens,
        accepted_tokens=message.accepted_tokens,
        drafted_steps_at_depth=tuple(message.drafted_steps_at_depth),
        accepted_steps_at_depth=tuple(message.accepted_steps_at_depth),
        draft_ms=message.draft_us / 1000,
        forward_ms=message.forward_us / 1000,
        phases=tuple(
            events.DraftingPhase(phase.mode, phase.reason, phase.steps, phase.drafted_tokens, phase.accepted_tokens)
            for phase in message.phases
        ),
    )


def _present(message: ProtoMessage, names: Sequence[str]) -> dict[str, Any]:
    """The optional fields that are there, by name."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}
