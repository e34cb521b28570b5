"""An engine that dies at any moment is noticed by nobody who reads a reply. On a real engine in this process."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import records
from service import client_events as client
from service import server_events as server
from service.mirror import MAX_RESUMES, Repeat
from service.options import GenerationPatch
from tests.service.calls import LINES, SYSTEM, CallUnderTest, LocalEngine

SAMPLED = GenerationPatch(temperature=0.9, max_tokens=40)
OPENING = client.Open(session_id="one", system=SYSTEM, seed=5, generation=SAMPLED)


def undisturbed() -> CallUnderTest:
    call = CallUnderTest(OPENING)
    for turn, line in enumerate(LINES[:2], 1):
        call.send(client.Final(turn, line))
        call.run()
    return call


@pytest.fixture(scope="module")
def expected() -> CallUnderTest:
    return undisturbed()


def spoken(call: CallUnderTest) -> list[tuple[int, str, tuple[int, ...]]]:
    """Per turn its text and its clause ends, out of the deltas alone; offsets checked."""
    turns: dict[int, tuple[str, tuple[int, ...]]] = {}
    for delta in call.of(server.TextDelta):
        text, ends = turns.get(delta.turn_id, ("", ()))
        assert delta.offset == len(text)
        turns[delta.turn_id] = (text + delta.text, ends + delta.clause_ends)
    return [(turn, *said) for turn, said in turns.items()]


@given(st.lists(st.integers(0, 45), max_size=MAX_RESUMES))
@settings(max_examples=10)
def test_a_reply_resumed_after_deaths_says_each_character_once(expected: CallUnderTest, deaths: list[int]) -> None:
    call = CallUnderTest(OPENING)
    pages, steps = call.engine.pages_in_use, 0
    for turn, line in enumerate(LINES[:2], 1):
        call.send(client.Final(turn, line))
        while call.engine.step():
            for _ in range(deaths.count(steps)):
                call.engine.die()
            steps += 1
    assert spoken(call) == spoken(expected)
    ends = [(end.turn_id, end.reason, end.text, end.history) for end in call.of(server.TurnEnded)]
    assert ends == [(end.turn_id, end.reason, end.text, end.history) for end in expected.of(server.TurnEnded)]
    assert call.engine.log("one") == call.engine.mirrored("one") == expected.engine.log("one")
    call.send(client.CloseCall())
    call.run()
    assert call.engine.pages_in_use == pages


@given(st.integers(0, 6), st.integers(0, 3), st.booleans())
@settings(max_examples=10)
def test_a_turn_overtaken_while_the_engine_is_away_ends_and_the_newer_one_is_answered(
    before: int, between: int, interrupted: bool
) -> None:
    """Whenever the engine dies around an interruption, the history is what it would have been."""
    lost, kept = CallUnderTest(OPENING), CallUnderTest(OPENING)
    for call in (lost, kept):
        call.send(client.Final(1, LINES[0]))
        for _ in range(8):
            call.engine.step()
        said = call.text(1)
        if call is lost and before == 0:
            call.engine.die()
        if interrupted:
            call.send(client.Interrupt(1, client.Heard(chars=len(said) // 2)))
        if call is lost and between == 0:
            call.engine.die()
        call.send(client.Final(2, LINES[1]))
        for _ in range(between):
            call.engine.step()
        if call is lost:
            call.engine.die()
        call.run()
    assert lost.text(2) == kept.text(2) != ""
    for call in (lost, kept):
        ends = call.of(server.TurnEnded)
        assert [(end.turn_id, end.reason is server.TurnEnd.INTERRUPTED) for end in ends] == [(1, True), (2, False)]
    assert lost.engine.log("one") == kept.engine.log("one") == lost.engine.mirrored("one")


def test_a_reply_that_kills_every_engine_ends_and_the_call_goes_on() -> None:
    call = CallUnderTest(OPENING)
    call.send(client.Final(1, LINES[0]))
    call.step_until_text()
    for _ in range(MAX_RESUMES + 1):
        call.engine.die()
        call.engine.step()
    call.run()
    (failure,) = call.of(server.Failure)
    assert failure.turn_id == 1
    (end,) = call.of(server.TurnEnded)
    assert end.reason is server.TurnEnd.FAILED
    assert end.text == call.text(1) != ""
    call.send(client.Final(2, LINES[1]))
    call.run()
    assert call.of(server.TurnEnded)[-1].reason is server.TurnEnd.COMPLETED
    assert call.engine.log("one") == call.engine.mirrored("one")


def test_a_call_that_ends_with_its_overtaken_turn_does_not_keep_others_from_coming_back() -> None:
    """The end of a turn may close its session, in the middle of bringing all sessions back."""
    engine = LocalEngine()
    leaving, staying = CallUnderTest(OPENING, engine), CallUnderTest(client.Open("two", system=SYSTEM), engine)
    for call in (leaving, staying):
        call.send(client.Final(1, LINES[0]))
        call.step_until_text()
    leaving.send(client.Interrupt(1, None))
    leaving.call.no_more_events()
    assert not leaving.ended_with
    engine.die()
    assert leaving.ended_with == [None]
    engine.run()
    assert staying.of(server.TurnEnded)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_reply_that_the_engine_refuses_fails_alone(interrupted: bool) -> None:
    """Also where it was overtaken before the refusal came: nothing but its own end follows."""
    call = CallUnderTest(OPENING)
    call.send(client.Final(1, LINES[0]))
    if interrupted:
        call.send(client.Interrupt(1, None))
    call.engine.refuse("one", 1, "ContextFull")
    assert not call.ended_with
    (end,) = call.of(server.TurnEnded)
    assert end.reason is (server.TurnEnd.INTERRUPTED if interrupted else server.TurnEnd.FAILED)
    call.run()
    assert call.of(server.TurnEnded) == [end]
    call.send(client.Respond(2))
    call.run()
    assert call.text(2)
    assert call.conversation is not None
    assert call.engine.log("one") == call.engine.mirrored("one") == call.conversation.tokens


def test_a_repeat_is_stripped_by_text_clause_ends_and_calls() -> None:
    repeat = Repeat(chars=5, clause_ends=1, calls=1)
    made = (records.ToolCall("a", "{}"), records.ToolCall("b", "{}"))

    def progress(text: str, ends: tuple[int, ...], calls: tuple[records.ToolCall, ...]) -> records.Progress:
        return records.Progress("s", 1, (), text, ends, 0, 0.0, calls)

    first = repeat.strip(progress("One", (), made[:1]))
    assert (first.text, first.clause_ends, first.calls) == ("", (), ())
    second = repeat.strip(progress(" two", (4, 7), made[1:]))
    assert (second.text, second.clause_ends, second.calls) == ("wo", (7,), made[1:])
    assert repeat == Repeat(0, 0, 0)


# Clients that do not keep up


@given(st.lists(st.sampled_from(["hold", "let go", "die", "step", "step", "step"]), max_size=12))
@settings(max_examples=10)
def test_a_reply_held_and_let_go_at_any_moment_says_the_same(expected: CallUnderTest, moments: list[str]) -> None:
    call, deaths = CallUnderTest(OPENING), 0
    held = False
    for turn, line in enumerate(LINES[:2], 1):
        call.send(client.Final(turn, line))
        for moment in moments:
            if moment == "die" and deaths < MAX_RESUMES:
                call.engine.die()
                deaths += 1
            elif moment in ("hold", "let go"):
                held = moment == "hold"
                call.call.hold(held)
            else:
                call.engine.step()
        call.run()
        if held:
            assert call.text(turn) and len(call.of(server.TurnEnded)) < turn  # it stands still, after its first token
            call.call.hold(False)
            held = False
            call.run()
    assert spoken(call) == spoken(expected)
    assert call.engine.log("one") == call.engine.mirrored("one")


def test_what_is_asked_while_a_client_does_not_read_gets_its_first_token_and_stands_still() -> None:
    engine = LocalEngine()
    slow, other = CallUnderTest(OPENING, engine), CallUnderTest(client.Open("two", system=SYSTEM, seed=5), engine)
    slow.call.hold(True)
    for call in (slow, other):
        call.send(client.Final(1, LINES[0]))
    engine.run()
    assert 0 < len(slow.text(1)) < len(other.text(1))
    (ended,) = other.of(server.TurnEnded)
    assert ended.account.held_s == 0.0 and not slow.of(server.TurnEnded)
    slow.send(client.Interrupt(1, None))  # which a held reply hears like any other
    slow.send(client.Final(2, LINES[1]))
    engine.run()
    assert slow.text(2) and [end.turn_id for end in slow.of(server.TurnEnded)] == [1]
    slow.call.hold(False)
    engine.run()
    cut, whole = slow.of(server.TurnEnded)
    assert (cut.reason, whole.reason) == (server.TurnEnd.INTERRUPTED, server.TurnEnd.COMPLETED)
    assert whole.account.held_s > 0.0 and whole.account.late_reader


def test_a_reply_made_ahead_for_a_client_that_does_not_read_is_made_ahead_and_no_further() -> None:
    call = CallUnderTest(client.Open("one", system=SYSTEM, seed=5, generation=SAMPLED))
    call.send(client.EagerEndOfTurn(1, 1, LINES[0]))
    call.run()
    call.call.hold(True)
    call.send(client.Final(1, LINES[0]))
    call.run()
    made = call.text(1)
    call.call.hold(False)
    call.run()
    (ended,) = call.of(server.TurnEnded)
    alone = CallUnderTest(client.Open("two", system=SYSTEM, seed=5, generation=SAMPLED))
    alone.send(client.Final(1, LINES[0]))
    alone.run()
    assert ended.text == call.text(1) == alone.text(1)
    assert call.text(1).startswith(made) and made
