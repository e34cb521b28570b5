"""What a synthesiser speaks otherwise than it is written, and what all that costs."""

from __future__ import annotations

import itertools
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.client_events import Heard, WordTiming
from service.heard import Hearing

EXAMPLES = [
    "the 24th | the twenty fourth",
    "4:30 pm | four thirty p m",
    "16:05 | sixteen oh five",
    "16:30 | four thirty pm",
    "9:15 | quarter past nine",
    "9:45 | a quarter to ten",
    "4:00 | four o'clock",
    "12:00 | noon",
    "9am | nine a m",
    "Dr. Smith | doctor smith",
    "St. John St. | saint john street",
    "$12.50 | twelve dollars and fifty cents",
    "$12.50 | twelve fifty",
    "$1 | one dollar",
    "$0.99 | ninety nine cents",
    "£3.01 | three pounds and one penny",
    "5 € | five euros",
    "$1.2M | one point two million dollars",
    "$5 million | five million dollars",
    "5k | five thousand",
    "10% | ten percent",
    "10% | ten per cent",
    "1,234 | one thousand two hundred and thirty four",
    "1,234.50 | one thousand two hundred thirty four point five",
    "3.5kg | three and a half kilograms",
    "20°C | twenty degrees celsius",
    "1/2 cup | half a cup",
    "3/4 | three quarters",
    "½ | a half",
    "5-6 people | five to six people",
    "555-0123 | five five five oh one two three",
    "555-0123 | triple five zero one two three",
    "Room 105 | room one oh five",
    "1999 | nineteen ninety nine",
    "2004 | two thousand and four",
    "2024 | twenty twenty four",
    "May 5 | may fifth",
    "5 May | the fifth of may",
    "10/12/2024 | october twelfth twenty twenty four",
    "2024-05-06 | may sixth two thousand twenty four",
    "Mon, Jan 3rd | monday january third",
    "R&B | r and b",
    "a@b.com | a at b dot com",
    "No. 7 | number seven",
    "６：４５ | six forty five",
    "三点30分 | 三点三十分",
    "24日 | 二十四日",
    "-5 | minus five",
]
PAIRS = [tuple(example.split(" | ")) for example in EXAMPLES]
BEHIND = "maybe, or later."


def heard(text: str, spoken: str) -> str:
    return text[: Hearing().extent(text, Heard(text=spoken), "").chars]


