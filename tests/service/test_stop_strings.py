"""Stop strings anywhere in a reply: what was told, what the history holds and what the engine has."""

from __future__ import annotations

from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import client_events as client
from service import server_events as server
from service.items import MessageItem
from service.options import GenerationPatch, TurnOptions
from tests.service.calls import LINES, SYSTEM, CallUnderTest, chat


def replied(*stop_strings: str) -> CallUnderTest:
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7))
    options = TurnOptions(generation=GenerationPatch(max_tokens=24, stop_strings=stop_strings))
    call.send(client.Final(1, LINES[0], options))
    call.run()
    return call


@cache
def whole() -> str:
    return replied().text(1)


@given(st.integers(0, 60), st.integers(1, 5))
@example(8, 4)
@settings(max_examples=25, deadline=None)
def test_what_is_told_and_what_the_history_holds_agree_before_a_stop_string(start: int, length: int) -> None:
    start %= len(whole())
    stop = whole()[start : start + length]
    told = whole().partition(stop)[0]
    call = replied(stop)
    assert call.conversation is not None and call.text(1) == told
    (end,) = call.of(server.TurnEnded)
    assert (end.reason, end.text) == (server.TurnEnd.COMPLETED, told)
    said = [item.text for item in call.conversation.items if isinstance(item, MessageItem) and item.role == "assistant"]
    assert said == ([told] if told else [])
    assert chat().codec.decode(call.conversation.tokens).rstrip().endswith((told or LINES[0]).rstrip())
    call.send(client.Final(2, LINES[1]))
    call.run()
    assert call.engine.log(call.call.session)[: call.conversation.length] == call.conversation.tokens
    assert not call.of(server.Failure)
