"""Replies made ahead of the final: what they say, when they are released, and what is left of those that are not."""

from __future__ import annotations

import pytest

from service import client_events as client
from service import server_events as server
from service.config import CallConfig
from service.options import AnswerAheadPatch, GenerationPatch, TurnOptions
from service.server_events import AheadState
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest

SHORT = TurnOptions(generation=GenerationPatch(max_tokens=12))


def opening(**fields) -> client.Open:
    return client.Open(system=SYSTEM, seed=7, progress_notices=True, **fields)


def plain_reply(text: str, options: TurnOptions = SHORT) -> tuple[str, tuple[int, ...]]:
    """What a fresh call says to the text, and its log afterwards."""
    call = CallUnderTest(opening())
    call.send(client.Final(1, text, options))
    call.run()
    return call.text(1), call.conversation.tokens


def states(call: CallUnderTest) -> list[AheadState]:
    return [event.state for event in call.of(server.AnsweringAhead)]


@pytest.mark.parametrize("steps", [0, 1, 5, 1000])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_released_reply_is_the_one_that_the_final_would_have_had(steps, temperature):
    """However far it was made by then, and though it may only make four tokens before it is asked for."""
    options = TurnOptions(generation=GenerationPatch(max_tokens=12, temperature=temperature))
    expected, log = plain_reply(LINES[0], options)
    call = CallUnderTest(opening(answer_ahead=AnswerAheadPatch(max_tokens=4)))
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], options))
    for _ in range(steps):
        call.engine.step()
    assert not call.of(server.TextDelta)
    if steps == 1000:
        ahead = len(call.engine.log(call.call.session)) - call.conversation.length
        assert ahead == len(call.conversation.user_tokens(LINES[0])) + len(call.conversation.prompt) + 4
    call.send(client.Final(1, LINES[0], options))
    released_at_once = call.text(1)
    call.run()
    assert call.text(1) == expected and (steps < 5 or released_at_once)
    assert call.conversation.tokens == log
    assert log[: len(call.engine.log(call.call.session))] == call.engine.log(call.call.session)
    assert states(call) == [AheadState.STARTED, AheadState.RELEASED]
    end = call.of(server.TurnEnded)[0]
    assert end.account.released >= end.account.committed and end.account.wasted_ahead == 0
    if steps == 1000:
        assert end.account.stats[0].prefilled_ahead == end.account.stats[0].prompt_tokens - len(
            CallUnderTest(opening()).conversation.tokens
        )


def test_what_was_held_is_told_at_once_and_as_one():
    expected, _ = plain_reply(LINES[0])
    call = CallUnderTest(opening())
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT))
    call.run()
    call.send(client.Final(1, LINES[0], SHORT))
    (told,) = call.of(server.TextDelta)
    assert told.text == expected and told.offset == 0
    assert sum(length for length, _ in told.spans) == len(told.text)
    call.run()
    (end,) = call.of(server.TurnEnded)
    assert call.of(server.TextDelta) == [told] and told.tokens == end.account.output_tokens > 2


def test_the_end_of_a_released_turn_does_not_keep_its_first_text_waiting():
    call = CallUnderTest(opening())
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT))
    call.run()
    call.send(client.Final(1, LINES[0], SHORT))
    assert call.text(1) and not call.of(server.TurnEnded)
    call.run_due()
    assert len(call.of(server.TurnEnded)) == 1


def test_what_comes_between_the_first_text_and_the_end_of_a_released_turn_finds_a_reply_being_made():
    def cut(ahead: bool) -> CallUnderTest:
        call = CallUnderTest(opening())
        call.send(*[client.EagerEndOfTurn(1, 1, LINES[0], SHORT)] * ahead)
        call.run()
        call.send(client.Final(1, LINES[0], SHORT))
        if not ahead:
            call.step_until_text()
        call.send(client.Interrupt(1, client.Heard(chars=4)), client.Final(2, LINES[1], SHORT))
        call.run()
        return call

    call, plain = cut(True), cut(False)
    assert call.conversation.tokens == plain.conversation.tokens and call.text(2) == plain.text(2)
    assert [end.reason for end in call.of(server.TurnEnded)] == [end.reason for end in plain.of(server.TurnEnded)]
    log = call.engine.log(call.call.session)
    assert log == call.conversation.tokens[: len(log)]


