"""A tool call that is no call: the client is told, and the history does not hold it. The call is cut off for real, by a
stop token inside of it or by the length."""

from __future__ import annotations

import pytest

from engine.text.call_form import HERMES
from service import client_events as client
from service import server_events as server
from service.options import GenerationPatch, TurnOptions
from service.problems import Reason
from tests.service.calls import SYSTEM, BegunEngine, CallUnderTest, chat
from tests.service.test_guardrails import WAIT
from tests.service.test_telemetry import at_a_tool_call


def call_tokens() -> tuple[int, ...]:
    """What the model writes when it calls the example's tool."""
    opening, line = at_a_tool_call()
    call = CallUnderTest(opening)
    call.run()
    before = len(call.engine.log("tools"))
    call.send(client.Final(1, line))
    call.run()
    log = call.engine.log("tools")
    start = next(i for i in range(before, len(log)) if HERMES.mark in chat().codec.decode(list(log[before : i + 1])))
    return log[start + 1 :]


@pytest.mark.parametrize("ended_by", ["stop token", "length"])
def test_a_call_that_is_cut_off_fails_the_turn_or_ends_it_by_length(ended_by: str) -> None:
    opening, line = at_a_tool_call()
    patch = (
        GenerationPatch(stop_token_ids=frozenset({call_tokens()[4]}))
        if ended_by == "stop token"
        else GenerationPatch(max_tokens=5)
    )
    call = CallUnderTest(opening)
    call.send(client.Final(1, line, TurnOptions(generation=patch)))
    call.run()
    (end,) = call.of(server.TurnEnded)
    assert call.of(server.ToolCalled) == []
    failures = [event for event in call.of(server.Failure) if event.turn_id == 1]
    if ended_by == "stop token":
        assert end.reason is server.TurnEnd.FAILED
        assert [failure.problem.reason for failure in failures] == [Reason.MALFORMED_TOOL_CALL]
    else:
        assert end.reason is server.TurnEnd.LENGTH and failures == []
    assert call.conversation is not None
    assert HERMES.mark not in chat().codec.decode(list(call.conversation.tokens)[-20:])
    call.send(client.Final(2, "Hello?"))
    call.run()
    assert call.engine.log("tools") == tuple(call.conversation.tokens)
    assert 2 in {event.turn_id for event in (*call.of(server.TurnEnded), *call.of(server.TurnWaiting))}


def test_half_of_a_second_call_is_in_no_log() -> None:
    """The token limit falls inside it; the first is made, and the history holds that alone."""
    whole = '<tool_call>{"name": "wait", "arguments": {}}</tool_call>'
    begun = f'One moment.{whole}Still there.<tool_call>{{"name": "wa'
    engine = BegunEngine(begun)
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7, tools=(WAIT,)), engine)
    patch = GenerationPatch(max_tokens=len(engine.beginning) + 1)
    before = call.conversation.length
    call.send(client.Final(1, "Hello?", TurnOptions(generation=patch)))
    call.run()
    (waiting,) = call.of(server.TurnWaiting)
    assert call.text(1) == "One moment.Still there."
    log = chat().codec.decode(list(call.conversation.tokens)[before:])
    assert log.endswith(f"One moment.{whole}Still there.")
    assert call.engine.log(call.call.session) == tuple(call.conversation.tokens)
    call.send(client.ToolResult(1, waiting.call_ids[0], "{}"))
    call.run()
    (end,) = call.of(server.TurnEnded)
    assert end.reason is server.TurnEnd.LENGTH
    assert '{"name": "wa<' not in chat().codec.hf.decode(list(call.conversation.tokens)[before:])
