"""One generation step by step: which of its text was guessed, and which tokens are behind it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine import records
from service import client_events as client
from service import server_events as server
from service.reply import Gain, Segment
from tests.service.calls import CallUnderTest, chat


@given(st.text(alphabet="ab é日👋🏽.", max_size=12), st.data())
def test_pieces_add_up_and_follow_the_tokens(text: str, data: st.DataObject) -> None:
    """Emitted text lags the tokens by whatever is no whole character yet; what was guessed is known by character."""
    codec = chat().codec
    tokens = codec.encode(text)
    segment, stream = Segment(1, 0, "", codec.stream()), codec.stream()
    at, guessed_text, pieces, gains = 0, "", [], []
    while at < len(tokens):
        size = data.draw(st.integers(1, len(tokens) - at))
        accepted = data.draw(st.integers(0, size))
        step = tokens[at : at + size]
        emitted = ""
        for index, token in enumerate(step):
            piece = stream.push(token)
            emitted += piece
            guessed_text += ("x" if index < accepted else "-") * len(piece)
        pieces += segment.grow(step, accepted, emitted)
        if emitted:
            gains.append(segment.take_unsent())
        at += size
    said = codec.decode(tokens)
    assert segment.text == said[: len(segment.text)]
    assert "".join(("x" if drafted else "-") * length for length, drafted in pieces) == guessed_text
    assert all(length > 0 for length, _ in pieces)
    assert sum(gain.tokens for gain in gains) + segment.unsent.tokens == len(tokens)
    assert all(0 <= gain.accepted <= gain.tokens for gain in gains)


def test_tokens_behind_a_character_in_pieces_are_counted_with_it() -> None:
    codec = chat().codec
    tokens = codec.encode("👋🏽")
    assert len(tokens) > 1
    segment = Segment(1, 0, "", codec.stream())
    for token in tokens[:-1]:
        segment.grow([token], 1, "")
    segment.grow(tokens[-1:], 0, "👋🏽")
    assert segment.take_unsent() == Gain(len(tokens), len(tokens) - 1)
    assert segment.take_unsent() == Gain(0, 0)


def test_tokens_of_a_tool_call_are_behind_no_text() -> None:
    call = CallUnderTest(client.Open("s", system="x"))
    call.send(client.Final(1, "hi"))
    made = (records.ToolCall("t", "{}"),)
    for tokens, text, calls in (((5,), "", ()), ((6, 7), "Well.", ()), ((8, 9), "", made), ((5,), " Yes", ())):
        call.engine.says(records.Progress("s", 1, tokens, text, (), 1, 0.0, calls))
    told = [(delta.text, delta.tokens, delta.accepted) for delta in call.of(server.TextDelta)]
    assert told == [("Well.", 3, 2), (" Yes", 1, 1)]
    assert [called.offset for called in call.of(server.ToolCalled)] == [5]
