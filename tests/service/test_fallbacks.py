"""A late first token: who answers instead, what the client is told, and what the history holds of it."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import records
from engine.config import EngineConfig
from engine.load import load_target_for
from engine.models.decoder import Decoder
from engine.session import TurnStats
from service import client_events as client
from service import server_events as server
from service.call_services import Resident
from service.config import EMBEDDED_MODEL
from service.conversation import load_chat
from service.items import MessageItem
from service.options import Fallback, GenerationPatch, ToolChoice, TurnOptions
from service.problems import Reason
from service.server_events import AnswerSource, TurnEnd
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest, LocalEngine

SMALL = str(EMBEDDED_MODEL / "draft")
"""A model of its own, and a smaller one."""
PHRASE = "One moment, please."
TURN = TurnOptions(generation=GenerationPatch(max_tokens=12, tool_choice=ToolChoice("none")))
LATE = dataclasses.replace(TURN, first_token_deadline_ms=100)


@cache
def small_target() -> Decoder:
    return load_target_for(EngineConfig(SMALL, pool_tokens=16_384))


def small() -> Resident:
    engine = LocalEngine(small_target())
    return Resident("small", engine, load_chat(SMALL), small_target().max_context_tokens)


def opened(*chain: Fallback, resident: Resident | None = None, **fields) -> CallUnderTest:
    opening = client.Open(**{"system": SYSTEM, "seed": 7, "tools": TOOLS, "fallbacks": chain, **fields})
    return CallUnderTest(opening, residents=(resident or small(),))


def by_small_alone(call: CallUnderTest, turn: client.Final) -> CallUnderTest:
    """The same call to the smaller model, with nobody else there."""
    alone = CallUnderTest(
        client.Open(system=SYSTEM, seed=7, tools=TOOLS, items=call.conversation.items), LocalEngine(small_target())
    )
    alone.send(turn)
    alone.run()
    return alone


def run_small(call: CallUnderTest) -> None:
    engine = call.residents["small"].engine
    assert isinstance(engine, LocalEngine)
    engine.run()


def last(call: CallUnderTest) -> server.TurnEnded:
    return call.of(server.TurnEnded)[-1]


def source(call: CallUnderTest) -> tuple[AnswerSource, str]:
    return last(call).source, last(call).model


@pytest.mark.parametrize("turns", [0, 2])
def test_a_smaller_model_answers_where_nothing_comes_in_time(turns):
    call = opened(Fallback(model="small"))
    for turn in range(1, turns + 1):
        call.send(client.Final(turn, LINES[turn - 1], TURN))
        call.run()
    asked = client.Final(9, LINES[turns], LATE)
    alone = by_small_alone(call, asked)
    call.send(asked)
    call.wait()  # the engine is not heard of: the chain begins
    run_small(call)
    assert call.text(9) == alone.text(9) != ""
    assert source(call) == (AnswerSource.FALLBACK_MODEL, "small")
    risk, taken = call.of(server.DeadlineAtRisk), call.of(server.FallbackTaken)
    assert [(r.turn_id, round(r.deadline_s, 3), r.expected_s) for r in risk] == [(9, 0.1, None)]
    assert taken == [server.FallbackTaken(9, 0, "small")]
    told = len(call.events)
    call.run()  # what the call's own model had begun is of no interest
    assert len(call.events) == told
    assert call.conversation.items[-1].text == call.text(9)


def test_the_call_goes_on_with_its_own_model_on_what_the_other_has_said():
    call = opened(Fallback(model="small"))
    call.send(client.Final(1, LINES[0], LATE))
    call.wait()
    run_small(call)
    call.send(client.Final(2, LINES[1], TURN))
    call.run()
    assert source(call) == (AnswerSource.MODEL, "receptionist")
    fresh = CallUnderTest(client.Open(system=SYSTEM, seed=7, tools=TOOLS, items=call.conversation.items[:2]))
    fresh.send(client.Final(2, LINES[1], TURN))
    fresh.run()
    assert call.text(2) == fresh.text(2)
    assert call.conversation.tokens == fresh.conversation.tokens


def test_the_chain_begins_at_once_where_the_engine_expects_to_be_late():
    call = opened(Fallback(phrase=PHRASE))
    call.send(client.Final(1, LINES[0], LATE))
    call.engine.expects(call.call.session, 1, in_s=1.0)
    (risk,) = call.of(server.DeadlineAtRisk)
    assert risk.expected_s == pytest.approx(1.0, abs=0.5)
    assert call.text(1) == PHRASE and source(call) == (AnswerSource.FALLBACK_PHRASE, "")
    assert call.of(server.TextDelta)[-1].clause_ends == (len(PHRASE),)
    assert call.conversation.items[-1] == dataclasses.replace(
        MessageItem("", "assistant", PHRASE), id=call.conversation.items[-1].id
    )
    call.run()
    assert call.text(1) == PHRASE


def test_it_begins_at_once_where_there_is_no_engine():
    call = opened(Fallback(phrase=PHRASE))
    call.engine.serving = False
    call.send(client.Final(1, LINES[0], LATE))
    assert call.text(1) == PHRASE


def test_in_time_nobody_is_told_anything():
    call, plain = opened(Fallback(phrase=PHRASE)), opened()
    for each in (call, plain):
        each.send(client.Final(1, LINES[0], dataclasses.replace(TURN, first_token_deadline_ms=60_000)))
        each.run()
        each.wait()
    assert call.text(1) == plain.text(1) and source(call) == (AnswerSource.MODEL, "receptionist")
    assert not call.of(server.DeadlineAtRisk) and not call.of(server.FallbackTaken)


def test_without_a_chain_the_model_goes_on_late():
    call, plain = opened(), opened()
    call.send(client.Final(1, LINES[0], LATE))
    call.wait()
    assert len(call.of(server.DeadlineAtRisk)) == 1
    plain.send(client.Final(1, LINES[0], TURN))
    for each in (call, plain):
        each.run()
    assert call.text(1) == plain.text(1) != ""


def test_each_link_has_its_time_and_after_the_last_the_turn_fails():
    other = dataclasses.replace(small(), name="other")
    call = CallUnderTest(
        client.Open(
            system=SYSTEM,
            seed=7,
            fallbacks=(Fallback(model="small", deadline_ms=30), Fallback(model="other")),
        ),
        residents=(small(), other),
    )
    call.send(client.Final(1, LINES[0], LATE))
    call.wait()
    assert [round(seconds, 3) for seconds, _ in call.timers] == [0.03]
    call.wait()
    assert [round(seconds, 3) for seconds, _ in call.timers] == [0.03]
    assert [taken.model for taken in call.of(server.FallbackTaken)] == ["small", "other"]
    call.wait()
    (failure,) = call.of(server.Failure)
    assert failure.problem.reason is Reason.FIRST_TOKEN_LATE and last(call).reason is TurnEnd.FAILED
    run_small(call)
    call.run()
    assert call.text(1) == ""
    call.send(client.Final(2, LINES[1], TURN))
    call.run()
    fresh = CallUnderTest(client.Open(system=SYSTEM, seed=7, items=call.conversation.items[:1]))
    fresh.send(client.Final(2, LINES[1], TURN))
    fresh.run()
    assert call.text(2) == fresh.text(2) != ""


@given(st.data())
@settings(max_examples=15)
def test_what_another_model_says_is_cut_as_it_was_heard(data):
    call = opened(Fallback(model="small"))
    call.send(client.Final(1, LINES[0], LATE))
    call.wait()
    engine = call.residents["small"].engine
    for _ in range(data.draw(st.integers(1, 14))):
        engine.step()
    said = call.text(1)
    chars = data.draw(st.integers(0, len(said)))
    over = bool(call.of(server.TurnEnded))
    call.send(client.Interrupt(1, client.Heard(chars=chars)))
    kept = call.of(server.Interrupted)[-1].text
    assert said.startswith(kept) and len(kept) <= chars
    told = len(call.of(server.TextDelta))
    run_small(call)
    assert len(call.of(server.TextDelta)) == told
    assert over or last(call).reason is TurnEnd.INTERRUPTED
    call.send(client.Final(2, LINES[1], TURN))
    call.run()
    items = call.conversation.items[: 2 if kept else 1]
    fresh = CallUnderTest(client.Open(system=SYSTEM, seed=7, tools=TOOLS, items=items))
    fresh.send(client.Final(2, LINES[1], TURN))
    fresh.run()
    assert call.text(2) == fresh.text(2)


def at_its_tool_call() -> tuple[CallUnderTest, server.ToolCalled]:
    """A turn that waits for a tool which the fallback model has called."""
    call = opened(Fallback(model="small"))
    patch = GenerationPatch(tool_choice=ToolChoice(tool=TOOLS[0].name, mode="required"), max_tokens=64)
    call.send(client.Final(1, LINES[0], TurnOptions(generation=patch, first_token_deadline_ms=100)))
    call.wait()
    run_small(call)
    (called,) = call.of(server.ToolCalled)
    return call, called


def test_its_tool_calls_are_answered_by_it():
    call, called = at_its_tool_call()
    call.send(client.ToolResult(1, called.call.call_id, '{"ok": true}'))
    call.run()
    assert not call.of(server.TurnEnded), "the call's own model was asked"
    run_small(call)
    assert source(call) == (AnswerSource.FALLBACK_MODEL, "small") and call.text(1)
    kinds = [type(item).__name__ for item in call.conversation.items]
    assert kinds == ["MessageItem", "ToolCallItem", "ToolResultItem", "MessageItem"]
    call.send(client.Final(2, LINES[1], TURN))
    call.run()
    fresh = CallUnderTest(client.Open(system=SYSTEM, seed=7, tools=TOOLS, items=call.conversation.items[:4]))
    fresh.send(client.Final(2, LINES[1], TURN))
    fresh.run()
    assert call.text(2) == fresh.text(2)


def test_a_failing_engine_is_rescued_by_the_chain():
    call = opened(Fallback(phrase=PHRASE))
    call.send(client.Final(1, LINES[0], TURN))
    call.engine.refuse(call.call.session, 1, "OutOfPages")
    assert call.text(1) == PHRASE and last(call).reason is TurnEnd.COMPLETED
    assert not call.of(server.Failure)


def test_a_reply_made_ahead_needs_no_chain():
    call = opened(Fallback(phrase=PHRASE))
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], TURN))
    call.run()
    call.send(client.Final(1, LINES[0], LATE))
    call.wait()
    call.run()
    assert source(call) == (AnswerSource.MODEL, "receptionist") and call.text(1) != PHRASE


def test_one_held_by_an_engine_that_hangs_is_left_to_it():
    call = opened(Fallback(model="small"))
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], TURN), client.Final(1, LINES[0], LATE))
    call.wait()
    run_small(call)
    call.run()
    assert source(call) == (AnswerSource.FALLBACK_MODEL, "small")
    assert call.conversation.items[-1].text == call.text(1)


def test_a_model_that_is_not_served_is_refused_and_nothing_stays_open():
    call = opened(Fallback(model="small"), Fallback(model="large"), session_id="mine")
    (problem,) = call.ended_with
    assert problem.reason is Reason.UNKNOWN_MODEL and problem.field == "open.fallbacks[1].model"
    run_small(call)
    assert call.residents["small"].engine.pages_in_use == 0


def test_the_smaller_model_forgets_the_call_with_it():
    call = opened(Fallback(model="small"))
    call.send(client.Final(1, LINES[0], TURN))
    call.run()
    run_small(call)
    engine = call.residents["small"].engine
    assert engine.pages_in_use > 0
    call.send(client.CloseCall())
    run_small(call)
    assert engine.pages_in_use == 0


def test_the_engine_says_when_it_expects_a_first_token():
    engine = LocalEngine()
    heard: list[records.Expected] = []
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7), engine)
    engine.on_expected = heard.append
    call.send(client.Final(1, LINES[0], TURN))
    call.run()
    assert not heard  # nobody has asked
    call.send(client.Final(2, LINES[1], dataclasses.replace(TURN, first_token_deadline_ms=60_000)))
    call.run()
    (expected,) = heard
    stats = last(call).account.stats[0]
    assert stats.submitted <= expected.at <= stats.submitted + 5.0


@pytest.mark.parametrize("chain", [(Fallback(model="small"),), (Fallback(model="small"), Fallback(phrase=PHRASE))])
def test_a_link_that_cannot_answer_is_passed_over_and_takes_no_time(chain):
    call, plain = opened(*chain), opened()
    engine = call.residents["small"].engine
    assert isinstance(engine, LocalEngine)
    engine.serving = False
    for each in (call, plain):
        each.send(client.Final(1, LINES[0], LATE))
    call.wait()  # for the chain
    if len(chain) == 2:
        assert call.text(1) == PHRASE and [taken.index for taken in call.of(server.FallbackTaken)] == [1]
        return
    assert not call.of(server.FallbackTaken) and not call.of(server.Failure)
    for each in (call, plain):
        each.run()  # it was in time after all
    call.wait()
    assert call.text(1) == plain.text(1) and source(call) == (AnswerSource.MODEL, "receptionist")


def test_where_no_link_can_answer_the_turn_fails_at_its_deadline():
    call = opened(Fallback(model="small"))
    call.residents["small"].engine.serving = False
    call.send(client.Final(1, LINES[0], LATE))
    call.wait()
    call.wait()
    (failure,) = call.of(server.Failure)
    assert failure.problem.reason is Reason.FIRST_TOKEN_LATE and last(call).reason is TurnEnd.FAILED


def test_an_engine_that_says_it_will_be_in_time_is_believed_until_the_link_needs_the_rest():
    call = opened(Fallback(phrase=PHRASE))
    call.send(client.Final(1, LINES[0], dataclasses.replace(TURN, first_token_deadline_ms=10_000)))
    call.engine.expects(call.call.session, 1, in_s=9.0)
    (wait,) = [seconds for seconds, _ in call.timers]
    assert 9.5 < wait <= 10.0
    assert not call.of(server.DeadlineAtRisk)
    call.wait()
    (risk,) = call.of(server.DeadlineAtRisk)
    assert risk.expected_s is None and call.text(1) == PHRASE


def test_a_model_that_takes_over_without_a_deadline_has_all_the_time():
    call = opened(Fallback(model="small"))
    call.send(client.Final(1, LINES[0], TURN))
    call.engine.refuse(call.call.session, 1, "OutOfPages")
    assert not call.timers
    run_small(call)
    assert source(call) == (AnswerSource.FALLBACK_MODEL, "small") and call.text(1)


def test_a_chain_that_has_run_out_leaves_the_engines_own_problem():
    call = opened(Fallback(model="small"))
    call.residents["small"].engine.serving = False
    call.send(client.Final(1, LINES[0], TURN))
    call.engine.refuse(call.call.session, 1, "OutOfPages")
    (failure,) = call.of(server.Failure)
    assert failure.problem.reason is Reason.OUT_OF_PAGES
    assert source(call)[0] is AnswerSource.MODEL


def test_a_new_turn_silences_the_model_that_was_answering():
    call = opened(Fallback(model="small"))
    long = dataclasses.replace(LATE, generation=dataclasses.replace(LATE.generation, max_tokens=200))
    call.send(client.Final(1, LINES[0], long))
    call.wait()
    engine = call.residents["small"].engine
    assert isinstance(engine, LocalEngine)
    while not call.text(1):
        engine.step()
    call.send(client.Final(2, LINES[1], TURN))
    steps = 0
    while engine.step():
        steps += 1
    assert steps < 10
    assert call.of(server.TurnEnded)[-1].reason is TurnEnd.INTERRUPTED
    call.run()
    assert source(call) == (AnswerSource.MODEL, "receptionist")


def test_what_was_said_before_a_broken_call_stays_in_the_history():
    call = opened(Fallback(model="small"))
    call.send(client.Final(1, LINES[0], LATE))
    call.wait()
    segment = call.call.turns._reply.current
    engine = call.residents["small"].engine
    assert isinstance(engine, LocalEngine)
    session = call.call.session
    engine.says(records.Progress(session, segment.number, (1, 2), "Let me check.", (), 0, 0.0, malformed_calls=1))
    engine._sessions[session].ended(
        records.Ended(session, segment.number, "stop_token", len(engine.mirrored(session)) + 2, 2, TurnStats())
    )
    assert last(call).text == "Let me check." == call.conversation.items[-1].text


def test_a_phrase_is_a_change_of_the_history():
    call = opened(Fallback(phrase=PHRASE))
    call.send(client.Final(1, LINES[0], LATE))
    call.wait()
    assert last(call).history.version == 2
    call.send(client.Items((), 1))
    (failure,) = call.of(server.Failure)
    assert failure.problem.reason is Reason.STALE_HISTORY


def test_a_held_reply_that_failed_is_asked_for_anew():
    call = opened()
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], TURN))
    session = call.call.session
    mirror = call.engine._sessions[session]
    number = mirror._reply.submit.turn
    mirror.ended(records.Ended(session, number, "out_of_pages", len(mirror.tokens), 0, TurnStats()))
    call.send(client.Final(1, LINES[0], TURN))
    call.run()
    assert not call.of(server.Failure) and call.text(1)


def test_the_account_is_of_who_answered():
    call = opened(Fallback(model="small"))
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], TURN), client.Final(1, LINES[0], LATE))
    call.wait()
    run_small(call)
    call.run()
    account = last(call).account
    assert (account.released, len(account.stats), account.model) == (0.0, 1, "small")
    assert account.stats[0].first_token > 0.0
