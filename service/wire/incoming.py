"""Reads one client event. Whatever is wrong with it is found here or by the call, and named by its field's path."""

from __future__ import annotations

import logging
from dataclasses import replace

from firstword.v1 import call_service_pb2 as call_pb
from firstword.v1 import client_events_pb2 as client_pb
from service import client_events as events
from service.problems import Problem, Reason, invalid, unimplemented
from service.wire.fields import at_least_one, given, present
from service.wire.opening import items, opening, resume, update
from service.wire.options import generation, text_schema, turn_options

log = logging.getLogger(__name__)


def client_event(request: call_pb.CallRequest) -> events.ClientEvent:
    """The event of a request. What cannot be used becomes ``Malformed``, which says why."""
    name = request.WhichOneof("event")
    if name is None:
        return events.Malformed(invalid("event", "the request holds no event that this version knows"))
    message = getattr(request, name)
    try:
        return _client_event(name, request)
    except Problem as caught:
        problem = caught
    except Exception:  # ours to find out; the event has changed nothing, and the call goes on
        log.exception("client event cannot be read", extra={"event": name})
        problem = Problem(Reason.INTERNAL, "the service failed on this event")
    return events.Malformed(problem, getattr(message, "turn_id", 0), getattr(message, "request_id", 0))


def _client_event(name: str, request: call_pb.CallRequest) -> events.ClientEvent:
    match name:
        case "open":
            return resume(request.open) if request.open.HasField("resume") else opening(request.open)
        case "speech_started":
            return events.SpeechStarted()
        case "partial":
            return _partial(request.partial)
        case "eager_end_of_turn":
            return _eager_end_of_turn(request.eager_end_of_turn)
        case "turn_resumed":
            return events.TurnResumed(_turn_id(request.turn_resumed.turn_id, name))
        case "final":
            return _final(request.final)
        case "respond":
            respond = request.respond
            return events.Respond(_turn_id(respond.turn_id, name), turn_options(respond.options, name))
        case "say":
            return _say(request.say)
        case "interrupt":
            return _interrupt(request.interrupt)
        case "playback_progress":
            progress = request.playback_progress
            return events.Playback(_turn_id(progress.turn_id, name), _heard(progress.heard, f"{name}.heard"))
        case "tool_result":
            return _tool_result(request.tool_result)
        case "items":
            version = given(request.items, "history_version")
            return events.Items(items(request.items.items, "items.items"), version)
        case "update":
            return update(request.update)
        case "generate":
            return _generate(request.generate)
        case "cancel_generate":
            return events.CancelGenerate(request.cancel_generate.request_id)
        case "acknowledge":
            return events.Acknowledge(request.acknowledge.seq)
        case "close":
            return events.CloseCall(request.close.forget)
        case _:
            raise unimplemented(name)


def _turn_id(turn_id: int, event: str) -> int:
    if turn_id < 1:
        raise invalid(f"{event}.turn_id", "must be 1 or more")
    return turn_id


def _partial(partial: client_pb.Partial) -> events.Partial:
    if partial.stable_code_points > len(partial.text):
        raise invalid("partial.stable_code_points", "is longer than the text")
    turn_id = _turn_id(partial.turn_id, "partial")
    return events.Partial(turn_id, partial.revision, partial.text, partial.stable_code_points)


def _eager_end_of_turn(eager: client_pb.EagerEndOfTurn) -> events.EagerEndOfTurn:
    return events.EagerEndOfTurn(
        turn_id=_turn_id(eager.turn_id, "eager_end_of_turn"),
        revision=eager.revision,
        text=present(eager.text, "eager_end_of_turn.text"),
        options=turn_options(eager.options, "eager_end_of_turn"),
    )


def _final(final: client_pb.Final) -> events.Final:
    return events.Final(
        turn_id=_turn_id(final.turn_id, "final"),
        text=present(final.text, "final.text"),
        options=turn_options(final.options, "final"),
        item_id=final.item_id,
    )


def _say(say: client_pb.Say) -> events.Say:
    return events.Say(
        turn_id=_turn_id(say.turn_id, "say"),
        text=present(say.text, "say.text"),
        item_id=say.item_id,
        traceparent=say.traceparent,
        tracestate=say.tracestate,
    )


def _interrupt(interrupt: client_pb.Interrupt) -> events.Interrupt:
    heard = _heard(interrupt.heard, "interrupt.heard") if interrupt.HasField("heard") else None
    return events.Interrupt(_turn_id(interrupt.turn_id, "interrupt"), heard)


def _tool_result(result: client_pb.ToolResult) -> events.ToolResult:
    return events.ToolResult(
        turn_id=_turn_id(result.turn_id, "tool_result"),
        call_id=present(result.call_id, "tool_result.call_id"),
        output=result.output,
        is_error=result.is_error,
        no_reply=result.no_reply,
        item_id=result.item_id,
    )


def _generate(generate: client_pb.Generate) -> events.Generate:
    if generate.request_id < 1:
        raise invalid("generate.request_id", "must be 1 or more")
    if generate.WhichOneof("prompt") is None:
        raise invalid("generate.prompt", "must be set")
    own = generate.WhichOneof("prompt") == "conversation"
    return events.Generate(
        request_id=generate.request_id,
        question="" if own else present(generate.question, "generate.question"),
        items=items(generate.conversation.items, "generate.conversation.items") if own else None,
        generation=replace(
            generation(generate.sampling, "generate.sampling"), text_schema=text_schema(generate, "generate")
        ),
        timeout_ms=at_least_one(generate, "timeout_ms", "generate"),
        traceparent=generate.traceparent,
        tracestate=generate.tracestate,
    )


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
            return events.WordTiming(word.end_ms, word=present(word.word, f"{path}.word"))
        case _:
            raise invalid(f"{path}.place", "must be set")
