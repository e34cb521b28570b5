"""How much was heard: by text, by time and by length, whatever the text is made of."""

from __future__ import annotations

import itertools
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client_events import Heard, WordTiming
from service.heard import heard_chars, joined
from service.problems import Problem

TEXT = st.text(
    alphabet=st.one_of(st.sampled_from("aZ9 .,'!-ßé\u0301İ½日नमस्ते👋🏽"), st.characters(exclude_categories=["Cs"]))
)


def heard(text: str, spoken: str) -> int:
    return heard_chars(text, Heard(text=spoken), (), "interrupt.heard")


def has_words(text: str) -> bool:
    return any(char.isalnum() for char in unicodedata.normalize("NFKD", text))


@pytest.mark.parametrize(
    ("text", "spoken", "expected"),
    [
        ("One moment, please.", "one moment", "One moment"),
        ("One moment, please.", "ONE  MOMENT   PLEASE", "One moment, please."),
        ("One moment, please.", "one mo", "One mo"),
        ("One moment, please.", "", ""),
        ("It's 9:30 a.m. now", "its 930 am", "It's 9:30 a.m"),
        ("Straße 5", "STRASSE", "Straße"),
        ("caf\u00e9 au lait", "cafe\u0301", "caf\u00e9"),
        ("cafe\u0301 au lait", "CAF\u00c9", "cafe\u0301"),
        ("नमस्ते जी", "नमस्ते", "नमस्ते"),
        ("Hi 👋🏽 there", "hi", "Hi"),
        ("?!", "", ""),
        ("", "", ""),
    ],
)
def test_a_text_is_found_but_for_case_punctuation_and_spacing(text: str, spoken: str, expected: str) -> None:
    assert text[: heard(text, spoken)] == expected


@pytest.mark.parametrize(
    ("text", "spoken"), [("one two", "two"), ("one two", "one two three"), ("one", "on one"), ("", "x")]
)
def test_a_text_that_is_not_how_the_turn_begins_is_refused_by_name(text: str, spoken: str) -> None:
    with pytest.raises(Problem) as raised:
        heard(text, spoken)
    assert raised.value.field == "interrupt.heard.text"


@given(TEXT, st.data())
def test_any_beginning_of_a_text_is_found_in_it(text: str, data: st.DataObject) -> None:
    """What was heard is never less than said so, and what is counted beyond it is no part of a word."""
    end = data.draw(st.integers(0, len(text)))
    count = heard(text, text[:end])
    assert 0 <= count <= len(text)
    between = text[min(count, end) : max(count, end)]
    assert not has_words(between)


def test_letters_that_share_a_capital_are_alike() -> None:
    assert heard("kızım ve ſtraße", "KIZIM VE STRASSE") == 15


@given(TEXT, st.data())
def test_case_spacing_and_punctuation_make_no_difference(text: str, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(text)))
    spoken = re.sub(r"\s", "  ", text[:end]).upper() + " ."
    assert heard(text, spoken) in (heard(text, text[:end]), len(text))


@given(st.integers(0, 50), st.integers(0, 80))
def test_a_length_counts_code_points_and_no_more_than_was_sent(length: int, claimed: int) -> None:
    text = "👋" * length
    assert heard_chars(text, Heard(chars=claimed), (), "") == min(length, claimed)


@given(st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=6), min_size=1, max_size=12), st.integers(0, 2000))
def test_milliseconds_count_the_words_that_had_ended(words: list[str], played: int) -> None:
    text = " ".join(words)
    ends = list(itertools.accumulate(len(word) + 1 for word in words))
    timings = [WordTiming(100 * (i + 1), word=word) for i, word in enumerate(words)]
    spoken = played // 100
    expected = 0 if spoken == 0 else min(ends[min(spoken, len(words)) - 1] - 1, len(text))
    placed = [WordTiming(100 * (i + 1), end_chars=end - 1) for i, end in enumerate(ends)]
    assert heard_chars(text, Heard(played_ms=played), placed, "") == expected
    # A word that is looked for may be found a little early inside another, never before the word before it.
    assert heard_chars(text, Heard(played_ms=played), timings, "") <= expected


def test_milliseconds_without_timings_are_refused_by_name() -> None:
    with pytest.raises(Problem) as raised:
        heard_chars("one", Heard(played_ms=5), (), "playback_progress.heard")
    assert raised.value.field == "playback_progress.heard.played_ms"


def test_timings_are_added_behind_or_replace_from_their_first_place_on() -> None:
    text = "one two three four"
    known = [WordTiming(100, end_chars=3), WordTiming(200, end_chars=7), WordTiming(300, end_chars=13)]
    behind = [WordTiming(400, end_chars=18)]
    assert joined(text, known, []) == known
    assert joined(text, known, behind) == known + behind
    later = [WordTiming(350, end_chars=7), WordTiming(450, end_chars=13)]  # the second word took longer
    assert joined(text, known, later) == [known[0], *later]
    spoken = [WordTiming(150, word="two")]
    assert joined(text, known, spoken) == [known[0], *spoken]
    assert heard_chars(text, Heard(played_ms=320), joined(text, known, later), "") == 3