@pytest.mark.parametrize(("written", "spoken"), PAIRS)
def test_what_is_spoken_otherwise_is_heard_as_it_is_written(written: str, spoken: str) -> None:
    text = f"It is {written} {BEHIND}"
    assert heard(text, f"it is {spoken}") in (f"It is {written}", f"It is {written.rstrip('.')}")
    assert heard(text, f"it is {spoken} maybe") == f"It is {written} maybe"
    words = spoken.split()
    begun = heard(text, " ".join(["it is", *words[: len(words) // 2]]))
    assert len(begun) < len(f"It is {written.rstrip('.')}") or "o'clock" in spoken  # the hour alone says it, too


@pytest.mark.parametrize(("written", "spoken"), PAIRS)
def test_a_last_word_that_is_spoken_otherwise_is_played_out(written: str, spoken: str) -> None:
    text, words = f"It is {written}.", f"it is {spoken}".split()
    assert heard(text, " ".join(words)) == text
    timings = tuple(WordTiming(100 * number, word=word) for number, word in enumerate(words, 1))
    found = Hearing().extent(text, Heard(played_ms=100 * len(words), words=timings), "")
    assert found.chars == len(text) and found.certain


@pytest.mark.parametrize(
    ("text", "spoken", "expected"),
    [
        (
            "Am 24. um 16:30 Uhr in München sehen wir uns.",
            "am vierundzwanzigsten um sechzehn uhr dreißig in münchen",
            "Am 24. um 16:30 Uhr in München",
        ),
        ("Vous payez 80 € par mois.", "vous payez quatre vingts euros par mois", "Vous payez 80 € par mois."),
        ("Louis XIV of France was king.", "louis the fourteenth of france", "Louis XIV of France"),
        ("Read rfc2616bis now or later.", "read r f c twenty six sixteen bis now or", "Read rfc2616bis now or"),
    ],
)
def test_what_nobody_knows_how_it_is_spoken_is_passed_over(text: str, spoken: str, expected: str) -> None:
    assert heard(text, spoken) == expected


@pytest.mark.parametrize(
    ("text", "spoken", "expected"),
    [
        (
            "Es kostet 2,50 EUR pro Tag, also zwei Euro fünfzig am Tag.",
            "es kostet zwei euro fünfzig",
            "Es kostet",
        ),
        (
            "Es kostet 2,50 EUR pro Tag, also zwei Euro fünfzig am Tag.",
            "es kostet zwei euro fünfzig pro tag",
            "Es kostet 2,50 EUR pro Tag",
        ),
        (
            "The code is BA2490, that is B A two four nine zero, thanks.",
            "the code is b a two four nine zero",
            "The code is",
        ),
        ("Es kostet 2,50, nur fünfzig Cent mehr.", "es kostet zwei euro fünfzig cent", "Es kostet"),
        ("Es kostet 2,50 Euro.", "es kostet zwei euro", "Es kostet"),
        ("Pay EUR or not.", "pay euro", "Pay EUR"),
        ("Es sind 1 000 EUR pro Tag.", "es sind tausend euro pro tag", "Es sind 1 000 EUR pro Tag."),
        ("The grey colour of tonite is it.", "the gray color of to night is it", "The grey colour of tonite is it."),
        ("We have ½ of that.", "we have a half of that", "We have ½ of that."),
    ],
)
def test_what_is_spoken_for_a_word_is_not_found_where_it_stands_written(text: str, spoken: str, expected: str) -> None:
    assert heard(text, spoken) == expected


UNKNOWN = [
    ("2,50", "zwei euro fünfzig cent"),
    ("2,50 EUR", "zwei euro fünfzig"),
    ("BA2490", "b a two four nine zero"),
    ("0170 123", "null eins sieben null eins zwei drei"),
    ("16:30", "sechzehn uhr dreißig"),
]
BETWEEN = st.lists(st.sampled_from(["also", "pro", "Tag", "nur", "that", "is"]), min_size=1, max_size=4, unique=True)


@given(st.sampled_from(UNKNOWN), BETWEEN, st.data())
@settings(max_examples=300, deadline=None)
def test_words_that_are_written_again_count_once(
    pair: tuple[str, str], between: list[str], data: st.DataObject
) -> None:
    """A word that nobody knows how it is spoken, and behind it what was spoken for it, or the end of that."""
    words, others = pair[1].split(), " ".join(between)
    again = " ".join(words[data.draw(st.integers(0, len(words) - 1)) :])
    text = f"so {pair[0]} {others} {again} wir sehen"
    for count in range(len(words) + 1):
        assert len(heard(text, " ".join(["so", *words[:count]]))) <= len(f"so {pair[0]}")
    assert len(heard(text, f"so {pair[1]} {others}")) <= len(f"so {pair[0]} {others}")


PLAIN = [(word, word) for word in ("no", "no,", "on", "it", "is", "the", "five", "and", "Uhr", "München")]
WORDS = st.sampled_from([*PAIRS, *PLAIN, ("16:30 Uhr", "sechzehn uhr dreißig"), ("XIV", "the fourteenth")])


@given(st.lists(WORDS, min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_reports_one_by_one_find_what_one_report_of_all_does(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    """While the text still grows, too; what is kept is a beginning of the text, and grows with what was heard."""
    text = " ".join(written for written, _ in pairs)
    spoken = " ".join(spoken for _, spoken in pairs).split()
    timings = [WordTiming(100 * number, word=word) for number, word in enumerate(spoken, 1)]
    hearing, before = Hearing(), 0
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=len(spoken), max_size=len(spoken))))
    for count, end in enumerate(ends, 1):
        begun = text[:end]
        by_text = hearing.extent(begun, Heard(text=" ".join(spoken[:count])), "")
        assert by_text == Hearing().extent(begun, Heard(text=" ".join(spoken[:count])), "")
        by_time = hearing.extent(begun, Heard(played_ms=100 * count, words=(timings[count - 1],)), "")
        assert by_time == Hearing(timings[:count]).extent(begun, Heard(played_ms=100 * count), "")
    for count in range(len(spoken) + 1):
        chars = hearing.extent(text, Heard(played_ms=100 * count), "").chars
        assert before <= chars <= len(text)
        before = chars


@given(st.lists(WORDS, min_size=1, max_size=12), st.data())
@settings(max_examples=300, deadline=None)
def test_no_word_counts_before_it_is_spoken(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    """Whatever is spoken for the words before it, by text and by time, with all timings known or those so far."""
    text = " ".join(written for written, _ in pairs)
    spoken = [word for _, spoken in pairs for word in spoken.split()]
    count = data.draw(st.integers(0, len(spoken)))
    counts = itertools.accumulate(len(spoken.split()) for _, spoken in pairs)
    begun = sum(done < count for done in counts) + 1 if count else 0  # pairs of which a word was heard
    limit = len(" ".join(written for written, _ in pairs[:begun]))
    assert len(heard(text, " ".join(spoken[:count]))) <= limit
    timings = [WordTiming(100 * number, word=word) for number, word in enumerate(spoken, 1)]
    for known in (timings[:count], timings):
        assert Hearing(known).extent(text, Heard(played_ms=100 * count if known else 0), "").chars <= limit


SYMBOLS = st.lists(
    st.sampled_from(["=", "is", "–", "to", "&", "and", "%", "percent", "5", "five", "per", "cent"]), max_size=5
)


@given(SYMBOLS, SYMBOLS, st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4))
@example(["–", "to"], ["to", "and", "percent"], [(1, 14)])
@settings(max_examples=500, deadline=None)
def test_how_text_and_words_come_in_pieces_makes_no_difference(
    written: list[str], spoken: list[str], pieces: list[tuple[int, int]]
) -> None:
    """Also where the text that is still to come is what the name of a symbol before it is."""
    text, words, hearing = " ".join(written), " ".join(spoken), Hearing()
    ends = zip(*(sorted(ends) for ends in zip(*pieces, strict=True)), strict=True)
    for text_end, words_end in (*ends, (len(text), len(words))):
        told = Heard(text=words[:words_end])
        assert hearing.extent(text[:text_end], told, "") == Hearing().extent(text[:text_end], told, "")


def called_by(work: Callable[[], object]) -> int:
    """Functions called meanwhile."""
    count = itertools.count()

    def called(_frame: FrameType, _event: str, _argument: object) -> None:
        next(count)

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return next(count)


def calls(words: int) -> int:
    """Functions called to take a report for each word of a reply."""
    pairs = [PAIRS[at % len(PAIRS)] if at % 7 == 0 else ("word" + "s" * (at % 5),) * 2 for at in range(words)]
    text, spoken = (" ".join(pair[side] for pair in pairs) for side in (0, 1))
    hearing = Hearing()

    def report() -> None:
        for number, word in enumerate(spoken.split(), 1):
            found = hearing.extent(text, Heard(played_ms=number, words=(WordTiming(number, word=word),)), "")
        assert found.chars == len(text)

    return called_by(report)


def test_a_report_for_each_word_costs_the_same_in_a_long_reply() -> None:
    calls(1000)  # what is cached is known then
    assert calls(1000) < 6 * calls(200)


def replacing(words: int) -> int:
    """Functions called to replace timings of so many words that are not in the text."""
    hearing = Hearing(WordTiming(number, word="elsewhere") for number in range(words))
    first = Heard(played_ms=1, words=(WordTiming(1, end_chars=0),))

    def report() -> None:
        assert hearing.extent("Some text.", first, "").chars == 0

    return called_by(report)


def test_timings_that_replace_all_others_cost_no_more_for_each_than_few() -> None:
    replacing(1000)
    assert replacing(1000) < 6 * replacing(200)


def alternating(words: int) -> int:
    """Bytes that are taken, at most, by so many timings, each second one of which has a place in a long text."""
    text, pairs = "some more words " * 500, range(0, 2 * words, 2)
    known = [(WordTiming(at, end_chars=at), WordTiming(at + 1, word="some")) for at in pairs]
    hearing = Hearing()
    hearing.extent(text, Heard(text=text), "")
    tracemalloc.start()
    try:
        hearing.extent(text, Heard(played_ms=1, words=tuple(itertools.chain.from_iterable(known))), "")
        for played in range(2 * words):
            hearing.extent(text, Heard(played_ms=played), "")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_timings_with_and_without_a_place_share_the_text() -> None:
    assert alternating(200) < 200 * 10_000  # of which a copy of the text's words would take a hundred times as much


def test_a_row_of_digits_may_be_of_any_length() -> None:
    text = f"It is {'5' * 6000} or ${'7' * 6000}.50, or the {'9' * 6000}th."
    assert heard(text, "it is five") == "It is"
    assert heard(text, text) == text
