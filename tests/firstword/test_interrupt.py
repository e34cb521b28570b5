"""What the history holds after an interruption."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from firstword import Call, CallError, Client, EndReason, Interrupted, Notice, TextDelta, Turn, WordTiming
from tests.e2e.server import ServiceProcess
from tests.firstword.receptionist import LINES, SYSTEM


@pytest.fixture
def notices() -> list[Notice | CallError]:
    return []


@pytest.fixture
async def call(service: ServiceProcess, notices: list[Notice | CallError]) -> AsyncIterator[Call]:
    asked = {"system": SYSTEM, "temperature": 0.0, "max_tokens": 60}
    async with Client(service.address) as client, client.call(**asked, on_notice=notices.append) as call:
        yield call


def word_ends(text: str) -> list[int]:
    """Offsets just behind each word."""
    return [end for end in range(1, len(text) + 1) if not text[end - 1].isspace() and text[end : end + 1] in (" ", "")]


async def test_every_measure_in_code_points_cuts_at_or_before_it(call: Call) -> None:
    turn = await call.ask(LINES[0])
    kept = 0
    for heard in range(len(turn.text) + 2):
        cut = await call.interrupt(heard_code_points=heard)
        assert turn.text.startswith(cut.text)
        assert kept <= len(cut.text) <= heard
        assert turn.interrupted == cut
        kept = len(cut.text)
    assert kept == len(turn.text)
    assert turn.report is not None
    assert turn.report.text == turn.text
    repeated = await call.interrupt(heard_code_points=len(turn.text))
    assert repeated.text == turn.text


async def test_text_and_milliseconds_cut_where_code_points_do(call: Call) -> None:
    turn = await call.ask(LINES[0])
    ends = word_ends(turn.text)
    middle = len(ends) // 2
    expected = await call.interrupt(heard_code_points=ends[middle])
    assert 0 < len(expected.text) < len(turn.text)
    by_text = await call.interrupt(heard_text=turn.text[: ends[middle]].upper())
    places = [WordTiming(300 * (index + 1), end_code_points=end) for index, end in enumerate(ends)]
    by_place = await call.interrupt(heard_ms=300 * (middle + 1) + 20, words=places)
    by_known_timings = await call.interrupt(heard_ms=300 * (middle + 1))
    spoken = [WordTiming(300 * (index + 1), word) for index, word in enumerate(turn.text.split())]
    by_word = await call.interrupt(heard_ms=300 * (middle + 1), words=spoken)
    assert {cut.text for cut in (by_text, by_place, by_known_timings, by_word)} == {expected.text}


async def test_without_a_measure_it_is_what_was_played(call: Call) -> None:
    turn = await call.ask(LINES[0])
    assert (await call.interrupt()).text == turn.text
    turn = await call.ask(LINES[1])
    place = word_ends(turn.text)[2]
    await call.played(code_points=place)
    await call.played(text=turn.text[:1])  # goes back, and is dropped
    played = await call.interrupt()
    assert (await call.interrupt(heard_code_points=place)).text == played.text
    assert 0 < len(played.text) <= place


async def test_a_reply_is_cut_while_it_is_being_made(call: Call) -> None:
    turn = await call.final(LINES[0])
    received: list[TextDelta] = []
    async for event in turn:
        if isinstance(event, TextDelta):
            received.append(event)
        if len(received) == 3:
            break
    heard = len(turn.text)
    cut = await call.interrupt(heard_code_points=heard)
    rest = [event async for event in turn]
    assert isinstance(rest[-1], Interrupted)
    assert rest[-1] == cut
    assert turn.text.startswith(cut.text)
    assert turn.report is not None
    assert (turn.report.reason, turn.report.text) == (EndReason.INTERRUPTED, cut.text)


async def test_before_the_first_word(call: Call) -> None:
    """The history holds what had come by then: nothing, but where this process was held up in between."""
    turn = await call.final(LINES[0])
    cut = await call.interrupt()
    assert (await turn.run()).history_text == cut.text == turn.text


async def test_an_interruption_stops_the_turn_whatever_is_told_of_what_was_heard(
    call: Call, notices: list[Notice | CallError]
) -> None:
    for heard in ({"heard_text": "something else"}, {"heard_ms": 0}, {"heard_ms": 100}):
        turn = await call.final(LINES[0])
        async for event in turn:
            if isinstance(event, TextDelta):
                break
        cut = await call.interrupt(**heard)  # type: ignore[arg-type]
        assert cut.text == ""
        assert (await turn.run()).history_text == ""
        assert turn.report is not None
        assert turn.report.reason is EndReason.INTERRUPTED
    (refused,) = [notice for notice in notices if isinstance(notice, CallError)]
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "interrupt.heard.played_ms")


async def test_refused_interruptions_raise(call: Call) -> None:
    old = await call.ask(LINES[0])
    newer = await call.ask(LINES[1])
    with pytest.raises(CallError) as refused:
        await call.interrupt(turn=old)
    assert refused.value.reason == "STALE_TURN"
    assert (await call.interrupt()).turn_id == newer.id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"heard_ms": 1, "heard_code_points": 2}, "one measure"), ({"words": [WordTiming(100, "one")]}, "need a measure")],
)
async def test_what_makes_no_sense_is_not_sent(call: Call, arguments: dict[str, object], message: str) -> None:
    await call.say("One moment.")
    with pytest.raises(ValueError, match=message):
        await call.interrupt(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="measure"):
        await call.played()


async def test_a_refused_turn_is_not_the_newest(call: Call) -> None:
    turn: Turn = await call.say("One moment, please.")
    with pytest.raises(CallError):
        await call.ask("")
    assert call.turn is turn
    assert (await call.interrupt(heard_text="One")).text == "One"
    assert turn.history_text == "One"
