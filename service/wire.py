"""Between the protobuf messages of ``firstword.v1`` and the values of ``service.events``; checks what comes in.

Whatever a client can get wrong in one event is found here or by the call, and named by its field's path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.message import Message

from engine.errors import InvalidSampling
from engine.session import TurnStats
from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from firstword.v1 import conversation_pb2 as conversation_pb
from firstword.v1 import error_pb2 as error_pb
from firstword.v1 import notices_pb2 as notices_pb
from firstword.v1 import options_pb2 as options_pb
from firstword.v1 import server_events_pb2 as server_pb
from firstword.v1 import turn_report_pb2 as report_pb
from service import __version__, events
from service.errors import STATUS
from service.items import Item, MessageItem, Role, ToolCallItem, ToolDefinition, ToolResultItem
from service.problems import Problem, invalid, unimplemented
from service.telemetry import TurnRecord

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
MAX_NAME_BYTES = 128
PLAIN = "plain"
"""The drafting mode of a reply for which nobody drafts."""

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ROLES: Mapping[int, Role] = {
    conversation_pb.ROLE_SYSTEM: "system",
    conversation_pb.ROLE_USER: "user",
    conversation_pb.ROLE_ASSISTANT: "assistant",
}
_TURN_ENDS = {
    events.TurnEnd.COMPLETED: server_pb.TURN_END_REASON_COMPLETED,
    events.TurnEnd.LENGTH: server_pb.TURN_END_REASON_LENGTH,
    events.TurnEnd.CONTEXT_FULL: server_pb.TURN_END_REASON_CONTEXT_FULL,
    events.TurnEnd.INTERRUPTED: server_pb.TURN_END_REASON_INTERRUPTED,
    events.TurnEnd.LIMIT_REACHED: server_pb.TURN_END_REASON_LIMIT_REACHED,
    events.TurnEnd.FAILED: server_pb.TURN_END_REASON_FAILED,
}


# What a client says


def client_event(request: call_pb.CallRequest) -> events.ClientEvent:
    """The event of a request. What cannot be used becomes ``Malformed``, which says why."""
    name = request.WhichOneof("event")
    if name is None:
        return events.Malformed(invalid("event", "the request holds no event that this version knows"))
    message = getattr(request, name)
    try:
        return _client_event(name, request)
    except Problem as problem:
        request_id = getattr(message, "request_id", 0)
        return events.Malformed(problem, getattr(message, "turn_id", 0), request_id)


def _client_event(name: str, request: call_pb.CallRequest) -> events.ClientEvent:
    match name:
        case "open":
            return _open(request.open)
        case "speech_started":
            return events.SpeechStarted()
        case "partial":
            partial = request.partial
            if partial.HasField("stable_code_points") and partial.stable_code_points > len(partial.text):
                raise invalid("partial.stable_code_points", "is longer than the text")
            return events.Partial(_turn_id(partial.turn_id, name), partial.revision, partial.text)
        case "final":
            final = request.final
            text = _present(final.text, "final.text")
            return events.Final(_turn_id(final.turn_id, name), text, _options(final.options, name), final.item_id)
        case "respond":
            return events.Respond(_turn_id(request.respond.turn_id, name), _options(request.respond.options, name))
        case "say":
            say = request.say
            text = _present(say.text, "say.text")
            return events.Say(_turn_id(say.turn_id, name), text, say.item_id, say.traceparent, say.tracestate)
        case "interrupt":
            interrupt = request.interrupt
            heard = _heard(interrupt.heard, f"{name}.heard") if interrupt.HasField("heard") else None
            return events.Interrupt(_turn_id(interrupt.turn_id, name), heard)
        case "playback_progress":
            progress = request.playback_progress
            return events.Playback(_turn_id(progress.turn_id, name), _heard(progress.heard, f"{name}.heard"))
        case "tool_result":
            result = request.tool_result
            return events.ToolResult(
                turn_id=_turn_id(result.turn_id, name),
                call_id=_present(result.call_id, "tool_result.call_id"),
                output=result.output,
                is_error=result.is_error,
                no_reply=result.no_reply,
                item_id=result.item_id,
            )
        case "acknowledge":
            return events.Acknowledge(request.acknowledge.seq)
        case "close":
            return events.CloseCall()
        case _:
            raise unimplemented(name)


def _turn_id(turn_id: int, event: str) -> int:
    if turn_id < 1:
        raise invalid(f"{event}.turn_id", "must be 1 or more")
    return turn_id


def _present(text: str, path: str) -> str:
    if not text:
        raise invalid(path, "must not be empty")
    return text


def _open(message: client_pb.Open) -> events.Open:
    _refuse_unimplemented(message)
    name = message.session_id
    if len(name) > MAX_NAME_BYTES or not (name.isascii() and (name.isprintable() or not name)):
        raise invalid("open.session_id", f"must be at most {MAX_NAME_BYTES} bytes of printable ASCII")
    if message.sampling.HasField("seed"):
        raise invalid("open.sampling.seed", "is a turn's; the call's is open.seed")
    limits, policy = message.limits, message.context_policy
    return events.Open(
        session_id=name,
        model=message.model,
        system=message.system_prompt,
        items=_items(message.items),
        tools=_tools(message.tools),
        generation=_generation(message.sampling, "open.sampling"),
        seed=message.seed if message.HasField("seed") else None,
        limits=events.Limits(
            max_turns=_given(limits, "max_turns"),
            max_output_tokens_per_turn=_given(limits, "max_output_tokens_per_turn"),
            max_input_code_points=_given(limits, "max_input_code_points"),
        ),
        announce_at_tokens=_given(policy, "announce_at_tokens"),
        first_token_deadline_ms=_deadline(message, "open"),
    )


_LIMITS = {"max_turns", "max_output_tokens_per_turn", "max_input_code_points"}


def _refuse_unimplemented(message: client_pb.Open) -> None:
    """Everything that an open event can ask for and this version cannot do."""
    policy = message.context_policy
    refuse = (options_pb.CONTEXT_FULL_ACTION_UNSPECIFIED, options_pb.CONTEXT_FULL_ACTION_REFUSE)
    asked = {
        "open.resume": message.HasField("resume"),
        "open.context_policy.action": policy.action not in refuse,
        "open.context_policy.keep_tokens": policy.HasField("keep_tokens"),
        "open.context_policy.summary_instructions": bool(policy.summary_instructions),
        "open.answer_ahead": message.HasField("answer_ahead"),
        "open.fallbacks": len(message.fallbacks) > 0,
        "open.progress_notices": message.progress_notices,
        "open.tools.timeout_ms": any(tool.HasField("timeout_ms") for tool in message.tools),
        **{f"open.limits.{f.name}": f.name not in _LIMITS for f, _ in message.limits.ListFields()},
    }
    _refuse_constraints(message.tool_choice, message.response_format, "open")
    for name, present in asked.items():
        if present:
            raise unimplemented(name)


def _refuse_constraints(choice: conversation_pb.ToolChoice, form: conversation_pb.ResponseFormat, path: str) -> None:
    auto = (conversation_pb.TOOL_CHOICE_MODE_UNSPECIFIED, conversation_pb.TOOL_CHOICE_MODE_AUTO)
    if choice.mode not in auto or choice.tool_name or choice.HasField("parallel"):
        raise unimplemented(f"{path}.tool_choice")
    if form.WhichOneof("format") is not None:
        raise unimplemented(f"{path}.response_format")


def _items(messages: Iterable[conversation_pb.Item]) -> tuple[Item, ...]:
    """Prior items. A result takes its tool's name from the call that it answers."""
    items: list[Item] = []
    calls: dict[str, str] = {}
    ids: set[str] = set()
    for index, message in enumerate(messages):
        path = f"open.items[{index}]"
        if message.item_id and message.item_id in ids:
            raise invalid(f"{path}.item_id", "is another item's")
        ids.add(message.item_id)
        item = _item(message, path, calls)
        if isinstance(item, ToolCallItem):
            calls[item.call_id] = item.name
        items.append(item)
    return tuple(items)


