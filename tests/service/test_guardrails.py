"""What a call may cost: every limit reached, and what is left of the call then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.text.call_form import HERMES
from service import client_events as client
from service import server_events as server
from service.config import CallConfig
from service.items import ToolCallItem, ToolDefinition, ToolResultItem
from service.options import GenerationPatch, Limits, ToolChoice, TurnOptions
from service.problems import Guardrail, Reason
from service.tool_results import TIMED_OUT_RESULT
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest, chat
from tests.service.test_telemetry import at_a_tool_call

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
WAIT = ToolDefinition("wait", "Wait.", NOTHING, timeout_ms=700)
MUST_CALL = TurnOptions(generation=GenerationPatch(tool_choice=ToolChoice("required", several=False)))


def opened(limits: Limits = Limits(), **fields) -> CallUnderTest:  # noqa: B008 (it is frozen)
    fields = {"system": SYSTEM, "tools": (WAIT,), "seed": 7, **fields}
    return CallUnderTest(client.Open(limits=limits, **fields))


def reached(call: CallUnderTest) -> list[tuple[Guardrail, int]]:
    return [(notice.guardrail, notice.limit) for notice in call.of(server.LimitReached)]


def ask(call: CallUnderTest, turn: int, options: TurnOptions = MUST_CALL) -> None:
    call.send(client.Final(turn, LINES[0], options))
    call.run()


def answer(call: CallUnderTest) -> None:
    called = call.of(server.ToolCalled)[-1]
    call.send(client.ToolResult(called.turn_id, called.call.call_id, '{"ok": true}'))
    call.run()


def due(call: CallUnderTest, seconds: float) -> None:
    """Let the timers run off that are due after so long."""
    ready = [timer for timer in call.timers if timer[0] == seconds]
    assert ready
    for timer in ready:
        call.timers.remove(timer)
        timer[1]()


def holds(call: CallUnderTest) -> None:
    """The engine's log is the history."""
    call.run()
    log = call.engine.log(call.call.session)
    assert len(log) >= len(call.conversation.tokens) - 2
    assert log[: len(call.conversation.tokens)] == call.conversation.tokens[: len(log)]


def test_a_call_above_a_turns_limit_is_not_made_and_ends_the_turn():
    opening, line = at_a_tool_call()
    call = CallUnderTest(replace(opening, limits=Limits(max_tool_calls_per_turn=0)))
    call.send(client.Final(1, line))
    call.run()
    assert not call.of(server.ToolCalled)
    assert reached(call) == [(Guardrail.TOOL_CALLS_PER_TURN, 0)]
    (end,) = call.of(server.TurnEnded)
    assert end.reason is server.TurnEnd.LIMIT_REACHED and end.account.output_tokens > 0
    assert call.text(1).startswith(end.text) and "<tool_call>" not in call.text(1)
    holds(call)
    call.send(client.Final(2, "Thanks, bye.", TurnOptions(generation=GenerationPatch(max_tokens=8))))
    call.run()
    assert len(call.of(server.TurnEnded)) == 2 or len(call.of(server.LimitReached)) == 2


def test_a_call_above_the_limit_beside_one_below_it_is_in_no_log():
    """The second of two that one reply has written."""
    written = ['{"name": "wait", "arguments": {"x": "}</tool_call>"}}', '{"name": "wait", "arguments": {}}']
    text = "Wait." + "".join(f"<tool_call>{call}</tool_call>" for call in written)
    call = opened()
    segment = call.conversation.begin_segment(1)
    segment.tokens, segment.text, segment.malformed_calls = chat().codec.encode(text), "Wait.", 1
    segment.calls = [ToolCallItem("a", "c", "wait", '{"x": "}</tool_call>"}')]
    call.conversation.put_heard(segment, 5, segment.calls)
    log = chat().codec.hf.decode(list(call.conversation.tokens))
    assert written[0] in log and written[1] not in log and HERMES.end_of_calls(text, 1) == text.index("<tool_call>", 9)
    assert HERMES.end_of_calls(text, 2) == len(text) == HERMES.end_of_calls(text, 3)


def test_a_turn_that_a_limit_ended_can_still_be_spoken_over():
    opening, line = at_a_tool_call()
    call = CallUnderTest(replace(opening, limits=Limits(max_tool_calls_per_turn=0)))
    call.send(client.Final(1, line))
    call.run()
    (end,) = call.of(server.TurnEnded)
    assert end.reason is server.TurnEnd.LIMIT_REACHED
    call.send(client.Playback(1, client.Heard(chars=2)), client.Final(2, LINES[1]))
    cut = [event.text for event in call.of(server.Interrupted)]
    assert all(len(text) <= 2 for text in cut) and len(cut) == (len(end.text) > 2)
    call.run()
    holds(call)


