"""A call that is changed between its turns: the history is what a call opened so would hold, and nothing else moves."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.constraint import Constraint
from service import client_events as client
from service import server_events as server
from service.conversation import Conversation
from service.items import Item, MessageItem, ToolCallItem, ToolDefinition, ToolResultItem
from service.options import Generation, GenerationPatch, ToolChoice, TurnOptions
from service.problems import Reason
from service.server_events import HistoryCause
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest, chat

TURN = TurnOptions(generation=GenerationPatch(max_tokens=10, tool_choice=ToolChoice("none")))
OTHER = "You answer the phone for Bo's Bikes. Be short."
TOOL = ToolDefinition("find", "Find.", {"type": "object", "properties": {"x": {"type": "string"}}})


def opened(**fields) -> CallUnderTest:
    return CallUnderTest(client.Open(**{"system": SYSTEM, "seed": 7, "tools": TOOLS, **fields}))


def spoken(turns: int, **fields) -> CallUnderTest:
    call = opened(**fields)
    for turn in range(1, turns + 1):
        call.send(client.Final(turn, LINES[turn - 1], TURN))
        call.run()
    return call


def content(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items but for their names, and for whether somebody spoke over them."""
    nameless = (dataclasses.replace(item, id="") for item in items)
    return tuple(dataclasses.replace(i, interrupted=False) if isinstance(i, MessageItem) else i for i in nameless)


def written(system: str, items: tuple[Item, ...], tools=TOOLS) -> tuple[int, ...]:
    """The log of a call that is opened with all of it."""
    return Conversation.opened(chat(), client.Open(system=system, items=items, tools=tools)).tokens


def changes(call: CallUnderTest) -> list[server.HistoryChanged]:
    return call.of(server.HistoryChanged)


def agrees(call: CallUnderTest) -> None:
    """The engine's log is the history, but for the end of the last message, which it is told of with the next."""
    call.run()
    log, tokens = call.engine.log(call.call.session), call.conversation.tokens
    assert len(tokens) - 2 <= len(log) and log[: len(tokens)] == tokens[: len(log)]


# New instructions


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_new_instructions_are_those_of_a_call_opened_with_them(turns):
    call = spoken(turns)
    version = call.of(server.TurnEnded)[-1].history.version if turns else 1
    call.send(client.Update(system=OTHER, tools=(TOOL,)))
    (change,) = changes(call)
    assert change.cause is HistoryCause.UPDATE and change.history.version == version + 1
    assert change.history.item_ids == tuple(item.id for item in call.conversation.items)
    assert call.conversation.tokens == written(OTHER, call.conversation.items, (TOOL,))
    assert change.history.used_tokens == call.conversation.length and change.kept_tokens < 40
    agrees(call)
    call.send(client.Final(9, "Hello?", TURN))
    call.run()
    fresh = opened(system=OTHER, tools=(TOOL,), items=call.conversation.items[: 2 * turns])
    fresh.send(client.Final(9, "Hello?", TURN))
    fresh.run()
    assert call.text(9) == fresh.text(9) and call.conversation.tokens == fresh.conversation.tokens


def test_the_form_of_new_tools_is_announced():
    call = opened()
    told: list[Constraint] = []
    mirrors = call.engine._sessions[call.call.session]
    mirrors.prepare = told.append  # type: ignore[method-assign]
    call.send(client.Update(tools=(TOOL,)))
    (constraint,) = told
    assert constraint == call.conversation.constraint(Generation(), goes_on=False)


def test_a_reply_in_progress_is_made_on_the_old_ones_and_can_be_cut_on_the_new():
    call, plain = opened(), spoken(1)
    call.send(client.Final(1, LINES[0], TURN))
    call.step_until_text()
    call.send(client.Update(system="Never mind."), client.Update(system=OTHER))
    assert not changes(call)
    call.run()
    assert call.text(1) == plain.text(1) and len(changes(call)) == 2
    assert call.conversation.tokens == written(OTHER, call.conversation.items)
    call.send(client.Interrupt(1, client.Heard(chars=5)))
    kept = call.of(server.Interrupted)[-1].text
    assert call.conversation.tokens == written(
        OTHER, (MessageItem("", "user", LINES[0]), MessageItem("", "assistant", kept))
    )
    agrees(call)
    assert chat().codec.decode(list(call.conversation.tokens)).startswith(OTHER)