def _item(item: conversation_pb.Item, path: str, calls: Mapping[str, str]) -> Item:
    match item.WhichOneof("content"):
        case "message":
            role = _ROLES.get(item.message.role)
            if role is None:
                raise invalid(f"{path}.message.role", "must be system, user or assistant")
            if item.message.interrupted and role != "assistant":
                raise invalid(f"{path}.message.interrupted", "is only for the assistant")
            return MessageItem(item.item_id, role, item.message.text, item.message.interrupted)
        case "tool_call":
            call = item.tool_call
            _json_object(call.arguments_json, f"{path}.tool_call.arguments_json")
            call_id = _present(call.call_id, f"{path}.tool_call.call_id")
            name = _present(call.name, f"{path}.tool_call.name")
            return ToolCallItem(item.item_id, call_id, name, call.arguments_json or "{}")
        case "tool_output":
            output = item.tool_output
            if output.call_id not in calls:
                raise invalid(f"{path}.tool_output.call_id", "is no earlier item's")
            return ToolResultItem(
                item.item_id, output.call_id, output.name or calls[output.call_id], output.output, output.is_error
            )
        case _:
            raise invalid(f"{path}.content", "must be set")


def _tools(tools: Sequence[conversation_pb.Tool]) -> tuple[ToolDefinition, ...]:
    definitions: dict[str, ToolDefinition] = {}
    for index, tool in enumerate(tools):
        path = f"open.tools[{index}]"
        if not _TOOL_NAME.fullmatch(tool.name) or tool.name in definitions:
            raise invalid(f"{path}.name", "must be 1 to 64 letters, digits, _, - or ., and unique")
        schema = _json_object(tool.parameters_json_schema, f"{path}.parameters_json_schema")
        if not isinstance(schema.get("properties", {}), dict):
            raise invalid(f"{path}.parameters_json_schema", "must be the JSON Schema of an object")
        parameters = {"type": "object", "properties": {}, **schema}
        definitions[tool.name] = ToolDefinition(tool.name, tool.description, parameters)
    return tuple(definitions.values())


