"""How a reply is drawn: who found its text, how far it was spoken, and what of it was never heard."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from firstword.talk.exchange import Piece
from firstword.talk.view import CHOSEN, DRAFTED, TO_COME, UNHEARD, reply_text

PIECES = [Piece("On ", False), Piece("parking", True), Piece(": free", False)]


def styled(text: Text, style: str) -> str:
    """The characters that carry this style."""
    return "".join(text.plain[span.start : span.end] for span in text.spans if span.style == style)


def test_drafted_text_looks_unlike_the_targets_own() -> None:
    text = reply_text(PIECES, 0, spoken=100, held=None)
    assert text.plain == "On parking: free"
    assert (styled(text, DRAFTED), styled(text, CHOSEN)) == ("parking", "On : free")
    assert styled(text, TO_COME) == styled(text, UNHEARD) == ""


@given(st.integers(0, 40), st.integers(0, 30))
def test_what_is_to_come_begins_where_speech_is(offset: int, spoken: int) -> None:
    text = reply_text(PIECES, offset, spoken, held=None)
    assert styled(text, TO_COME) == text.plain[max(0, spoken - offset) :]


@given(st.integers(0, 40), st.integers(0, 30))
def test_what_was_never_heard_is_struck(offset: int, held: int) -> None:
    text = reply_text(PIECES, offset, spoken=40, held=held)
    assert styled(text, UNHEARD) == text.plain[max(0, held - offset) :]
    assert styled(text, TO_COME) == ""