def test_the_next_turn_has_the_new_instructions_though_it_overtakes_a_reply():
    call = opened()
    call.send(client.Final(1, LINES[0], TURN))
    call.step_until_text()
    call.send(client.Update(system=OTHER, generation=GenerationPatch(max_tokens=3)), client.Final(2, LINES[1]))
    call.run()
    assert call.of(server.TurnEnded)[-1].account.output_tokens == 3
    assert call.conversation.tokens == written(OTHER, call.conversation.items)
    agrees(call)


def test_what_was_answered_ahead_is_answered_again():
    call = opened(progress_notices=True)
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], TURN))
    call.run()
    call.send(client.Update(system=OTHER), client.Final(1, LINES[0], TURN))
    call.run()
    fresh = spoken(1, system=OTHER)
    assert call.text(1) == fresh.text(1)
    states = [event.state.value for event in call.of(server.AnsweringAhead)]
    assert states == ["started", "abandoned", "started", "released"]


def test_tools_that_come_and_go():
    call = opened(tools=())
    call.send(client.Update(generation=GenerationPatch(tool_choice=ToolChoice("required", "find"))))
    (failure,) = call.of(server.Failure)
    assert failure.problem.field == "update.tool_choice.tool_name" and not changes(call)
    choice = GenerationPatch(tool_choice=ToolChoice("required", "find", several=False), max_tokens=60)
    call.send(client.Update(tools=(TOOL,), generation=choice))
    call.send(client.Final(1, LINES[0]))
    call.run()
    made = [event.call.name for event in call.of(server.ToolCalled)]
    assert made == ["find"] or call.of(server.TurnEnded)[-1].reason is server.TurnEnd.LENGTH
    call.send(client.Interrupt(1, None), client.Update(tools=(), generation=GenerationPatch(tool_choice=ToolChoice())))
    call.run()
    assert call.conversation.call_form is None
    agrees(call)


def test_instructions_that_do_not_fit_change_nothing():
    call = spoken(1)
    before = call.conversation.tokens
    call.send(client.Update(system="word " * 3000, generation=GenerationPatch(max_tokens=1)))
    assert call.of(server.Failure)[-1].problem.reason is Reason.CONTEXT_FULL
    assert call.conversation.tokens == before and not changes(call)
    none = TurnOptions(generation=GenerationPatch(tool_choice=ToolChoice("none")))
    call.send(client.Final(2, LINES[1], none))
    call.run()
    assert call.of(server.TurnEnded)[-1].account.output_tokens > 1


# The client's own view


def edited(rng: random.Random, items: list[Item]) -> list[Item]:
    """The conversation with something done to it."""
    items = list(items)
    kind = rng.choice(["same", "append", "drop", "change", "cut", "clear", "insert"])
    place = rng.randrange(len(items) + 1)
    match kind:
        case "append":
            items += [MessageItem("", "user", "And one more thing."), MessageItem("", "assistant", "Yes?")]
        case "drop":
            items = items[:place]
        case "change" if place < len(items) and isinstance(items[place], MessageItem):
            items[place] = dataclasses.replace(items[place], text="Something else.")
        case "cut" if items and isinstance(items[-1], MessageItem) and items[-1].role == "assistant":
            items[-1] = dataclasses.replace(items[-1], text=items[-1].text[:4] or "H", interrupted=True)
        case "clear":
            items = []
        case "insert":
            call = ToolCallItem("", f"c{place}", "find_appointment", '{"name": "Al"}')
            items[place:place] = [call, ToolResultItem("", call.call_id, call.name, '{"id": 3}')]
    return items


@given(st.integers(0, 2**32), st.integers(0, 2), st.booleans())
@settings(max_examples=40, deadline=None)
def test_after_any_edit_the_history_is_that_of_a_call_opened_with_it(seed, turns, prior):
    rng = random.Random(seed)
    before = (MessageItem("a", "user", "Hello."), MessageItem("b", "assistant", "Hi, how can I help?")) if prior else ()
    call = spoken(turns, items=before)
    for _ in range(2):
        old = call.conversation.tokens
        items = tuple(edited(rng, list(call.conversation.items)))
        call.send(client.Items(items))
        change = changes(call)[-1]
        assert content(call.conversation.items) == content(items)
        wanted = written(SYSTEM, call.conversation.items)
        assert call.conversation.tokens == wanted
        kept = next(
            (at for at, (a, b) in enumerate(zip(old, wanted, strict=False)) if a != b), min(len(old), len(wanted))
        )
        assert change.kept_tokens == kept and change.history.used_tokens == len(wanted)
        agrees(call)
    call.send(client.Final(9, "Hello?", TURN))
    call.run()
    fresh = opened(items=call.conversation.items[:-2])
    fresh.send(client.Final(9, "Hello?", TURN))
    fresh.run()
    assert call.text(9) == fresh.text(9)
    CallUnderTest.end_all()


