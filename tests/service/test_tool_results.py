"""What a tool has done is never lost to the model: not by an interruption, a failure, or by coming late."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from service import client_events as client
from service import server_events as server
from service.conversation import Conversation
from service.items import Item, MessageItem, ToolCallItem, ToolResultItem
from service.options import ContextPolicy, GenerationPatch, Limits, ToolChoice, TurnOptions
from service.problems import Reason
from service.server_events import HistoryCause, TurnEnd
from service.tool_results import INTERRUPTED_RESULT, TIMED_OUT_RESULT, UNHELD_RESULT
from tests.service.calls import LINES, SYSTEM, BegunEngine, CallUnderTest, chat, fresh_reply, target
from tests.service.interrupts import AROUND
from tests.service.test_guardrails import WAIT, due, holds
from tests.service.test_telemetry import at_a_tool_call

CALLING = TurnOptions(generation=GenerationPatch(max_tokens=120, temperature=0.0))
BRIEF = TurnOptions(generation=GenerationPatch(max_tokens=6, tool_choice=ToolChoice("none")))
DONE, FAILED = '{"id": "V2443"}', '{"error": "no such day"}'


def at_two_calls(options: TurnOptions = CALLING, **fields) -> tuple[CallUnderTest, list[server.ToolCalled]]:
    """A turn that waits for the results of two tools, with text before and between them."""
    call = CallUnderTest(client.Open(system=SYSTEM, tools=(WAIT,), seed=7, **fields), BegunEngine(AROUND))
    call.send(client.Final(1, LINES[0], options))
    call.run()
    called = call.of(server.ToolCalled)
    assert len(called) == 2 and call.of(server.TurnWaiting)
    return call, called


def answer(call: CallUnderTest, called: server.ToolCalled, output: str = DONE, **fields) -> None:
    call.send(client.ToolResult(called.turn_id, called.call.call_id, output, **fields))


def outputs(call: CallUnderTest) -> list[str]:
    """What the history holds of results."""
    return [item.output for item in call.conversation.items if isinstance(item, ToolResultItem)]


def results(call: CallUnderTest) -> list[str]:
    """The same, where each call has its own."""
    items = call.conversation.items
    calls = [item.call_id for item in items if isinstance(item, ToolCallItem)]
    assert [item.call_id for item in items if isinstance(item, ToolResultItem)] == calls
    return outputs(call)


def at_a_tool_that_was_given_up(max_calls: int) -> tuple[CallUnderTest, server.ToolCalled]:
    """A turn that is about to go on without it."""
    opening, line = at_a_tool_call()
    call = CallUnderTest(replace(opening, limits=Limits(tool_timeout_ms=5000, max_tool_calls_per_call=max_calls)))
    call.send(client.Final(1, line))
    call.run()
    (called,) = call.of(server.ToolCalled)
    due(call, 5.0)
    return call, called


def at_a_reply_without_its_tool() -> tuple[CallUnderTest, server.ToolCalled]:
    """A reply that is being made since its tool was given up."""
    call, called = at_a_tool_that_was_given_up(max_calls=1)
    call.step_until_text()
    return call, called


def goes_on(call: CallUnderTest, turn: int) -> None:
    """The next reply is that of a fresh session on what the history holds now."""
    call.send(client.Final(turn, LINES[1], BRIEF))
    reply = call.call.turns.reply
    call.run()
    assert reply.current.tokens == fresh_reply(call, reply)
    holds(call)


@pytest.mark.parametrize("first", [0, 1])
def test_a_call_that_was_carried_out_stays_though_the_other_has_no_result_yet(first: int) -> None:
    call, called = at_two_calls()
    answer(call, called[first])
    call.send(client.Interrupt(1, client.Heard(chars=5)))
    expected = [INTERRUPTED_RESULT, INTERRUPTED_RESULT]
    expected[first] = DONE
    assert results(call) == expected
    assert call.of(server.Interrupted)[-1].text == "Sure,"
    answer(call, called[1 - first], FAILED, is_error=True)
    expected[1 - first] = FAILED
    assert results(call) == expected
    goes_on(call, 2)
    assert results(call) == expected


def test_what_comes_of_tools_behind_an_interruption_is_told() -> None:
    call, called = at_two_calls()
    call.send(client.Interrupt(1, client.Heard(chars=5)))
    version = call.of(server.Interrupted)[-1].history.version

    def told(times: int) -> None:
        changes = call.of(server.HistoryChanged)
        assert [change.cause for change in changes] == [HistoryCause.TOOL_RESULT] * times
        assert changes[-1].history.version == version + times
        assert changes[-1].history.item_ids == tuple(item.id for item in call.conversation.items)
        assert changes[-1].history.used_tokens == call.conversation.length
        assert 0 < changes[-1].kept_tokens < call.conversation.length

    answer(call, called[0])
    told(1)
    for timer in [timer for timer in call.timers if timer[0] == 0.7]:
        call.timers.remove(timer)
        timer[1]()
    assert results(call) == [DONE, TIMED_OUT_RESULT]
    told(2)
    answer(call, called[1], FAILED)
    assert results(call) == [DONE, FAILED]
    told(3)
    call.send(client.Items((*call.conversation.items, MessageItem("", "user", "Hello?")), version + 2))
    assert call.of(server.Failure)[-1].problem.reason is Reason.STALE_HISTORY
    goes_on(call, 2)


def test_calls_of_which_none_was_carried_out_stand_nowhere_until_one_is() -> None:
    call, called = at_two_calls()
    call.send(client.Interrupt(1, client.Heard(chars=5)))
    assert results(call) == []
    answer(call, called[1])
    assert results(call) == [INTERRUPTED_RESULT, DONE]
    goes_on(call, 2)


@pytest.mark.parametrize("when", ["quiet", "while a reply is made", "both"])
def test_a_result_that_comes_when_the_caller_has_gone_on_takes_its_place(when: str) -> None:
    call, called = at_two_calls()
    call.send(client.Final(2, LINES[1], BRIEF))
    assert results(call) == [INTERRUPTED_RESULT] * 2
    if when != "quiet":
        call.step_until_text()
        answer(call, called[0])
        assert results(call) == [INTERRUPTED_RESULT] * 2 and not call.of(server.HistoryChanged)
    call.run()
    said = call.text(2)
    if when != "while a reply is made":
        answer(call, called[1], FAILED)
    expected = [INTERRUPTED_RESULT if when == "quiet" else DONE]
    expected.append(INTERRUPTED_RESULT if when == "while a reply is made" else FAILED)
    assert results(call) == expected
    changes = call.of(server.HistoryChanged)
    assert [change.cause for change in changes] == [HistoryCause.TOOL_RESULT] * (2 if when == "both" else 1)
    assert changes[-1].history.used_tokens == call.conversation.length
    (reply,) = [item.text for item in call.conversation.items if item.id == call.call.turns.reply.segments[0].item_id]
    assert reply == said  # what was said since stands as it was
    for late in called:
        answer(call, late, "another")  # which is dropped where there was one
    goes_on(call, 3)
    assert results(call) == ["another" if output == INTERRUPTED_RESULT else output for output in expected]


@pytest.mark.parametrize("while_generating", [False, True])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_late_result_is_there_when_the_next_turn_waits_for_tools(while_generating: bool, interrupted: bool) -> None:
    call, called = at_two_calls()
    assert isinstance(call.engine, BegunEngine)
    call.engine.beginning = BegunEngine(AROUND).beginning
    call.send(client.Final(2, LINES[1], CALLING), client.Update(system="Be short."))
    if while_generating:
        call.step_until_text()
        answer(call, called[0], DONE * 9)
        assert results(call) == [INTERRUPTED_RESULT] * 2
    call.run()
    later = call.of(server.ToolCalled)[2:]
    assert len(later) == 2 and call.of(server.TurnWaiting)[-1].turn_id == 2
    if not while_generating:
        answer(call, called[0], DONE * 9)
    assert outputs(call) == [DONE * 9, INTERRUPTED_RESULT]
    assert [change.cause for change in call.of(server.HistoryChanged)] == [HistoryCause.TOOL_RESULT]
    holds(call)
    if interrupted:
        call.send(client.Interrupt(2, client.Heard(chars=5)))
        assert call.of(server.Interrupted)[-1].text == "Sure,"
    for made in later:
        answer(call, made)
    call.run()
    assert results(call) == [DONE * 9, INTERRUPTED_RESULT, DONE, DONE]
    assert [c.cause for c in call.of(server.HistoryChanged)].count(HistoryCause.UPDATE) == 1
    goes_on(call, 3)


def test_a_reply_behind_a_late_result_can_still_be_spoken_over() -> None:
    call, called = at_two_calls()
    call.send(client.Final(2, LINES[1], BRIEF))
    call.run()
    answer(call, called[0], DONE * 9)
    call.send(client.Interrupt(2, client.Heard(chars=3)))
    assert call.of(server.Interrupted)[-1].text == call.text(2)[: len(call.of(server.Interrupted)[-1].text)]
    assert len(call.of(server.Interrupted)[-1].text) <= 3
    goes_on(call, 3)
    assert results(call) == [DONE * 9, INTERRUPTED_RESULT]


def test_a_reply_made_ahead_of_a_late_result_is_not_released() -> None:
    call, called = at_two_calls()
    call.send(client.Final(2, LINES[1], BRIEF))
    call.run()
    call.send(client.EagerEndOfTurn(3, 1, LINES[1], BRIEF))
    call.run()
    answer(call, called[0])
    goes_on(call, 3)
    assert results(call) == [DONE, INTERRUPTED_RESULT]


def test_a_tool_that_was_given_up_may_still_answer() -> None:
    call, called = at_a_tool_that_was_given_up(max_calls=2)
    call.run()
    (_, again) = call.of(server.ToolCalled)  # the model tries it once more
    answer(call, called)
    answer(call, again, FAILED)
    assert outputs(call)[-2:] == [DONE, FAILED]  # the turn only waited
    call.run()
    assert call.of(server.TurnEnded) and outputs(call)[-2:] == [DONE, FAILED]
    goes_on(call, 2)


@pytest.mark.parametrize("then", [client.Interrupt(1, client.Heard(chars=9)), client.Final(2, LINES[1], BRIEF)])
def test_a_late_result_is_there_when_the_reply_behind_it_is_cut(then: client.ClientEvent) -> None:
    call, called = at_a_reply_without_its_tool()
    answer(call, called)
    call.send(then)
    call.run()
    assert outputs(call)[-1] == DONE
    goes_on(call, 3)
    assert outputs(call)[-1] == DONE


def nearly_full(room: int) -> tuple[CallUnderTest, list[server.ToolCalled]]:
    """As ``at_two_calls``, where so many tokens more would fit behind the calls."""
    no_more = TurnOptions(generation=GenerationPatch(max_tokens=len(BegunEngine(AROUND).beginning) + 1))

    def opening(words: int) -> client.Open:
        return client.Open(system=SYSTEM, tools=(WAIT,), items=(MessageItem("", "assistant", "no " * words),))

    def opened(words: int) -> int:
        return Conversation.opened(chat(), opening(words)).length

    probe, _ = at_two_calls(no_more, items=opening(1).items)
    wanted, words = target().max_context_tokens - room - (probe.conversation.length - opened(1)), 1
    while missing := wanted - opened(words):
        words += missing
    call, called = at_two_calls(no_more, items=opening(words).items)
    assert target().max_context_tokens - call.conversation.length == room
    return call, called


def fits(call: CallUnderTest) -> None:
    """A reply could be asked for."""
    assert call.conversation.length + len(call.conversation.prompt) < target().max_context_tokens


@pytest.mark.parametrize("room", [1, 20, 50])
def test_a_result_behind_a_cut_counts_with_the_calls_that_come_back_with_it(room: int) -> None:
    call, called = nearly_full(room)
    call.send(client.Interrupt(1, client.Heard(chars=0)))
    before = call.conversation.tokens
    assert results(call) == []
    answer(call, called[0], "7 " * ((target().max_context_tokens - len(before)) // 2 - 8))  # alone it would fit
    (failure,) = call.of(server.Failure)
    assert (failure.problem.reason, failure.problem.field) == (Reason.CONTEXT_FULL, "tool_result.output")
    assert call.conversation.tokens == before and not call.of(server.HistoryChanged)
    answer(call, called[0])
    assert results(call) == ([DONE, INTERRUPTED_RESULT] if room > 1 else [])
    fits(call)
    holds(call)


@pytest.mark.parametrize("heard", [0, 5, 999])
def test_a_result_that_was_waited_for_and_does_not_fit_behind_a_cut_is_said_to_be_too_long(heard: int) -> None:
    call, called = at_two_calls()
    answer(call, called[0], "7 " * target().max_context_tokens)
    call.send(client.Interrupt(1, client.Heard(chars=heard)))
    assert results(call) == [UNHELD_RESULT, INTERRUPTED_RESULT]
    fits(call)
    goes_on(call, 2)


@pytest.mark.parametrize("room", [1, 20, 30])
@pytest.mark.parametrize("interrupted", [True, False])
def test_calls_go_with_a_cut_where_they_and_their_results_leave_no_room(room: int, interrupted: bool) -> None:
    call, called = nearly_full(room)
    answer(call, called[0])
    if interrupted:
        call.send(client.Interrupt(1, client.Heard(chars=999)))
        fits(call)
    call.send(client.Respond(2, BRIEF))
    assert results(call) == ([DONE, INTERRUPTED_RESULT] if room == 30 else [])
    call.run()
    assert not call.of(server.Failure) and call.of(server.TurnEnded)[-1].turn_id == 2
    holds(call)


@pytest.mark.parametrize("room", [1, 20])
def test_calls_without_results_are_told_with_the_next_turn_where_they_fit(room: int) -> None:
    call, _ = nearly_full(room)
    call.send(client.Interrupt(1, client.Heard(chars=0)), client.Respond(2, BRIEF))
    assert results(call) == ([] if room == 1 else [INTERRUPTED_RESULT] * 2)
    call.run()
    assert not call.of(server.Failure)
    holds(call)


def test_a_late_result_that_is_too_long_stays_out_when_the_reply_is_cut_afterwards() -> None:
    call, called = at_a_reply_without_its_tool()
    call.run()
    long = "7 " * ((target().max_context_tokens - call.conversation.length) // 2 + 50)
    call.send(client.ToolResult(1, called.call.call_id, long), client.Interrupt(1, client.Heard(chars=9)))
    assert outputs(call)[-1] == UNHELD_RESULT
    goes_on(call, 2)


@pytest.mark.parametrize("output", [INTERRUPTED_RESULT, TIMED_OUT_RESULT])
def test_a_tools_own_words_are_no_stand_in(output: str) -> None:
    call, called = at_two_calls()
    answer(call, called[0], output)
    call.send(client.Final(2, LINES[1], BRIEF))
    call.run()
    answer(call, called[1], output)
    answer(call, called[0], "another")
    answer(call, called[1], "another")
    assert results(call) == [output] * 2


def test_a_tool_that_was_given_up_may_answer_while_another_one_is_waited_for() -> None:
    call, called = at_two_calls(limits=Limits(tool_timeout_ms=5000))
    _, expire = next(timer for timer in call.timers if timer[0] == 0.7)
    expire()
    (given_up,) = call.of(server.ToolTimedOut)
    first, second = sorted(called, key=lambda made: made.call.call_id != given_up.call_id)
    answer(call, first)
    answer(call, second, FAILED)
    assert results(call) == [DONE if made is first else FAILED for made in called]


def test_a_tool_times_out_under_another_name() -> None:
    """A client that has names of its own sends its view of the conversation while the tools run."""
    call, _ = at_two_calls()
    named = tuple(replace(item, id=f"mine-{at}") for at, item in enumerate(call.conversation.items))
    call.send(client.Items(named))
    assert not call.of(server.TurnEnded)
    call.wait()
    call.run()
    assert len(call.of(server.ToolTimedOut)) == 2 and len(call.of(server.TurnEnded)) == 1
    assert len(set(results(call))) == 1 and "in time" in results(call)[0]


def test_what_stands_for_results_of_an_interrupted_turn_is_told() -> None:
    call, called = at_two_calls()
    call.send(client.Interrupt(1, client.Heard(chars=5)))
    before = call.of(server.Interrupted)[-1].history
    call.send(client.Final(2, LINES[1], BRIEF))
    (change,) = call.of(server.HistoryChanged)
    assert change.cause is HistoryCause.TOOL_RESULT and change.history.version == before.version + 1
    assert set(change.history.item_ids) >= {made.call.id for made in called}
    call.run()
    known = {*change.history.item_ids, *call.of(server.TurnEnded)[-1].history.item_ids}
    assert {item.id for item in call.conversation.items} == known


def test_a_result_that_came_with_the_items_may_come_again() -> None:
    call, called = at_two_calls()
    given = [ToolResultItem("", made.call.call_id, made.call.name, DONE) for made in called]
    call.send(client.Items((*call.conversation.items, *given)))
    answer(call, called[0])
    call.send(client.Respond(2, BRIEF))
    answer(call, called[1])
    call.run()
    assert not call.of(server.Failure) and results(call) == [DONE, DONE]


def test_results_that_nothing_is_said_to_are_computed_before_anybody_waits() -> None:
    call, called = at_two_calls()
    for made in called:
        answer(call, made, no_reply=True)
    call.run()
    assert call.engine.log(call.call.session) == call.conversation.tokens


@pytest.mark.parametrize("policy", ["drop_oldest", "refuse"])
def test_the_policy_for_a_full_context_makes_room_for_results(policy: Literal["drop_oldest", "refuse"]) -> None:
    turns = tuple(MessageItem("", role, LINES[0]) for _ in range(20) for role in ("user", "assistant"))
    call, called = at_two_calls(items=turns, context=ContextPolicy(policy, None, 300))
    room, words = target().max_context_tokens - call.conversation.length, 1

    def given(words: int) -> list[ToolResultItem]:
        return [ToolResultItem("", made.call.call_id, made.call.name, "7 " * words) for made in called]

    while call.conversation.result_tokens(given(words)) < room + 50:
        words += 1
    long = "7 " * words
    for made in called:
        answer(call, made, long)
    call.run()
    refused = [failure.problem.reason for failure in call.of(server.Failure)]
    if policy == "refuse":
        assert refused == [Reason.CONTEXT_FULL] and long not in outputs(call)
    else:
        assert not refused and outputs(call) == [long, long]
        assert call.of(server.HistoryChanged)[0].cause is HistoryCause.DROPPED_OLDEST
    assert call.call.turns is not None and call.call.turns.reply is not None
    assert len(call.call.turns.reply.segments) == 1 + (policy == "drop_oldest")  # it goes on behind them
    fits(call)


def test_a_late_result_finds_its_place_under_other_names() -> None:
    call, called = at_two_calls()
    call.send(client.Final(2, LINES[1], BRIEF))
    call.step_until_text()
    answer(call, called[0], item_id="mine")
    answer(call, called[1])
    named = [replace(item, id=f"named-{at}") for at, item in enumerate(call.conversation.items)]
    call.send(client.Items(tuple(named)))
    call.run()
    assert results(call) == [DONE] * 2
    ids = [item.id for item in call.conversation.items if isinstance(item, ToolResultItem)]
    assert ids[0] == "mine" and ids[1].startswith("named-")


def view(call: CallUnderTest, *, stand_ins: bool = True) -> tuple[Item, ...]:
    """The history as a client sees it, which knows no stand-ins, or at least not that they are any."""
    return tuple(
        replace(item, stands_in=False) if isinstance(item, ToolResultItem) else item
        for item in call.conversation.items
        if stand_ins or not isinstance(item, ToolResultItem) or not item.stands_in
    )


MORE = MessageItem("", "user", "Hello?")


def edited(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Another first message: nothing of the history is left."""
    return (MessageItem("", "user", "Good morning."), *items[1:])