def test_the_service_has_a_limit_of_its_own_that_lowers_a_clients():
    config = CallConfig(max_tool_calls_per_turn=3, max_idle_ms=500)
    asked = client.Open(limits=Limits(max_tool_calls_per_turn=9, max_idle_ms=100, max_call_ms=5))
    (event,) = CallUnderTest(asked, config=config).of(server.Opened)
    assert (event.limits.max_tool_calls_per_turn, event.limits.max_idle_ms, event.limits.max_call_ms) == (3, 100, 5)
    assert event.limits.tool_timeout_ms is None and event.limits.max_tool_calls_per_call is None


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_call_that_has_had_its_tool_calls_goes_on_without(limit):
    call = opened(Limits(max_tool_calls_per_call=limit))
    for turn in range(1, 4):
        before = len(call.of(server.ToolCalled))
        ask(call, turn)
        if len(call.of(server.ToolCalled)) > before:
            answer(call)
    assert len(call.of(server.ToolCalled)) == limit
    assert reached(call) == ([(Guardrail.TOOL_CALLS_PER_CALL, limit)] if limit else [])
    ends = call.of(server.TurnEnded)
    assert [end.turn_id for end in ends] == [1, 2, 3]
    assert all(end.reason in (server.TurnEnd.COMPLETED, server.TurnEnd.LENGTH) for end in ends)
    holds(call)


def test_a_tool_that_does_not_answer_in_time_is_an_answer_of_its_own():
    call = opened(Limits(tool_timeout_ms=5000))
    ask(call, 1)
    (called,) = call.of(server.ToolCalled)
    assert called.timeout_ms == 700  # its own, which is shorter
    due(call, 0.7)
    (late,) = call.of(server.ToolTimedOut)
    assert (late.turn_id, late.call_id, late.timeout_ms) == (1, called.call.call_id, 700)
    call.run()
    results = [item for span in call.conversation.spans for item in span.items if isinstance(item, ToolResultItem)]
    assert [(result.output, result.is_error) for result in results] == [(TIMED_OUT_RESULT, True)]
    holds(call)


def test_a_result_in_time_and_a_turn_that_was_overtaken_call_the_timer_off():
    call = opened()
    ask(call, 1)
    answer(call)
    assert not [timer for timer in call.timers if timer[0] == 0.7]
    ask(call, 2)
    assert [timer for timer in call.timers if timer[0] == 0.7]
    call.send(client.Final(3, LINES[1], TurnOptions(generation=GenerationPatch(tool_choice=ToolChoice("none")))))
    assert not [timer for timer in call.timers if timer[0] == 0.7]
    call.run()
    assert not call.of(server.ToolTimedOut)


def test_a_time_out_after_an_interruption_leaves_the_turn_over():
    call = opened()
    ask(call, 1)
    call.send(client.Interrupt(1, None))
    due(call, 0.7)
    call.run()
    assert [end.reason for end in call.of(server.TurnEnded)] == [server.TurnEnd.INTERRUPTED]
    holds(call)


def test_a_call_that_lasts_too_long_ends_with_what_was_said():
    call = opened(Limits(max_call_ms=60_000), tools=())
    call.send(client.Final(1, LINES[0]))
    call.step_until_text()
    due(call, 60.0)
    assert reached(call) == [(Guardrail.CALL_DURATION, 60_000)]
    (problem,) = call.ended_with
    assert problem is not None and problem.reason is Reason.CALL_TOO_LONG
    assert not call.timers
    call.run()
    assert call.engine.pages_in_use == 0


def test_a_silent_client_ends_the_call_but_not_while_somebody_speaks():
    call = opened(Limits(max_idle_ms=3000), tools=())
    call.send(client.Final(1, LINES[0]))
    call.step_until_text()
    due(call, 3.0)
    assert not call.ended_with
    call.run()  # the end of the turn begins the silence
    call.send(client.Acknowledge(1))
    (timer,) = [timer for timer in call.timers if timer[0] == 3.0]
    call.send(client.Partial(2, 1, "hello"))
    assert all(other is not timer for other in call.timers)
    due(call, 3.0)
    (problem,) = call.ended_with
    assert problem is not None and problem.reason is Reason.CALL_IDLE
    assert reached(call) == [(Guardrail.IDLE_TIME, 3000)] and not call.timers


def test_a_tool_that_is_waited_for_is_no_silence():
    call = opened(Limits(max_idle_ms=3000), tools=(*TOOLS, WAIT))
    ask(call, 1, TurnOptions(generation=GenerationPatch(tool_choice=ToolChoice("required", "wait"))))
    due(call, 3.0)
    assert not call.ended_with
    answer(call)
    due(call, 3.0)
    assert call.ended_with