def test_a_view_that_is_the_same_leaves_a_reply_in_progress_and_gives_it_names():
    call, plain = spoken(1), spoken(2)
    call.send(client.Final(2, LINES[1], TURN))
    call.step_until_text()
    mine = [dataclasses.replace(item, id=f"mine-{at}") for at, item in enumerate(call.conversation.items)]
    version = call.of(server.TurnEnded)[-1].history.version
    call.send(client.Items(tuple(mine), version))
    (change,) = changes(call)
    assert change.history.item_ids == ("mine-0", "mine-1", "mine-2") and change.history.version == version
    call.run()
    assert call.text(2) == plain.text(2) and call.conversation.tokens == plain.conversation.tokens


def test_a_view_that_differs_ends_a_reply_in_progress():
    call = spoken(1)
    call.send(client.Final(2, LINES[1], TURN))
    call.step_until_text()
    call.send(client.Items(call.conversation.items[:2]))
    call.run()
    assert call.of(server.TurnEnded)[-1].reason is server.TurnEnd.INTERRUPTED
    assert call.conversation.tokens == written(SYSTEM, call.conversation.items) and len(call.conversation.items) == 2
    agrees(call)
    call.send(client.Interrupt(2, client.Heard(chars=1)))
    assert call.of(server.Interrupted)[-1].text == "" == call.of(server.TurnEnded)[-1].text
    assert not call.of(server.Failure)
    agrees(call)


SAID = MessageItem("", "assistant", "One moment, please.")


@pytest.mark.parametrize(
    ("view", "left"),
    [
        ((), ""),
        ((MessageItem("", "assistant", "One moment,"),), "One moment,"),
        ((MessageItem("fw-2", "assistant", "One"), MessageItem("", "user", "Well?")), "One"),
        ((MessageItem("", "assistant", "Wait, please."),), ""),
        ((MessageItem("mine", "assistant", "One"),), ""),
        (
            (MessageItem("", "assistant", "One moment, please."), MessageItem("", "user", "Well?")),
            "One moment, please.",
        ),
    ],
)
def test_an_interrupt_after_an_edit_is_told_what_that_has_left(view, left):
    before = MessageItem("", "assistant", "Hello.")
    call = opened(items=(before,))
    call.send(client.Say(1, SAID.text), client.Items((before, *view)))
    call.send(client.Interrupt(1, client.Heard(chars=3)))
    assert call.of(server.Interrupted)[-1].text == left and not call.of(server.Failure)
    assert content(call.conversation.items)[1:] == content(view)
    call.send(client.Items((before,)), client.Interrupt(1, client.Heard(chars=3)))
    assert call.of(server.Interrupted)[-1].text == ""
    agrees(call)


def test_a_view_that_goes_on_behind_a_reply_cuts_nothing_of_it():
    call = spoken(1)
    known = call.conversation.items
    call.send(client.Playback(1, client.Heard(chars=4)))
    more = (*known, MessageItem("", "user", "And?"), MessageItem("", "assistant", "That is all."))
    call.send(client.Items(more))
    assert content(call.conversation.items) == content(more) and not call.of(server.Interrupted)
    call.send(client.Interrupt(1, client.Heard(chars=4)), client.Final(2, LINES[1], TURN))
    call.run()
    assert content(call.conversation.items[:4]) == content(more)
    agrees(call)


def test_a_refused_view_does_not_stop_a_reply():
    call, plain = spoken(1), spoken(2)
    call.send(client.Final(2, LINES[1], TURN))
    call.step_until_text()
    call.send(client.Items((*call.conversation.items, MessageItem("", "system", "Be kind."))))
    call.send(client.Items((MessageItem("", "user", "x" * 20_000),)))
    reasons = [failure.problem.reason for failure in call.of(server.Failure)]
    assert reasons == [Reason.INVALID_FIELD, Reason.INPUT_TOO_LONG] and not call.of(server.Interrupted)
    call.run()
    assert call.text(2) == plain.text(2) and call.conversation.tokens == plain.conversation.tokens


