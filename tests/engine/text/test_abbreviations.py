"""Abbreviations that are words too: only a number behind them says which, and the decision waits for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.clauses import ClauseFinder
from tests.engine.text.test_clauses import clauses


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("No. We're closed on Sun. Call back on Mon.", ["No.", "We're closed on Sun.", "Call back on Mon."]),
        ("We sat. Then we left.", ["We sat.", "Then we left."]),
        ("Room No. 5 is on Sat. 10 or Mar.  3.", ["Room No. 5 is on Sat. 10 or Mar.  3."]),
        ("See Fig. 2 there. No.", ["See Fig. 2 there.", "No."]),
        ("No.\n5 of them are left.", ["No.", "5 of them are left."]),
        ("(No.) 5 more.", ["(No.)", "5 more."]),
        ("No... 5 more.", ["No...", "5 more."]),
    ],
)
def test_a_number_makes_it_an_abbreviation(text: str, wanted: list[str]) -> None:
    assert clauses(text) == wanted


def test_the_decision_waits_for_what_follows() -> None:
    finder = ClauseFinder()
    assert finder.push("No.") + finder.push(" ") + finder.push(" ") == []
    assert finder.push("W") == [3]
    assert finder.push("e sat. ") == []
    assert finder.push("1") == []
    assert finder.push("0 of us. ") == [22]
    assert finder.push("No. ") == []
    assert finder.finish() == [26]


WORDS = ["No.", "no. ", "Sat. ", "mar.", "Fig", ". ", " ", "\n", "\u00a0", "5", "10 ", "We", '."', "?", ", "]


@given(st.lists(st.sampled_from(WORDS), max_size=12).map("".join), st.lists(st.integers(0, 60), max_size=12))
@settings(max_examples=500, deadline=None)
def test_any_split_of_a_text_has_the_ends_of_the_whole(text: str, cuts: list[int]) -> None:
    whole, finder = ClauseFinder(), ClauseFinder()
    wanted = [*whole.push(text), *whole.finish()]
    got: list[int] = []
    for start, stop in pairwise(sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})):
        got += finder.push(text[start:stop])
    assert [*got, *finder.finish()] == wanted
