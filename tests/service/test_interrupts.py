"""A slice of what ``python -m tests.equality --only interrupts`` does with every token of many replies."""

from __future__ import annotations

import pytest

from service import client_events as client
from service import server_events as server
from service.client_events import Heard, WordTiming
from service.options import Limits
from service.problems import Guardrail, Reason
from tests.service.calls import LINES, SYSTEM, CallUnderTest, chat, drafting_engine
from tests.service.interrupts import AROUND, interrupted_around_calls, interrupted_at, measures, openings


@pytest.mark.parametrize("measure", list(measures("", 0)))
def test_whatever_is_heard_of_a_reply_the_call_goes_on_from_there(measure: str) -> None:
    opening, line = next(openings(1))
    for tokens in (1, 2, 3, 6, 7, 11):
        assert interrupted_at(opening, line, tokens, measure) == 0


@pytest.mark.parametrize("measure", list(measures("", 0)))
def test_the_same_where_a_step_makes_several_tokens(measure: str) -> None:
    opening, line = next(openings(1))
    found = [interrupted_at(opening, line, tokens, measure, drafting_engine) for tokens in (2, 5, 12)]
    assert None not in found and sum(filter(None, found)) > 0


@pytest.mark.parametrize("measure", list(measures("", 0)))
def test_the_same_of_a_reply_with_text_around_tool_calls(measure: str) -> None:
    opening, line = next(openings(1))
    every = len(chat().codec.encode(AROUND))
    for tokens in (4, every // 2, every // 2 + 1, every - 2, every - 1, every):
        assert interrupted_around_calls(opening, line, tokens, measure) is not None
    assert interrupted_around_calls(opening, line, every + 1, measure) is None


def speaking() -> CallUnderTest:
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7))
    call.send(client.Final(1, LINES[0]))
    return call


def is_over(call: CallUnderTest) -> bool:
    """Nothing more is said, and the engine has the history."""
    told = len(call.of(server.TextDelta))
    call.run()
    (end,) = call.of(server.TurnEnded)
    assert end.reason is server.TurnEnd.INTERRUPTED and call.conversation is not None
    return len(call.of(server.TextDelta)) == told and call.engine.log(call.call.session) == call.conversation.tokens


def test_before_the_first_word_timing_nothing_was_heard() -> None:
    call = speaking()
    call.step_until_text()
    call.send(client.Interrupt(1, Heard(played_ms=0)))
    assert [event.text for event in call.of(server.Interrupted)] == [""]
    assert not call.of(server.Failure) and is_over(call)


@pytest.mark.parametrize("played", [None, 3])
def test_milliseconds_that_nobody_can_place_stop_the_reply_before_they_are_refused(played: int | None) -> None:
    call = speaking()
    while len(call.text(1)) < 6:
        assert call.engine.step()
    if played is not None:
        call.send(client.Playback(1, Heard(chars=played)))
    call.send(client.Interrupt(1, Heard(played_ms=700)))
    assert [type(event) for event in call.events[-2:]] == [server.Interrupted, server.Failure]
    (cut,), (failure,) = call.of(server.Interrupted), call.of(server.Failure)
    assert failure.problem.reason is Reason.INVALID_FIELD and failure.problem.field == "interrupt.heard.played_ms"
    assert len(cut.text) <= (played or 0) and is_over(call)
    call.send(client.Interrupt(1, Heard(chars=5)), client.Interrupt(1, Heard(played_ms=700)))
    assert call.of(server.Interrupted)[-1].text == call.of(server.Interrupted)[-2].text != ""


@pytest.mark.parametrize("played", [0, 6])
def test_a_text_that_reads_otherwise_stops_the_reply_where_they_part(played: int) -> None:
    call = speaking()
    while len(call.text(1).split()) < 5:
        assert call.engine.step()
    said = call.text(1)
    call.send(client.Playback(1, Heard(chars=played)))
    first = said.split()[0]
    call.send(client.Interrupt(1, Heard(text=f"{first} in other words")))
    (cut,) = call.of(server.Interrupted)
    assert said.startswith(cut.text) and len(cut.text) <= max(len(first), played)
    assert not call.of(server.Failure) and is_over(call)