def test_the_clients_names_outlive_a_cut_and_are_never_doubled():
    call = spoken(1)
    mine = tuple(dataclasses.replace(item, id=f"mine-{at}") for at, item in enumerate(call.conversation.items))
    call.send(client.Items(mine), client.Interrupt(1, client.Heard(chars=6)))
    assert [item.id for item in call.conversation.items] == ["mine-0", "mine-1"]
    call = opened(items=(MessageItem("", "user", "One."), MessageItem("", "assistant", "Two.")))
    known = call.conversation.items
    call.send(client.Items((MessageItem("", "user", "New."), MessageItem("", "assistant", "Yes."), *known)))
    names = [item.id for item in call.conversation.items]
    assert len(set(names)) == 4


def test_the_same_view_leaves_what_was_made_ahead():
    call = opened(progress_notices=True)
    call.send(client.EagerEndOfTurn(1, 1, LINES[0], TURN))
    call.run()
    call.send(client.Items(call.conversation.items), client.Final(1, LINES[0], TURN))
    call.run()
    assert [event.state.value for event in call.of(server.AnsweringAhead)] == ["started", "released"]


def test_a_running_turn_has_the_time_outs_of_its_own_tools():
    slow = dataclasses.replace(TOOL, timeout_ms=700)
    must = TurnOptions(generation=GenerationPatch(tool_choice=ToolChoice("required", "find"), max_tokens=60))
    call = opened(tools=(slow,))
    call.send(client.Final(1, LINES[0], must), client.Update(tools=()))
    call.run()
    if call.of(server.ToolCalled):  # it may have been cut off by its length
        assert call.of(server.ToolCalled)[0].timeout_ms == 700 and not changes(call)
        call.wait()
        call.run()
    assert len(changes(call)) == 1 and call.conversation.call_form is None
    agrees(call)


def test_a_view_that_is_older_than_the_history_is_refused():
    call = spoken(2)
    old = call.of(server.TurnEnded)[0].history.version
    before = call.conversation.tokens
    call.send(client.Items((), old))
    assert call.of(server.Failure)[-1].problem.reason is Reason.STALE_HISTORY
    assert call.conversation.tokens == before and not changes(call)


def test_items_that_cannot_be_leave_the_history_as_it_was():
    call = spoken(2)
    before, known = call.conversation.tokens, call.conversation.items
    for items in ((MessageItem("", "user", "word " * 3000),), (*known, MessageItem("", "system", "Be kind."))):
        call.send(client.Items(items))
        assert call.of(server.Failure)[-1].problem.reason in (Reason.CONTEXT_FULL, Reason.INVALID_FIELD)
        assert call.conversation.tokens == before and call.conversation.items == known
    call.send(client.Final(3, LINES[0], TURN))
    call.run()
    agrees(call)


def test_an_update_that_has_no_room_any_more_is_refused_when_its_turn_has_come() -> None:
    """It fitted when it was sent; the reply that it waited for has taken the room. The next one is not built on it."""
    call = spoken(0)
    call.send(client.Final(1, LINES[0], TURN))
    limit, conversation = call.call.services.max_context_tokens, call.conversation

    def fits(words: int) -> bool:
        head = conversation.instructions(SYSTEM + " well" * words, None).head.ids
        more = len(head) - conversation.spans[0].end
        return conversation.length + more + len(conversation.prompt) < limit

    most = next(words for words in range(limit, 0, -1) if fits(words))
    call.send(client.Update(system=SYSTEM + " well" * most))
    assert not call.of(server.Failure) and not changes(call)
    call.send(client.Update(generation=GenerationPatch(temperature=0.5)))
    call.run()
    (failure,) = call.of(server.Failure)
    assert failure.problem.reason is Reason.CONTEXT_FULL and failure.problem.field == "update.system_prompt"
    assert failure.turn_id is None and failure.client_seq is None
    assert [change.cause for change in changes(call)] == [HistoryCause.UPDATE]
    assert call.conversation.instructions_now.system == SYSTEM
    call.send(client.Final(2, "Thank you.", TURN))
    call.run()
    assert call.of(server.TurnEnded)[-1].turn_id == 2 and not call.ended_with
    agrees(call)