def test_a_final_with_other_words_or_options_is_answered_as_if_nothing_had_been_made():
    for final in (client.Final(1, LINES[1], SHORT), client.Final(1, LINES[0], TurnOptions())):
        expected, log = plain_reply(final.text, final.options)
        call = CallUnderTest(opening())
        call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT))
        call.run()
        call.send(final)
        call.run()
        assert call.text(1) == expected and call.conversation.tokens == log
        assert states(call) == [AheadState.STARTED, AheadState.MISMATCHED]
        assert call.of(server.TurnEnded)[0].account.wasted_ahead > 0


def test_a_normalised_match_keeps_the_eager_turns_words():
    eager, final = "hello, are you open?", "Hello - are you OPEN"
    expected, log = plain_reply(eager)
    for normalised in (False, True):
        call = CallUnderTest(opening(answer_ahead=AnswerAheadPatch(normalised=normalised)))
        call.send(client.EagerEndOfTurn(1, 1, eager, SHORT))
        call.run()
        call.send(client.Final(1, final, SHORT, item_id="mine"))
        call.run()
        assert (call.conversation.tokens == log) is normalised
        assert (states(call)[-1] is AheadState.RELEASED) is normalised
        item = next(item for span in call.conversation.spans for item in span.items if item.id == "mine")
        assert item.text == (eager if normalised else final)
        assert not normalised or call.text(1) == expected


@pytest.mark.parametrize(
    ("said", "heard", "same"),
    [("Yes.", "yes", True), ("room 3.5", "room 35", False), ("-5 degrees", "5 degrees", False), ("?", "!", False)],
)
def test_what_counts_as_the_same_words(said, heard, same):
    call = CallUnderTest(opening(answer_ahead=AnswerAheadPatch(normalised=True)))
    call.send(client.EagerEndOfTurn(1, 1, said, SHORT), client.Final(1, heard, SHORT))
    assert (states(call)[-1] is AheadState.RELEASED) is same


@pytest.mark.parametrize("steps", [0, 3, 1000])
def test_a_caller_who_goes_on_costs_nothing_but_tokens(steps):
    expected, log = plain_reply(LINES[1])
    call = CallUnderTest(opening())
    call.send(client.Partial(1, 1, LINES[0][:10]), client.EagerEndOfTurn(1, 2, LINES[0], SHORT))
    for _ in range(steps):
        call.engine.step()
    call.send(client.TurnResumed(1))
    call.run()
    # What was supposed is still computed; nothing of a reply is behind it.
    ahead = (*call.conversation.user_tokens(LINES[0]), *call.conversation.prompt)
    assert call.engine.log(call.call.session) == (*call.conversation.tokens, *ahead)
    call.send(client.Partial(1, 3, LINES[0] + " and"), client.Final(1, LINES[1], SHORT))
    call.run()
    assert call.text(1) == expected and call.conversation.tokens == log
    assert states(call) == [AheadState.STARTED, AheadState.RESUMED]


def test_what_nobody_asks_for_is_dropped_in_time():
    call = CallUnderTest(opening(answer_ahead=AnswerAheadPatch(max_ms=500)))
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT))
    call.run()
    assert [seconds for seconds, _ in call.timers] == [0.5]
    call.wait()
    call.run()
    assert states(call) == [AheadState.STARTED, AheadState.EXPIRED] and not call.timers
    call.send(client.Final(1, LINES[0], SHORT))
    call.run()
    assert call.text(1) == plain_reply(LINES[0])[0]
    assert call.of(server.TurnEnded)[0].account.wasted_ahead == 12


def test_released_and_dropped_replies_leave_no_timer():
    for text in LINES[:2]:
        call = CallUnderTest(opening())
        call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT), client.Final(1, text, SHORT))
        assert not call.timers
    call = CallUnderTest(opening())
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT), client.CloseCall())
    assert not call.timers


def test_repeated_hypotheses_keep_the_reply_and_others_drop_it():
    call = CallUnderTest(opening())
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT), client.EagerEndOfTurn(1, 1, LINES[1], SHORT))
    call.send(client.Partial(1, 2, LINES[0]), client.EagerEndOfTurn(1, 3, LINES[0], SHORT))
    assert states(call) == [AheadState.STARTED]
    call.send(client.Partial(1, 4, LINES[0] + " also"))
    assert states(call) == [AheadState.STARTED, AheadState.RESUMED]
    call.send(client.EagerEndOfTurn(1, 5, LINES[0], SHORT), client.EagerEndOfTurn(1, 6, LINES[0], TurnOptions()))
    assert states(call)[2:] == [AheadState.STARTED, AheadState.RESUMED, AheadState.STARTED]


