"""Side questions: answered as a fresh call would answer them, and the call is left as if they had not been asked."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from service import client_events as client
from service import server_events as server
from service.items import MessageItem
from service.options import GenerationPatch, TurnOptions
from service.problems import Problem, Reason
from service.side_questions import MOST
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest

SHORT = GenerationPatch(max_tokens=10)
TURN = TurnOptions(generation=SHORT)
HOT = GenerationPatch(max_tokens=12, temperature=1.0)
SCHEMA = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}


def opened(**fields) -> CallUnderTest:
    return CallUnderTest(client.Open(system=SYSTEM, seed=7, **fields))


def answers(call: CallUnderTest) -> dict[int, str]:
    return {event.request_id: event.text for event in call.of(server.Generated)}


def failures(call: CallUnderTest) -> list[tuple[int, Reason]]:
    return [(event.request_id, event.problem.reason) for event in call.of(server.Failure)]


def after(turns: int) -> CallUnderTest:
    call = opened(tools=TOOLS)
    for turn in range(1, turns + 1):
        call.send(client.Final(turn, LINES[turn - 1], TURN))
        call.run()
    return call


@pytest.mark.parametrize("asked", [0, 1, 5])
def test_the_call_goes_on_as_if_nothing_had_been_asked(asked):
    plain, call = after(2), opened(tools=TOOLS)
    for turn in (1, 2):
        call.send(client.Final(turn, LINES[turn - 1], TURN))
        for _ in range(asked):
            call.engine.step()
        call.send(client.Generate(turn, "What was said so far?", generation=HOT))
        call.run()
    assert [call.text(turn) for turn in (1, 2)] == [plain.text(turn) for turn in (1, 2)]
    assert call.conversation.tokens == plain.conversation.tokens
    assert call.engine.log(call.call.session) == plain.engine.log(plain.call.session)
    assert set(answers(call)) == {1, 2}
    call.send(client.CloseCall())
    plain.send(client.CloseCall())
    call.run()
    plain.run()
    assert call.engine.pages_in_use == 0 == plain.engine.pages_in_use


def test_an_answer_is_that_of_a_fresh_call_with_the_same_ids():
    """The same seed, request and position in the log; asked behind a reply in progress, it knows the whole items."""
    idle, busy = after(1), opened(tools=TOOLS)
    busy.send(client.Final(1, LINES[0], TURN))
    busy.engine.step()
    for call in (idle, busy):
        call.send(client.Generate(9, "How many people?", generation=HOT))
        call.run()
    fresh = opened(tools=TOOLS)
    fresh.send(client.Generate(9, "How many people?", generation=HOT))
    fresh.run()
    assert answers(busy)[9] != answers(idle)[9]
    own = opened(tools=TOOLS)
    items = (MessageItem("", "user", LINES[0]), MessageItem("", "user", "How many people?"))
    own.send(client.Generate(9, items=items, generation=HOT))
    own.run()
    assert answers(own) == answers(busy)
    other = opened(tools=TOOLS)
    other.send(client.Generate(8, items=items, generation=HOT))
    other.run()
    assert answers(other)[8] != answers(own)[9]  # the request is part of its noise


def test_what_a_conversation_of_its_own_shares_with_the_call_is_not_computed_again():
    call = after(2)
    begin = tuple(item for span in call.conversation.spans[:2] for item in span.items)
    call.send(client.Generate(1, items=(*begin, MessageItem("", "user", "Sum it up.")), generation=SHORT))
    call.send(client.Generate(2, "Sum it up.", generation=SHORT))
    call.run()
    own, behind = call.of(server.Generated)
    for event in (own, behind):
        stats = event.account.stats[0]
        assert 0 < stats.prompt_tokens - stats.cached_tokens < 25


def test_an_answer_of_a_form_and_never_a_tool_call():
    call = after(1)
    form = GenerationPatch(max_tokens=40, temperature=1.0, text_schema=json.dumps(SCHEMA))
    call.send(client.Generate(1, "How do they feel?", generation=form))
    call.send(client.Generate(2, "Cancel the booking of Sven Salazar.", generation=GenerationPatch(max_tokens=40)))
    call.run()
    Draft202012Validator(SCHEMA).validate(json.loads(answers(call)[1]))
    assert "<tool_call>" not in answers(call)[2] and not call.of(server.ToolCalled)


def test_a_caller_who_waits_comes_first():
    call = after(1)
    call.send(client.Generate(1, "Tell me everything.", generation=GenerationPatch(max_tokens=60)))
    call.engine.step()
    call.send(client.Final(2, LINES[1], TURN))
    call.run()
    kinds = [type(event) for event in call.events]
    assert kinds.index(server.Generated) > len(kinds) - 1 - kinds[::-1].index(server.TurnEnded)


def test_questions_that_cannot_be_asked_and_those_that_are_dropped():
    call = after(1)
    call.send(client.Generate(1, "x" * 20_000))
    call.send(client.Generate(2, "word " * 3000))
    call.send(client.Generate(3, "Hello?"), client.Generate(3, "Hello?"))
    call.send(client.CancelGenerate(3), client.CancelGenerate(3), client.CancelGenerate(44))
    call.send(client.Generate(3, "Hello?"))
    assert failures(call) == [
        (1, Reason.INPUT_TOO_LONG),
        (2, Reason.CONTEXT_FULL),
        (3, Reason.CANCELLED),
        (3, Reason.INVALID_FIELD),
    ]
    for number in range(10, 11 + MOST):
        call.send(client.Generate(number, "Hello?", generation=SHORT))
    assert failures(call)[4:] == [(10 + MOST, Reason.TOO_MANY_QUESTIONS)]
    call.run()
    assert len(answers(call)) == MOST


def test_questions_are_part_of_what_a_call_holds_and_are_refused_where_there_is_no_room():
    asked, tokens, full = [], [], []

    def ask(prompt, answer):
        asked.append((prompt, answer))
        if full:
            raise Problem(Reason.PAGES_COMMITTED, "no room", retry_after_s=1.0)

    def admit(length):
        tokens.append(length)
        return ask

    call = CallUnderTest.unopened()
    call.call.admit = admit
    call.send(client.Open(system=SYSTEM, seed=7))
    call.run()
    own = tokens[0]()
    assert own == call.conversation.length
    call.send(client.Generate(1, "How are they?", generation=SHORT), client.Generate(2, "Why?", generation=SHORT))
    assert [answer for _, answer in asked] == [10, 10] and all(0 < prompt < 30 for prompt, _ in asked)
    assert tokens[0]() == own + sum(prompt + answer for prompt, answer in asked)
    call.run()
    assert set(answers(call)) == {1, 2} and tokens[0]() == own
    full.append(True)
    call.send(client.Generate(3, "Why?"))
    assert failures(call) == [(3, Reason.PAGES_COMMITTED)]
    full.clear()
    call.send(client.Generate(3, "Why?", generation=SHORT))  # it was not asked, and may be asked again
    call.run()
    assert 3 in answers(call)


def test_a_question_that_takes_too_long():
    call = after(1)
    call.send(
        client.Generate(1, "Hello?", timeout_ms=80), client.Generate(2, "Hello?", generation=SHORT, timeout_ms=90)
    )
    call.engine.step()
    (timer,) = [timer for timer in call.timers if timer[0] == 0.08]
    timer[1]()
    call.run()
    assert failures(call) == [(1, Reason.QUESTION_TIMED_OUT)] and set(answers(call)) == {2}
    assert not [timer for timer in call.timers if timer[0] == 0.09]


@pytest.mark.parametrize("steps", [0, 3])
def test_an_answer_survives_an_engine_that_dies(steps):
    plain, call = after(1), after(1)
    for one in (plain, call):
        one.send(client.Generate(1, "What was said so far?", generation=HOT))
    for _ in range(steps):
        call.engine.step()
    call.engine.die()
    call.run()
    plain.run()
    assert answers(call) == answers(plain)


def test_a_client_that_has_said_all_still_gets_its_answers():
    call = after(1)
    call.send(client.Generate(1, "Hello?", generation=SHORT))
    call.call.no_more_events()
    assert not call.call.ended
    call.run()
    assert call.call.ended and set(answers(call)) == {1}