def _json_object(text: str, path: str) -> dict[str, object]:
    """The JSON object in ``text``; an empty one for an empty text."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid(path, "is not JSON") from None
    if not isinstance(value, dict):
        raise invalid(path, "must be the JSON text of an object")
    return value


def _given(message: Message, name: str) -> int | None:
    """The value of an optional field; None when it is absent."""
    return int(getattr(message, name)) if message.HasField(name) else None


def _deadline(message: client_pb.Open | options_pb.TurnOptions, path: str) -> int | None:
    deadline = _given(message, "first_token_deadline_ms")
    if deadline == 0:
        raise invalid(f"{path}.first_token_deadline_ms", "must be 1 or more")
    return deadline


def _options(options: options_pb.TurnOptions, event: str) -> events.TurnOptions:
    path = f"{event}.options"
    _refuse_constraints(options.tool_choice, options.response_format, path)
    if options.drafting_mode not in ("", PLAIN):
        raise invalid(f"{path}.drafting_mode", f"must be empty or {PLAIN}")
    return events.TurnOptions(
        traceparent=options.traceparent,
        tracestate=options.tracestate,
        first_token_deadline_ms=_deadline(options, path),
        generation=_generation(options.sampling, f"{path}.sampling", drafting=False if options.drafting_mode else None),
    )


def _generation(message: options_pb.Sampling, path: str, *, drafting: bool | None = None) -> events.GenerationPatch:
    def number(name: str) -> float | None:
        return float(getattr(message, name)) if message.HasField(name) else None  # type: ignore[arg-type]

    patch = events.GenerationPatch(
        temperature=number("temperature"),
        top_k=_given(message, "top_k"),
        top_p=number("top_p"),
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
        seed=_given(message, "seed"),
        max_tokens=_given(message, "max_output_tokens"),
        stop_strings=tuple(message.stop_strings),
        stop_token_ids=frozenset(message.stop_token_ids),
        drafting=drafting,
    )
    if patch.max_tokens == 0:
        raise invalid(f"{path}.max_output_tokens", "must be 1 or more")
    if len(patch.stop_strings) > MAX_STOP_STRINGS:
        raise invalid(f"{path}.stop_strings", f"must be at most {MAX_STOP_STRINGS}")
    if not all(0 < len(stop.encode()) <= MAX_STOP_STRING_BYTES for stop in patch.stop_strings):
        raise invalid(f"{path}.stop_strings", f"must each have 1 to {MAX_STOP_STRING_BYTES} bytes")
    try:
        patch.apply(events.Generation())
    except InvalidSampling as error:
        name, _, rest = str(error).partition(" ")
        raise invalid(f"{path}.{name}", rest) from None
    return patch


def _heard(heard: client_pb.Heard, path: str) -> events.Heard:
    words = tuple(_word(word, f"{path}.words[{index}]") for index, word in enumerate(heard.words))
    match heard.WhichOneof("measure"):
        case "text":
            return events.Heard(text=heard.text, words=words)
        case "code_points":
            return events.Heard(chars=heard.code_points, words=words)
        case "played_ms":
            return events.Heard(played_ms=heard.played_ms, words=words)
        case _:
            raise invalid(f"{path}.measure", "must be set")


def _word(word: client_pb.WordTiming, path: str) -> events.WordTiming:
    match word.WhichOneof("place"):
        case "end_code_points":
            return events.WordTiming(word.end_ms, end_chars=word.end_code_points)
        case "word":
            return events.WordTiming(word.end_ms, word=_present(word.word, f"{path}.word"))
        case _:
            raise invalid(f"{path}.place", "must be set")


# What a call says


def response(envelope: events.Envelope) -> call_pb.CallResponse:
    """The message of a server event."""
    message = call_pb.CallResponse(
        generation=envelope.generation,
        seq=envelope.seq,
        durable_seq=envelope.durable_seq,
        client_seq=envelope.client_seq,
    )
    event = envelope.event
    match event:
        case events.TextDelta():
            _fill_delta(message.text_delta, event)
        case events.Opened():
            message.opened.CopyFrom(_opened(event))
        case events.ToolCalled():
            call = event.call
            message.tool_called.turn_id, message.tool_called.item_id = event.turn_id, call.id
            message.tool_called.offset_code_points = event.offset
            made = message.tool_called.call
            made.call_id, made.name, made.arguments_json = call.call_id, call.name, call.arguments
        case events.TurnEnded():
            message.turn_ended.CopyFrom(_turn_ended(event))
        case events.TurnWaiting():
            message.turn_waiting.CopyFrom(_turn_waiting(event))
        case events.Interrupted():
            message.interrupted.CopyFrom(
                server_pb.Interrupted(
                    turn_id=event.turn_id,
                    text=event.text,
                    text_code_points=len(event.text),
                    history_version=event.history.version,
                    used_tokens=event.history.used_tokens,
                )
            )
        case events.Draining() | events.ContextNearlyFull() | events.EngineRestarted():
            message.notice.CopyFrom(_notice(event))
        case events.Failure():
            message.error.CopyFrom(_error(event))
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
        limits=options_pb.Limits(
            max_turns=event.limits.max_turns,
            max_output_tokens_per_turn=event.limits.max_output_tokens_per_turn,
            max_input_code_points=event.limits.max_input_code_points,
        ),
        history_version=event.history_version,
        item_ids=event.item_ids,
        drafting_modes=[PLAIN],
        service_version=__version__,
    )


def _turn_ended(event: events.TurnEnded) -> server_pb.TurnEnded:
    account = event.account
    given = server_pb.ANSWER_SOURCE_GIVEN_TEXT
    message = server_pb.TurnEnded(
        turn_id=event.turn_id,
        reason=_TURN_ENDS[event.reason],
        source=server_pb.ANSWER_SOURCE_MODEL if event.generated else given,
        model=event.model if event.generated else "",
        text=event.text,
        usage=_usage(account),
        timings=_timings(account),
        history_version=event.history.version,
        item_ids=event.history.item_ids,
        used_tokens=event.history.used_tokens,
    )
    if account.stats:
        message.drafting.CopyFrom(_drafting(account.stats))
    return message


def _turn_waiting(event: events.TurnWaiting) -> server_pb.TurnWaiting:
    return server_pb.TurnWaiting(
        turn_id=event.turn_id,
        call_ids=event.call_ids,
        usage=_usage(event.account),
        timings=_timings(event.account),
        drafting=_drafting(event.account.stats),
        history_version=event.history.version,
    )


def _usage(account: TurnRecord) -> report_pb.TokenUsage:
    """The prompt is the last generation's, what was cached of it the first one's."""
    return report_pb.TokenUsage(
        prompt_tokens=account.stats[-1].prompt_tokens if account.stats else 0,
        cached_tokens=account.stats[0].cached_tokens if account.stats else 0,
        completion_tokens=account.output_tokens,
    )


def _timings(account: TurnRecord) -> report_pb.TurnTimings:
    """Queue and prefill are those of the first generation; decoding adds up over all."""
    first = account.stats[0] if account.stats else TurnStats(submitted=0.0)
    decoding = [us for stats in account.stats if (us := _us(stats.first_token, stats.ended)) is not None]
    return report_pb.TurnTimings(
        queue_us=_us(account.committed, first.started),
        prefill_us=_us(first.started, first.first_token),
        first_token_us=_us(account.committed, first.first_token),
        first_text_us=_us(account.committed, account.first_text),
        first_clause_us=_us(account.committed, account.first_clause),
        decode_us=sum(decoding) if decoding else None,
        tool_wait_us=round(account.tool_wait_s * 1e6) if account.tool_wait_s else None,
        total_us=_us(account.committed, account.ended) or 0,
    )


def _us(start: float, end: float) -> int | None:
    """Microseconds from one moment to another; None where either did not come."""
    return round((end - start) * 1e6) if start and end >= start else None


def _drafting(generations: Sequence[TurnStats]) -> report_pb.DraftingStatistics:
    """Over all generations of a turn, each of which is a phase unless it was drafted as the one before."""
    depth = max(len(stats.drafted_at) for stats in generations)
    message = report_pb.DraftingStatistics(
        steps=sum(stats.steps for stats in generations),
        drafted_tokens=sum(stats.drafted for stats in generations),
        accepted_tokens=sum(stats.accepted for stats in generations),
        drafted_steps_at_depth=[
            sum(stats.drafted_at[d] for stats in generations if d < len(stats.drafted_at)) for d in range(depth)
        ],
        accepted_steps_at_depth=[
            sum(stats.accepted_at[d] for stats in generations if d < len(stats.accepted_at)) for d in range(depth)
        ],
        draft_us=round(sum(stats.draft_seconds for stats in generations) * 1e6),
        forward_us=round(sum(stats.forward_seconds for stats in generations) * 1e6),
    )
    for stats in generations:
        if not message.phases or message.phases[-1].mode != stats.mode:
            message.phases.add(mode=stats.mode, reason=stats.reason)
        phase = message.phases[-1]
        phase.steps += stats.steps
        phase.drafted_tokens += stats.drafted
        phase.accepted_tokens += stats.accepted
    return message


def _notice(event: events.Notice) -> notices_pb.Notice:
    match event:
        case events.Draining():
            draining = notices_pb.Draining(grace_ms=event.grace_ms)
            return notices_pb.Notice(message="the service is about to stop", draining=draining)
        case events.ContextNearlyFull():
            used, limit = event.used_tokens, event.max_context_tokens
            full = notices_pb.ContextNearlyFull(used_tokens=used, max_context_tokens=limit)
            return notices_pb.Notice(message=f"{used} of {limit} tokens are in use", context_nearly_full=full)
        case events.EngineRestarted():
            message = "the engine was restarted; replies go on where they were"
            return notices_pb.Notice(message=message, engine_restarted=notices_pb.EngineRestarted(model=event.model))


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