OTHERWISE = "You are booked on the 24th at 4:30 pm with Dr. Smith, for $12.50."
READ = "you are booked on the twenty fourth at four thirty p m with doctor smith for twelve dollars and fifty cents"


@pytest.mark.parametrize("by_time", [False, True])
def test_a_turn_of_which_no_end_is_spoken_as_it_is_written_has_been_played_out(by_time: bool) -> None:
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7))
    call.send(client.Say(1, OTHERWISE))
    words = READ.split()
    for count in range(1, len(words) + 1):
        heard = Heard(text=" ".join(words[:count]))
        if by_time:
            heard = Heard(played_ms=100 * count, words=(WordTiming(100 * count, word=words[count - 1]),))
        call.send(client.Playback(1, heard))
    call.send(client.Final(2, LINES[0]))
    assert not call.of(server.Interrupted) and not call.of(server.Failure)
    call.run()
    assert call.conversation is not None and OTHERWISE in chat().codec.hf.decode(list(call.conversation.tokens))


@pytest.mark.parametrize("spoken_over", [client.Interrupt(1, None), client.Final(2, LINES[0])])
def test_a_reply_is_cut_where_playback_was_whatever_was_spoken_otherwise_before(
    spoken_over: client.ClientEvent,
) -> None:
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7))
    words = READ.split()
    call.send(client.Say(1, OTHERWISE))
    for count in (12, 15, 3):  # the last one comes late
        known = tuple(WordTiming(100 * number, word=word) for number, word in enumerate(words[:count], 1))
        call.send(client.Playback(1, Heard(played_ms=100 * count, words=known)))
    call.send(spoken_over)
    (cut,) = call.of(server.Interrupted)
    assert cut.text == "You are booked on the 24th at 4:30 pm with Dr. Smith"
    call.run()
    assert not call.of(server.Failure)


def test_an_interrupt_whose_words_are_not_found_leaves_what_playback_has_said() -> None:
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7))
    call.send(client.Say(1, OTHERWISE), client.Playback(1, Heard(chars=14)))
    lost = (WordTiming(100, word="quite"), WordTiming(200, word="others"))
    call.send(client.Interrupt(1, Heard(played_ms=200, words=lost)))
    assert [cut.text for cut in call.of(server.Interrupted)] == [OTHERWISE[:14]]


LONG_TEXT = Heard(text="x" * 301)
LONG_WORDS = Heard(played_ms=1, words=tuple(WordTiming(number, word="xx") for number in range(101)))
MANY_PLACES = Heard(chars=14, words=tuple(WordTiming(number, end_chars=number) for number in range(302)))


@pytest.mark.parametrize("heard", [LONG_TEXT, LONG_WORDS, MANY_PLACES])
def test_what_was_heard_is_held_to_the_length_of_an_event(heard: Heard) -> None:
    """The reply stops all the same, as far as playback has said before."""
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7, limits=Limits(max_input_code_points=300)))
    call.send(client.Say(1, OTHERWISE), client.Playback(1, Heard(chars=14)))
    call.send(client.Playback(1, heard))
    assert not call.of(server.Interrupted)
    call.send(client.Interrupt(1, heard))
    problems = [failure.problem for failure in call.of(server.Failure)]
    assert [problem.reason for problem in problems] == 2 * [Reason.INPUT_TOO_LONG]
    assert [problem.field for problem in problems] == ["playback_progress.heard", "interrupt.heard"]
    assert [(told.guardrail, told.limit) for told in call.of(server.LimitReached)] == 2 * [(Guardrail.INPUT_SIZE, 300)]
    assert [cut.text for cut in call.of(server.Interrupted)] == [OTHERWISE[:14]]


def test_what_was_heard_may_be_as_long_as_an_event() -> None:
    call = CallUnderTest(client.Open(system=SYSTEM, seed=7, limits=Limits(max_input_code_points=len(OTHERWISE))))
    call.send(client.Say(1, OTHERWISE), client.Interrupt(1, Heard(text=OTHERWISE)))
    assert not call.of(server.Failure) and [cut.text for cut in call.of(server.Interrupted)] == [OTHERWISE]