@pytest.mark.parametrize("from_the_start", [False, True])
@pytest.mark.parametrize("stand_ins", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_a_result_finds_its_place_behind_an_edit(first: int, stand_ins: bool, from_the_start: bool) -> None:
    call, called = at_two_calls()
    answer(call, called[first])
    call.send(client.Interrupt(1, client.Heard(chars=5)))
    items = (*view(call, stand_ins=stand_ins), MORE)
    call.send(client.Items(edited(items) if from_the_start else items))
    expected = [INTERRUPTED_RESULT, INTERRUPTED_RESULT]
    expected[first] = DONE
    assert results(call) == expected and not call.call.turns.reply.outstanding
    log = call.conversation.tokens
    call.send(client.Items(edited(items) if from_the_start else items))  # the same again changes nothing
    assert call.conversation.tokens == log and call.of(server.HistoryChanged)[-1].kept_tokens == len(log)
    answer(call, called[1 - first], FAILED, is_error=True)
    expected[1 - first] = FAILED
    assert results(call) == expected and not call.of(server.Failure)
    assert call.of(server.HistoryChanged)[-1].cause is HistoryCause.TOOL_RESULT
    opening = client.Open(system=SYSTEM, tools=(WAIT,), items=call.conversation.items)
    if from_the_start:
        assert call.conversation.tokens == Conversation.opened(chat(), opening).tokens
    goes_on(call, 2)
    assert results(call) == expected


@pytest.mark.parametrize("answered", [0, 1])
@pytest.mark.parametrize("from_the_start", [False, True])
def test_a_result_finds_its_place_behind_an_edit_of_a_turn_that_waits(answered: int, from_the_start: bool) -> None:
    call, called = at_two_calls()
    for made in called[:answered]:
        answer(call, made)
    items = (*view(call), MORE)
    call.send(client.Items(edited(items) if from_the_start else items))
    assert results(call) == [DONE if answered else INTERRUPTED_RESULT, INTERRUPTED_RESULT]
    for made in called:
        answer(call, made, FAILED)
    assert results(call) == [DONE if answered else FAILED, FAILED] and not call.of(server.Failure)
    goes_on(call, 2)


def test_calls_that_stood_nowhere_stand_where_the_client_puts_them() -> None:
    call, called = at_two_calls()
    items = view(call)
    call.send(client.Interrupt(1, client.Heard(chars=5)))
    assert results(call) == []
    call.send(client.Items((*view(call), *(item for item in items if isinstance(item, ToolCallItem)), MORE)))
    assert results(call) == [INTERRUPTED_RESULT] * 2
    answer(call, called[1])
    assert results(call) == [INTERRUPTED_RESULT, DONE]
    goes_on(call, 2)


def test_a_result_of_a_call_that_the_client_has_taken_out_is_refused() -> None:
    call, called = at_two_calls()
    call.send(client.Interrupt(1, client.Heard(chars=5)), client.Items((*view(call)[:1], MORE)))
    answer(call, called[0])
    (failure,) = call.of(server.Failure)
    assert (failure.problem.reason, failure.problem.field) == (Reason.UNKNOWN_TOOL_CALL, "tool_result.call_id")
    assert results(call) == []


def test_a_late_result_that_is_too_long_for_what_a_client_has_put_in_place_is_said_to_be() -> None:
    call, called = at_two_calls()
    answer(call, called[0])
    call.send(client.Interrupt(1, client.Heard(chars=5)))
    call.send(client.Items(edited((*view(call), MORE))))
    before = call.conversation.length
    answer(call, called[1], "7 " * target().max_context_tokens)
    assert results(call) == [DONE, UNHELD_RESULT] and call.conversation.length < before + 50
    goes_on(call, 2)


def test_what_was_called_before_the_engine_failed_stays() -> None:
    call = CallUnderTest(client.Open(system=SYSTEM, tools=(WAIT,), seed=7), BegunEngine(AROUND))
    call.send(client.Final(1, LINES[0], CALLING))
    while len(call.of(server.ToolCalled)) < 2:
        assert call.engine.step()
    for _ in range(4):  # more than one reply survives
        call.engine.die()
    call.run()
    (end,) = call.of(server.TurnEnded)
    assert end.reason is TurnEnd.FAILED
    answer(call, call.of(server.ToolCalled)[0])
    assert results(call) == [DONE, INTERRUPTED_RESULT]
    goes_on(call, 2)
    assert results(call) == [DONE, INTERRUPTED_RESULT]


def test_a_result_of_no_call_is_refused_as_before() -> None:
    call, called = at_two_calls()
    call.send(client.Final(2, LINES[1], BRIEF), client.ToolResult(1, "another", DONE))
    (failure,) = call.of(server.Failure)
    assert failure.problem.reason is Reason.STALE_TURN
    answer(call, called[0], "x" * 100_000)
    assert call.of(server.Failure)[-1].problem.field == "tool_result.output"
    call.run()
    assert results(call) == [INTERRUPTED_RESULT] * 2
