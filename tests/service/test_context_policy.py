"""A context that fills up: what is dropped or summarised, when it is said, and that the rest is as if it were all."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.chat import Chat
from service import client_events as client
from service import server_events as server
from service.conversation import Conversation
from service.instructions import SUMMARY, Instructions
from service.items import MessageItem, ToolCallItem, ToolResultItem
from service.options import ContextPolicy, GenerationPatch, ToolChoice, TurnOptions
from service.problems import Problem, Reason
from service.server_events import HistoryCause
from tests.engine.text.templates import codec_for
from tests.service.calls import LINES, SYSTEM, TOOLS, CallUnderTest, chat

TURN = TurnOptions(generation=GenerationPatch(max_tokens=8, tool_choice=ToolChoice("none")))
LONG = " ".join(LINES)[:420]
KEEP = 700


def opened(action, **fields) -> CallUnderTest:
    policy = ContextPolicy(action, fields.pop("announce_at", None), fields.pop("keep", KEEP))
    return CallUnderTest(client.Open(**{"system": SYSTEM, "seed": 7, "tools": TOOLS, "context": policy, **fields}))


def talk(call: CallUnderTest, turns: int, begin: int = 1) -> None:
    for turn in range(begin, begin + turns):
        call.send(client.Final(turn, f"{turn}: {LONG}", TURN))
        call.run()


def fresh(call: CallUnderTest, system: str, items) -> CallUnderTest:
    return CallUnderTest(client.Open(system=system, seed=7, tools=TOOLS, items=items))


@pytest.fixture(autouse=True)
def nothing_lost() -> Iterator[None]:
    """No call has ended but by its own will."""
    yield
    assert not any(problem for call in CallUnderTest._made for problem in call.ended_with)


def changes(call: CallUnderTest) -> list[server.HistoryChanged]:
    return call.of(server.HistoryChanged)


def test_the_oldest_turns_go_and_the_call_goes_on_as_one_that_never_had_them():
    call = opened("drop_oldest")
    talk(call, 24)
    assert not call.of(server.Failure) and len(call.of(server.TurnEnded)) == 24
    dropped = changes(call)
    assert len(dropped) >= 2 and {change.cause for change in dropped} == {HistoryCause.DROPPED_OLDEST}
    assert all(change.history.used_tokens <= KEEP for change in dropped)
    events = call.events
    for change in dropped:  # each was announced before, once
        before = events[: events.index(change)]
        told = [event for event in before if isinstance(event, server.ContextNearlyFull | server.HistoryChanged)]
        assert isinstance(told[-1], server.ContextNearlyFull)
    assert len(call.of(server.ContextNearlyFull)) in (len(dropped), len(dropped) + 1)
    items = call.conversation.items
    assert items[0].role == "user" and items[-1].role == "assistant"
    same = fresh(call, SYSTEM, items)
    assert call.conversation.tokens == same.conversation.tokens
    call.send(client.Final(99, LINES[0], TURN))
    same.send(client.Final(99, LINES[0], TURN))
    for each in (call, same):
        each.run()
    assert call.text(99) == same.text(99) != ""


def test_the_last_reply_is_interrupted_where_it_is_now():
    call = opened("drop_oldest")
    turn = 0
    while not changes(call):
        turn += 1
        talk(call, 1, turn)
    said = call.text(turn)
    call.send(client.Interrupt(turn, client.Heard(chars=len(said) // 2)))
    kept = call.of(server.Interrupted)[-1].text
    assert said.startswith(kept) and kept != said
    last = call.conversation.items[-1]
    assert last.text == kept if kept else last.role == "user"
    same = fresh(call, SYSTEM, call.conversation.items)
    assert call.conversation.tokens == same.conversation.tokens


def test_a_turn_that_does_not_fit_makes_its_room():
    call = opened("drop_oldest")
    talk(call, 5)
    assert not changes(call)
    call.send(client.Final(9, " ".join([LONG] * 8), TURN))
    call.run()
    assert len(changes(call)) == 1 and not call.of(server.Failure) and call.text(9)
    ended = call.of(server.TurnEnded)[-1]
    assert ended.history.item_ids == tuple(item.id for item in call.conversation.items[-2:])
    call.send(client.Update(system="Be short."))
    talk(call, 1, 10)


def test_what_cannot_fit_whatever_goes_changes_nothing():
    call = opened("drop_oldest")
    talk(call, 5)
    before = call.conversation.tokens
    call.send(client.Final(9, " ".join([LONG] * 30), TURN), client.Say(10, " ".join([LONG] * 30)))
    assert call.conversation.tokens == before and not changes(call)
    assert len(call.of(server.Failure)) == 2


@pytest.mark.parametrize("event", [client.Respond(99, TURN), client.Say(99, " ".join([LONG] * 3))])
def test_the_agent_speaks_first_in_place_of_the_oldest_turns(event):
    items: tuple = ()
    while Conversation.opened(chat(), client.Open(system=SYSTEM, tools=TOOLS, items=items)).length < 2046 - 130:
        items = (*items, MessageItem("", "user", LONG), MessageItem("", "assistant", "Yes."))
    if isinstance(event, client.Respond):
        while Conversation.opened(chat(), client.Open(system=SYSTEM, tools=TOOLS, items=items)).length < 2044:
            items = (*items[:-1], MessageItem("", "assistant", items[-1].text + " Yes."))
    call = opened("drop_oldest", items=items)
    call.send(event)
    call.run()
    assert not call.of(server.Failure) and len(changes(call)) == 1


def test_a_long_reply_may_be_asked_for_and_nothing_goes_for_it():
    call = opened("drop_oldest")
    for turn in range(1, 5):
        patch = GenerationPatch(max_tokens=2000, tool_choice=ToolChoice("none"))
        call.send(client.Final(turn, LINES[0], TurnOptions(generation=patch)))
        call.run()
    assert not changes(call) and not call.of(server.ContextNearlyFull)


@pytest.mark.parametrize("action", ["refuse", "drop_oldest"])
def test_what_never_fits_is_refused(action):
    call = opened(action)
    talk(call, 2)
    call.send(client.Final(9, " ".join([LONG] * 30), TURN))
    (failure,) = call.of(server.Failure)
    assert failure.problem.reason is Reason.CONTEXT_FULL
    talk(call, 1, 10)
    assert call.of(server.TurnEnded)[-1].turn_id == 10


def test_a_summary_takes_the_place_of_the_oldest_turns():
    call = opened("summarise", announce_at=1200)
    turn = 0
    while not changes(call):
        turn += 1
        talk(call, 1, turn)
    (change,) = changes(call)
    assert change.cause is HistoryCause.SUMMARISED and change.summary
    assert change.history.used_tokens < 1200
    assert [type(event) for event in call.events].index(server.ContextNearlyFull) < call.events.index(change)
    items = call.conversation.items
    assert items[-2].text.startswith(f"{turn}: ") and items[0].role == "user"
    same = fresh(call, f"{SYSTEM}\n\n{SUMMARY}{change.summary}", items)
    assert call.conversation.tokens == same.conversation.tokens
    talk(call, 1, turn + 1)
    same.send(client.Final(turn + 1, f"{turn + 1}: {LONG}", TURN))
    same.run()
    assert call.text(turn + 1) == same.text(turn + 1)


def test_a_summary_comes_before_the_context_is_full_though_nobody_says_when():
    call = opened("summarise")
    talk(call, 16)
    assert changes(call)[0].cause is HistoryCause.SUMMARISED


@pytest.mark.parametrize("keep", [1500, 100])
def test_an_idle_call_has_no_second_summary(keep):
    call = opened("summarise", announce_at=600, keep=keep)
    talk(call, 6)
    assert len(changes(call)) == len({change.history.version for change in changes(call)}) <= 6


def test_a_summary_waits_until_the_caller_has_spoken():
    call = opened("summarise", announce_at=1200)
    turn = 0
    while not call.of(server.ContextNearlyFull):
        turn += 1
        call.send(client.Final(turn, f"{turn}: {LONG}", TURN))
        while not call.of(server.TurnEnded) or call.of(server.TurnEnded)[-1].turn_id != turn:
            call.engine.step()
    call.send(client.Partial(turn + 1, 1, "and then"))
    call.run()
    assert not changes(call)
    talk(call, 1, turn + 1)
    assert [change.cause for change in changes(call)] == [HistoryCause.SUMMARISED]


def test_the_fork_that_wrote_it_leaves_no_page():
    call = opened("summarise", announce_at=1200)
    talk(call, 12)
    assert changes(call)
    call.send(client.CloseCall())
    call.run()
    assert call.engine.pages_in_use == 0


def test_a_summary_asks_for_room_like_any_question_and_again_when_there_may_be_some():
    refusals, asked, tokens = 2, [], lambda: 0

    def ask_aside(prompt: int, answer: int) -> None:
        asked.append((prompt, answer))
        if len(asked) <= refusals:
            raise Problem(Reason.PAGES_COMMITTED, "no room", retry_after_s=1.0)

    def admit(used):
        nonlocal tokens
        tokens = used
        return ask_aside

    call = CallUnderTest.unopened()
    call.call.admit = admit
    policy = ContextPolicy("summarise", 900, KEEP)
    call.send(client.Open(system=SYSTEM, seed=7, tools=TOOLS, context=policy))
    turn = 0
    while len(asked) <= refusals:
        turn += 1
        assert turn < 30, "no summary was begun"
        call.send(client.Final(turn, f"{turn}: {LONG}", TURN))
        while not call.of(server.TurnEnded) or call.of(server.TurnEnded)[-1].turn_id != turn:
            call.engine.step()
        prompt, answer = asked[-1] if len(asked) > refusals else (0, 0)
        assert tokens() == call.conversation.length + prompt + answer
    assert len(call.of(server.ContextNearlyFull)) == 1
    assert len(set(asked)) == 1 and not changes(call)  # the question alone: the history is shared
    call.run()
    assert [change.cause for change in changes(call)] == [HistoryCause.SUMMARISED]
    assert tokens() == call.conversation.length


def test_an_update_keeps_the_summary_and_the_tools_that_were():
    call = opened("summarise", announce_at=1200)
    talk(call, 12)
    summary = changes(call)[-1].summary
    call.send(client.Update(system="Be short."))
    same = fresh(call, f"Be short.\n\n{SUMMARY}{summary}", call.conversation.items)
    assert call.conversation.tokens == same.conversation.tokens


@given(st.sampled_from(["", "qwen", "llama3"]), st.integers(0, 2**32))
@settings(max_examples=40)
def test_what_is_left_is_written_as_its_template_writes_it(template, seed):
    rng = random.Random(seed)
    model = Chat(codec_for(template)) if template else chat()
    tools = TOOLS if rng.random() < 0.7 else ()
    items: list = []
    for turn in range(rng.randrange(1, 6)):
        items.append(MessageItem("", "user", f"Question {turn}, " * rng.randrange(1, 20)))
        if tools and rng.random() < 0.5:
            items.append(MessageItem("", "assistant", "One moment."))
            items.append(ToolCallItem("", f"c{turn}", tools[0].name, "{}"))
            items.append(ToolResultItem("", f"c{turn}", tools[0].name, "{}"))
        items.append(MessageItem("", "assistant", f"Answer {turn}."))
    prior = rng.choice([0, 0, len(items)])
    opening = client.Open(system=SYSTEM, tools=tools, items=tuple(items[:prior]))
    conversation = Conversation.opened(model, opening)
    conversation.put_items(items[prior:])
    ends = {span.end for span in conversation.spans}
    keep, summary = rng.randrange(1, conversation.length + 50), rng.choice(["", "It was about a booking."])
    moved = conversation.drop_oldest(keep, rng.choice([None, len(items)]) if summary else None, summary)
    left = conversation.items
    assert [dataclasses.replace(item, id="") for item in left] == [*items[len(items) - len(left) :]]
    if moved is None:
        assert len(left) == len(items)
        return
    of = Instructions.of(model, SYSTEM, (), tools, "open", "items", summary)
    same = Conversation(model, of)
    same.put_items(left)
    assert conversation.tokens == same.tokens
    assert moved(max(ends)) == conversation.length
    users = [item for item in left if isinstance(item, MessageItem) and item.role == "user"]
    assert summary or conversation.length <= keep or len(users) == 1