def test_nothing_is_answered_ahead_while_the_last_reply_may_still_be_cut():
    call = CallUnderTest(opening())
    call.send(client.Final(1, LINES[0], SHORT))
    call.step_until_text()
    call.send(client.EagerEndOfTurn(2, 1, LINES[1], SHORT))
    assert states(call) == []
    call.send(client.Playback(1, client.Heard(chars=1)))
    call.run()
    assert states(call) == []
    call.send(client.Interrupt(1, client.Heard(chars=4)))
    assert states(call) == [AheadState.STARTED]
    call.run()
    call.send(client.Interrupt(1, client.Heard(chars=2)))
    assert states(call) == [AheadState.STARTED, AheadState.ABANDONED, AheadState.STARTED]
    call.run()
    call.send(client.Final(2, LINES[1], SHORT))
    call.run()
    other = CallUnderTest(opening())
    other.send(client.Final(1, LINES[0], SHORT))
    other.run()
    other.send(client.Interrupt(1, client.Heard(chars=2)), client.Final(2, LINES[1], SHORT))
    other.run()
    assert call.text(2) == other.text(2) and call.conversation.tokens == other.conversation.tokens


WORDS = tuple(client.WordTiming(100 * number, word=word) for number, word in enumerate(["One", "moment", "please"], 1))
PLAYED = client.Heard(played_ms=10_000, words=WORDS)


@pytest.mark.parametrize("last", [client.Heard(chars=10_000), PLAYED, client.Heard(text="one moment please")])
def test_an_eager_end_before_the_last_report_of_playback_is_answered_ahead(last):
    """The timings say nothing of the full stop: all is heard all the same, and nothing is cut by the next turn."""
    call = CallUnderTest(opening())
    call.send(client.Say(1, "One moment, please."), client.Playback(1, client.Heard(chars=3)))
    call.send(client.EagerEndOfTurn(2, 1, LINES[0], SHORT))
    assert states(call) == []
    call.send(client.Playback(1, last))
    assert states(call) == [AheadState.STARTED]
    call.run()
    call.send(client.Playback(1, last))  # says nothing new
    assert states(call) == [AheadState.STARTED] and len(call.timers) == 1
    call.send(client.Final(2, LINES[0], SHORT))
    call.run_due()
    assert states(call) == [AheadState.STARTED, AheadState.RELEASED] and not call.timers
    assert call.text(2) and not call.of(server.Interrupted)


def test_a_report_that_comes_late_leaves_what_is_held_to_the_final():
    """Playback is first reported when the reply is made: a final then cuts the last turn, one at its end does not."""
    for played in (3, 10_000):
        call = CallUnderTest(opening())
        call.send(client.Say(1, "One moment, please."), client.EagerEndOfTurn(2, 1, LINES[0], SHORT))
        call.run()
        for chars in (3, played):
            call.send(client.Playback(1, client.Heard(chars=chars)))
        assert states(call) == [AheadState.STARTED] and len(call.timers) == 1
        call.send(client.Final(2, LINES[0], SHORT))
        call.run_due()
        assert states(call)[-1] is (AheadState.RELEASED if played > 3 else AheadState.ABANDONED)
        assert len(call.of(server.Interrupted)) == (played == 3) and not call.timers
        call.run()
        assert call.engine.log(call.call.session) == call.conversation.tokens[: len(call.engine.log(call.call.session))]


def test_a_reply_is_dropped_for_another_text_only_where_the_text_is_another():
    call = CallUnderTest(opening())
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT))
    call.engine.refuse(call.call.session, 1, "OutOfPages")
    call.send(client.Final(1, LINES[0], SHORT))
    assert states(call) == [AheadState.STARTED, AheadState.ABANDONED]
    call.run()
    call.send(client.EagerEndOfTurn(2, 1, LINES[0], SHORT), client.Final(3, LINES[0], SHORT))
    assert states(call)[2:] == [AheadState.STARTED, AheadState.ABANDONED]


