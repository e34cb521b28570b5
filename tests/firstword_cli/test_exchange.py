"""What a turn is told as: its text by who found it, its numbers, and the transcript of them."""

from __future__ import annotations

from firstword import Interrupted, Notice, ToolCall
from firstword.talk.exchange import Exchange, Piece, ToolUse, facts
from firstword.talk.recorded import summary, transcript
from tests.firstword_cli.turns import delta, report, turn


async def no_tools(_use: ToolUse) -> None:
    raise AssertionError("no tool was called")


async def followed() -> Exchange:
    exchange = Exchange("when do you open")
    first = delta("We open", 0, 2, 5, at=0.0123)
    second = delta(" at nine. Bye", 7, 4, 5, 4, clause_ends=(16,), at=0.0456)
    await exchange.follow(turn(first, second, ended=report()), no_tools)
    return exchange


async def test_text_is_kept_by_who_found_it() -> None:
    exchange = await followed()
    assert exchange.text == "We open at nine. Bye"
    assert exchange.parts == [
        Piece("We", False),
        Piece(" open", True),
        Piece(" at ", False),
        Piece("nine.", True),
        Piece(" Bye", False),
    ]
    await exchange.follow(turn(delta("!", 20, at=1.0), ended=report()), no_tools)
    assert exchange.parts[-1] == Piece(" Bye!", False)


async def test_the_numbers_are_those_that_the_client_saw() -> None:
    exchange = await followed()
    assert facts(exchange) == [
        ("first", "text 12 ms, clause 46 ms"),
        ("reply", "12 tokens in 5 steps, 2.4 each"),
        ("drafted", "58%, 7 of 20 guesses"),
        ("prompt", "208 tokens, 204 cached"),
        ("ahead", "10 tokens heard"),
    ]
    assert facts(Exchange("hello")) == [("first", "text -, clause -")]


async def test_a_reply_without_a_clause_end_is_one_clause() -> None:
    exchange = Exchange("hello")
    await exchange.follow(turn(delta("Hm", 0, at=0.004), ended=report()), no_tools)
    assert exchange.first_text_ms == 4.0
    assert exchange.first_clause_ms is not None
    assert exchange.first_clause_ms > 4.0


async def test_the_transcript_tells_everything_in_order() -> None:
    exchange = await followed()
    exchange.take(ToolCall("c1", "find", {"name": "Ann", "day": 3}), 0.0)
    exchange.tools[0].output = '{"id": 7}'
    exchange.take(delta(" Found it.", 20), 0.0)
    exchange.take(Notice("engine_restarted", "the engine was restarted", 1, {}), 0.0)
    exchange.take(Interrupted(1, "We open", 3, 100), 0.0)
    lines = transcript(exchange, 4)
    assert lines == [
        "\n 4  caller  when do you open",
        "    agent   We open at nine. Bye",
        '    tool    find(name="Ann", day=3) -> {"id": 7}',
        "    agent   Found it.",
        "    caller  speaks over it: the history holds 'We open'",
        "            (the engine was restarted)",
        "            first text 12 ms, clause 46 ms | reply 12 tokens in 5 steps, 2.4 each"
        " | drafted 58%, 7 of 20 guesses | prompt 208 tokens, 204 cached | ahead 10 tokens heard | tools 1 called",
    ]


async def test_the_summary_counts_all_turns() -> None:
    held = [await followed(), await followed()]
    assert summary(held) == ("2 turns | first text after 12.3 ms (median) | 500 tokens/s | 58% of 24 tokens drafted")
    assert summary([]) == "0 turns | 0% of 0 tokens drafted"
