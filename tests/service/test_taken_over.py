"""A call that another server goes on with, which has not all that the first one had, or knows items by other names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service import client_events as client
from service import server_events as server
from service.call_records import merged, read, replayed
from service.call_services import Resident
from service.conversation import load_chat
from service.items import MessageItem, ToolCallItem, ToolResultItem
from service.options import Fallback
from service.problems import Reason
from service.server_events import AnswerSource, TurnEnd
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest, LocalEngine
from tests.service.test_fallbacks import LATE, SMALL, TURN, at_its_tool_call, opened, run_small, small, small_target
from tests.service.test_guardrails import holds
from tests.service.test_tool_results import DONE, answer, at_two_calls, goes_on, results


def elsewhere(call: CallUnderTest, *residents: Resident) -> CallUnderTest:
    """The call as a server with these fallbacks makes it of what the client holds."""
    records = {made.seq: read(call.call.services.signing, made.record) for made in call.envelopes if made.record}
    last = call.envelopes[-1]
    found = replayed(merged(records.values()), last.seq)
    assert found is not None
    other = CallUnderTest.unopened(residents=residents)
    other.call.restore(found[0], last.generation + 1, last.seq, 0)
    return other


def short() -> Resident:
    """The small model, with little room."""
    return Resident("small", LocalEngine(small_target()), load_chat(SMALL), 40)


def said(call: CallUnderTest) -> list[str]:
    """By the assistant, as the history has it."""
    items = call.conversation.items
    return [item.text for item in items if isinstance(item, MessageItem) and item.role == "assistant"]


def at_words_of_the_small_model() -> CallUnderTest:
    """In the middle of a reply that it makes in the other's place."""
    call = opened(Fallback(model="small"))
    call.send(client.Final(1, LINES[0], LATE))
    call.wait()
    engine = call.residents["small"].engine
    assert isinstance(engine, LocalEngine)
    while len(call.text(1)) < 5:
        assert engine.step()
    return call


@pytest.mark.parametrize("residents", [(), (short,)])
def test_a_reply_of_a_model_that_is_not_there_ends_with_what_was_told(residents: tuple) -> None:
    call = at_words_of_the_small_model()
    told = call.text(1)
    other = elsewhere(call, *(resident() for resident in residents))
    assert not other.ended_with
    (end,) = other.of(server.TurnEnded)
    assert end.reason is TurnEnd.FAILED and end.text == told and said(other) == [told]
    assert other.of(server.Failure)[-1].problem.reason is Reason.UNKNOWN_MODEL
    holds(other)
    other.send(client.Final(2, LINES[1], LATE))  # its chain has nobody left
    other.run()
    assert other.of(server.TurnEnded)[-1].source is AnswerSource.MODEL and said(other) == [told, other.text(2)]
    fresh = CallUnderTest(client.Open(system=SYSTEM, seed=7, tools=TOOLS, items=other.conversation.items[:2]))
    fresh.send(client.Final(2, LINES[1], TURN))
    fresh.run()
    assert other.text(2) == fresh.text(2) != ""
    holds(other)


def test_a_reply_of_a_model_that_is_there_goes_on() -> None:
    call = at_words_of_the_small_model()
    told = call.text(1)
    other = elsewhere(call, small())
    run_small(call)
    run_small(other)
    assert told + other.text(1) == call.text(1) and said(other) == said(call) == [call.text(1)]
    assert other.of(server.TurnEnded)[-1].source is AnswerSource.FALLBACK_MODEL


def test_tools_that_a_model_called_which_is_not_there_answer_the_calls_own() -> None:
    call, called = at_its_tool_call()
    other = elsewhere(call)
    answer(other, called)
    other.run()
    assert other.of(server.TurnEnded)[-1].reason is not TurnEnd.FAILED and other.text(1)
    assert said(other) == [other.text(1)] and results(other) == [DONE]
    holds(other)


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("renamed", [ToolCallItem, MessageItem | ToolCallItem | ToolResultItem])
def test_calls_and_results_keep_the_names_that_a_client_has_given_them(interrupted: bool, renamed: type) -> None:
    call, called = at_two_calls()
    answer(call, called[0])
    if interrupted:
        call.send(client.Interrupt(1, client.Heard(chars=5)))
    items = enumerate(call.conversation.items)
    named = [replace(item, id=f"named-{at}") if isinstance(item, renamed) else item for at, item in items]
    call.send(client.Items(tuple(named)))
    other = elsewhere(call)
    assert other.conversation.items == call.conversation.items
    for each in (call, other):
        each.send(client.Interrupt(1, client.Heard(chars=5)))  # which writes them anew
        answer(each, called[1])
        kept = [item.id for item in each.conversation.items if not isinstance(item, ToolResultItem)]
        assert kept == [item.id for item in named if not isinstance(item, ToolResultItem)]
        assert sum(isinstance(item, ToolCallItem) for item in each.conversation.items) == 2
        assert results(each) == [DONE, DONE]
    assert other.conversation.items == call.conversation.items and other.conversation.tokens == call.conversation.tokens
    goes_on(call, 2)
