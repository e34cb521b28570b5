"""Clauses end where a speaker would draw breath, and at the same offsets however the text came in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.clauses import ClauseFinder


def clauses(text: str) -> list[str]:
    """The text cut at the ends found in it, fed in one piece."""
    finder = ClauseFinder()
    ends = [*finder.push(text), *finder.finish()]
    return [text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("We open at nine. See you then!", ["We open at nine.", "See you then!"]),
        ("It costs 3.50 in all. Fine?", ["It costs 3.50 in all.", "Fine?"]),
        ("Version 1.2.3 is 1,200 lines.", ["Version 1.2.3 is 1,200 lines."]),
        ("Ask Dr. Jones about it. Goodbye.", ["Ask Dr. Jones about it.", "Goodbye."]),
        ("Mrs. Smith and Mr. Lee are here.", ["Mrs. Smith and Mr. Lee are here."]),
        ("I know J. R. Tolkien well.", ["I know J. R. Tolkien well."]),
        ("So did I. Really.", ["So did I.", "Really."]),
        ("Come at 3 p.m. on Monday.", ["Come at 3 p.m. on Monday."]),
        ("Come at 3:30 sharp.", ["Come at 3:30 sharp."]),
        ("Look at example.com today.", ["Look at example.com today."]),
        ("In the U.S. it is late, e.g. midnight.", ["In the U.S. it is late,", "e.g. midnight."]),
        ("1. Wake up. 2. Get up.", ["1. Wake up.", "2. Get up."]),
        ("The year was 1999. It rained.", ["The year was 1999.", "It rained."]),
        ('She said "yes." Then she left.', ['She said "yes."', "Then she left."]),
        ("He said “no!” and left.", ["He said “no!”", "and left."]),
        ("(It is closed.) Sorry.", ["(It is closed.)", "Sorry."]),
        ("We are open — well, until six — on Friday.", ["We are open —", "well, until six —", "on Friday."]),
        ("A well-known half-hour walk.", ["A well-known half-hour walk."]),
        ("Well, yes.", ["Well, yes."]),  # too short to draw breath at the comma
        ("If you like that, come by.", ["If you like that,", "come by."]),
        ("Wait... what?! Yes.", ["Wait...", "what?!", "Yes."]),
        ("First line\nSecond line", ["First line", "Second line"]),
        ("\n\n", []),
        ("好的。我们九点开门！", ["好的。", "我们九点开门！"]),
        ("「好的。」我们九点开门，请您准时来。", ["「好的。」", "我们九点开门，", "请您准时来。"]),
        ("no mark at all", ["no mark at all"]),
        ("", []),
    ],
)
def test_where_clauses_end(text: str, wanted: list[str]) -> None:
    assert clauses(text) == wanted


def test_an_end_is_told_as_soon_as_the_next_character_settles_it() -> None:
    finder = ClauseFinder()
    assert finder.push("We open at nine.") == []
    assert finder.push(" ") == [16]
    assert finder.push("It is 3.") == []
    assert finder.push("50 in all") == []
    assert finder.finish() == [34]


@pytest.mark.parametrize("min_words", [1, 2, 5])
def test_a_weak_mark_needs_words_before_it(min_words: int) -> None:
    finder = ClauseFinder(min_words=min_words)
    assert finder.push("one two, three four five six, ") == ([8, 29] if min_words <= 2 else [29])


MARKS = 'abI 3.,!?;:—–…\n"”’)]»」。！，、好'
WORDS = ["Dr.", " p.m.", "3:30", "1,200", "e.g.", " example.com", " word", "。」"]
TEXT = st.lists(st.sampled_from([*MARKS, *WORDS]), max_size=40).map("".join)


@given(st.one_of(TEXT, st.text(max_size=40)), st.lists(st.integers(0, 60), max_size=12))
@settings(max_examples=500, deadline=None)
def test_any_split_of_a_text_has_the_ends_of_the_whole(text: str, cuts: list[int]) -> None:
    whole, finder = ClauseFinder(), ClauseFinder()
    wanted = [*whole.push(text), *whole.finish()]
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    got: list[int] = []
    for start, stop in pairwise(at):
        found = finder.push(text[start:stop])
        assert all(end <= stop for end in found)
        got += found
    got += finder.finish()
    assert got == wanted
    assert wanted == sorted(set(wanted))
    assert len(text.rstrip()) <= (wanted[-1] if wanted else 0) <= len(text)