def test_an_engine_that_dies_over_a_held_reply_changes_nothing():
    expected, log = plain_reply(LINES[0])
    for steps in (1, 6, 1000):
        call = CallUnderTest(opening(answer_ahead=AnswerAheadPatch(max_tokens=6)))
        call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT))
        for _ in range(steps):
            call.engine.step()
        call.engine.die()
        call.engine.step()
        call.send(client.Final(1, LINES[0], SHORT))
        call.engine.die()
        call.run()
        assert call.text(1) == expected and call.conversation.tokens == log


def test_a_reply_that_stands_still_goes_on_as_if_it_had_not_though_engines_die():
    """Beside another call no more is made ahead than is spoken for two seconds."""
    options, stood = TurnOptions(generation=GenerationPatch(max_tokens=60)), 0
    for line in LINES:
        expected, log = plain_reply(line, options)
        for deaths in ((), ("before",), ("behind",), ("before", "behind")):
            call = CallUnderTest(opening())
            call.engine.open("other", log, 1, lambda failed: None)
            call.send(client.EagerEndOfTurn(1, 1, line, options))
            call.run()
            stood += 0 < len(call.engine.standing(call.call.session)) < 60
            for when in ("before", "behind"):
                if when == "behind":
                    call.send(client.Final(1, line, options))
                if when in deaths:
                    call.engine.die()
                    call.run()
            call.run()
            assert call.text(1) == expected and call.conversation.tokens == log
            call.engine.close("other")
            call.engine.run()
    assert stood >= 4


def test_a_held_reply_that_fails_is_asked_for_again():
    call = CallUnderTest(opening())
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT))
    call.engine.refuse(call.call.session, 1, "OutOfPages")
    call.run()
    assert not call.of(server.Failure)
    call.send(client.Final(1, LINES[0], SHORT))
    call.run()
    assert call.text(1) == plain_reply(LINES[0])[0]


def test_a_tool_is_called_when_the_reply_is_released_and_not_before():
    for line in LINES:
        call = CallUnderTest(client.Open(system=SYSTEM, tools=TOOLS, seed=7))
        call.send(client.EagerEndOfTurn(1, 1, line))
        call.run()
        assert not call.of(server.ToolCalled)
        call.send(client.Final(1, line))
        call.run()
        if call.of(server.ToolCalled):
            return
    raise AssertionError("no line of the call has a tool called")


def test_prefilled_tokens_are_counted_and_told():
    call = CallUnderTest(opening())
    begin = call.conversation.length
    texts = ["could you", "could you tell me", "could you sell me a car"]
    for revision, text in enumerate(texts, start=1):
        call.send(client.Partial(1, revision, text))
        call.run()
    told = call.of(server.PrefilledAhead)
    assert [event.revision for event in told] == [1, 2, 3]
    sizes = [len(call.conversation.user_tokens(text)) + len(call.conversation.prompt) for text in texts]
    assert [event.tokens for event in told] == sizes
    assert told[0].rewound == 0 < told[1].rewound < sizes[0]
    assert told[1].computed == sizes[1] - (sizes[0] - 1 - told[1].rewound)
    call.send(client.Final(1, texts[-1], SHORT))
    call.run()
    stats = call.of(server.TurnEnded)[0].account.stats[0]
    assert stats.prefilled_ahead == sizes[-1] - 1 == stats.cached_tokens - begin
    assert stats.rewound == told[1].rewound + told[2].rewound
    call.send(client.Final(2, "thank you", SHORT))
    call.run()
    assert call.of(server.TurnEnded)[1].account.stats[0].rewound == 0


def test_a_call_that_has_had_its_turns_is_answered_no_more():
    call = CallUnderTest(opening(limits=client.Limits(max_turns=1)))
    call.send(client.Final(1, LINES[0], SHORT))
    call.run()
    call.send(client.EagerEndOfTurn(2, 1, LINES[1], SHORT))
    assert states(call) == []


def test_the_services_bounds_hold_for_clients_that_ask_for_more():
    config = CallConfig(max_held_tokens=3, max_held_ms=200)
    call = CallUnderTest(opening(answer_ahead=AnswerAheadPatch(max_tokens=50, max_ms=9000)), config=config)
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], SHORT))
    call.run()
    assert [seconds for seconds, _ in call.timers] == [0.2]
    call.wait()
    assert call.of(server.AnsweringAhead)[-1].tokens == 3
