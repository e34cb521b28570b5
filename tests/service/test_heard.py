"""How much was heard: by text, by time and by length, whatever the text is made of."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence

import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.client_events import Heard, WordTiming
from service.heard import Extent, Hearing
from service.problems import Problem

TEXT = st.text(
    alphabet=st.one_of(st.sampled_from("aZ9 .,'!-ßé\u0301İ½日नमस्ते👋🏽"), st.characters(exclude_categories=["Cs"]))
)


def by_text(text: str, spoken: str) -> Extent:
    return Hearing().extent(text, Heard(text=spoken), "interrupt.heard")


def heard(text: str, spoken: str) -> int:
    return by_text(text, spoken).chars


def timings(spoken: Sequence[str]) -> list[WordTiming]:
    """Words that take 100 ms each."""
    return [WordTiming(100 * number, word=word) for number, word in enumerate(spoken, 1)]


def by_time(text: str, spoken: Sequence[str], played: int) -> str:
    """The text of which so many words have ended."""
    return text[: by_timings(text, 100 * played, timings(spoken))]


def by_timings(text: str, played_ms: int, words: Sequence[WordTiming]) -> int:
    return Hearing(words).extent(text, Heard(played_ms=played_ms), "").chars


def characters(text: str) -> list[str]:
    """What a reader takes for one each."""
    return regex.findall(r"\X", text)


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
        ("Hi 👋🏽 there", "hi waving hand there", "Hi 👋🏽 there"),
        ("caf\u00e9 au lait", "cafe au", "caf\u00e9 au"),
        ("cafe\u0301 au lait", "caf", "caf"),
        ("ＡＢＣ and more", "abc an", "ＡＢＣ an"),
        ("สวัสดีครับ ยินดีต้อนรับ", "สวัสดี", "สวัสดี"),
        ("今日は、ありがとう。", "今日はあり", "今日は、あり"),
        ("مرحبًا بك", "مرحبا", "مرحبًا"),
        ("co\u00adoperate now", "cooperate", "co\u00adoperate"),
        ("Acme™ is open", "acme is", "Acme™ is"),
        ("?!", "", ""),
        ("", "", ""),
    ],
)
def test_a_text_is_found_but_for_case_punctuation_and_spacing(text: str, spoken: str, expected: str) -> None:
    assert text[: heard(text, spoken)] == expected


@pytest.mark.parametrize(
    ("text", "spoken", "expected"),
    [
        ("You are booked at 7:30 on the 2nd.", "you are booked at seven", "You are booked at"),
        ("You are at 7:30 on the 2nd.", "you are at seven thirty on the secondary", "You are at 7:30 on the"),
        ("That is $12.50 & up.", "that is twelve dollars and", "That is"),
        ("That is $5.", "that is five", "That is"),
        ("That is $1,234.50 for both.", "that is one thousand", "That is"),
        ("It is 1,234.", "it is 1 thousand", "It is"),
        ("one two", "two", ""),
        ("one two", "one two three", "one two"),
        ("one", "on one", ""),
        ("none", "no one", ""),
        ("no one", "none", ""),
        ("Um 16:30 in Bonn.", "um sechzehn uhr dreißig in", "Um"),
        ("价格是30元。谢谢您", "价格是三", "价格是"),
        ("", "x", ""),
    ],
)
def test_what_is_not_how_the_turn_goes_on_does_not_count(text: str, spoken: str, expected: str) -> None:
    assert text[: heard(text, spoken)] == expected
    assert by_text(text, expected).certain


@pytest.mark.parametrize(
    ("text", "spoken", "certain"),
    [
        ("At 7:30 on the 2nd.", "at seven thirty on the 2nd", True),
        ("That is $5 & up.", "that is five dollars and up", True),
        ("That is $5.", "that is five dollars", True),
        ("Das sind 5 EUR.", "das sind fünf euro", False),
        ("Good day.", "good bye", False),
    ],
)
def test_whether_all_that_was_told_is_found_is_known(text: str, spoken: str, certain: bool) -> None:
    found = by_text(text, spoken)
    assert found.certain is certain and (found.chars == len(text)) is certain


@given(TEXT, st.data())
def test_any_beginning_of_a_text_is_found_in_it(text: str, data: st.DataObject) -> None:
    """What was heard is never less than said so, and what is counted beyond it is no part of a word."""
    end = data.draw(st.sampled_from([0, *itertools.accumulate(map(len, characters(text)))]))
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


ENGLISH = {"7": "seven", "7:30": "seven thirty", "Dr.": "Doctor", "$5": "five dollars", "2nd,": "second"}
OTHERWISE = {"8": "acht", "16:30": "sechzehn uhr dreißig", "Nr.": "Nummer", "5 €": "fünf Euro"}
WRITTEN = {**ENGLISH, **OTHERWISE}
PLAIN = ["on", "the", "is", "free", "people", "today.", "Is", "that", "for", "seven", "thirty", "five", "uhr", "no"]


@given(st.lists(st.sampled_from([*PLAIN, *WRITTEN]), min_size=1, max_size=10), st.data())
@settings(max_examples=400)
def test_what_counts_is_a_beginning_of_what_was_heard(words: list[str], data: st.DataObject) -> None:
    """However the synthesiser has spoken it: by text, and by time."""
    *_, before, last = ["", "", *words]
    assume(last not in WRITTEN.get(before, "").split()[1:])  # then one cannot be told from the other
    text = " ".join(words)
    spoken = [WRITTEN.get(word, word).split() for word in words]
    ends = list(itertools.accumulate(len(word) + 1 for word in words))
    count = data.draw(st.integers(0, len(words)))
    part = data.draw(st.integers(0, len(spoken[count]) - 1)) if count < len(words) else 0
    said = [*itertools.chain.from_iterable(spoken[:count]), *(spoken[count][:part] if part else [])]
    truth = ends[count - 1] - 1 if count else 0
    assert heard(text, " ".join(said)) <= truth
    if not part and not set(words) & OTHERWISE.keys():
        assert heard(text, " ".join(said)) >= len(text[:truth].rstrip("., "))
    every = list(itertools.chain.from_iterable(spoken))
    for known in (said, every):
        counted = by_time(text, known, len(said))
        assert len(counted) <= truth
    if not set(words) & WRITTEN.keys():
        counts = {text[: heard(text, " ".join(said))], by_time(text, every, len(said)), text[:truth]}
        assert len({counted.rstrip(".") for counted in counts}) == 1


def test_a_word_that_is_looked_for_does_not_jump_ahead() -> None:
    seven = "I have it at 7 today. Is that for seven people?"
    assert by_time(seven, ["I", "have", "it", "at", "seven"], 5) == "I have it at 7"
    sieben = "Ich habe um 7 noch etwas. Geht das auch um sieben Uhr?"
    assert by_time(sieben, ["Ich", "habe", "um", "sieben"], 4) == "Ich habe um"
    assert by_time(sieben, ["Ich", "habe", "um", "sieben", "noch", "etwas"], 4) == "Ich habe um 7"
    assert by_time(sieben, ["Ich", "habe", "um", "sieben", "noch", "etwas"], 5) == "Ich habe um 7 noch"
    assert by_time("No, no, no, yes.", ["no", "no"], 2) == "No, no"
    assert by_time("It's ready.", ["It’s", "ready."], 1) == "It's"
    assert by_time("One moment.Found it.", ["One", "moment.", "Found"], 2) == "One moment"
    assert by_time("One moment, please.", ["One", "mo", "ment"], 2) == "One"


def test_all_is_heard_where_only_marks_are_left() -> None:
    text = "One moment, please."
    assert by_time(text, ["One", "moment", "please"], 3) == text
    assert by_time(text, ["One", "moment", "please"], 2) == "One moment"
    assert by_timings(text, 300, [WordTiming(300, end_chars=18)]) == 19
    assert by_timings("...", 300, [WordTiming(400, end_chars=3)]) == 0


@given(st.integers(0, 50), st.integers(0, 80))
def test_a_length_counts_code_points_and_no_more_than_was_sent(length: int, claimed: int) -> None:
    text = "👋" * length
    assert Hearing().extent(text, Heard(chars=claimed), "").chars == min(length, claimed)


@given(st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=6), min_size=1, max_size=12), st.integers(0, 2000))
def test_milliseconds_count_the_words_that_had_ended(words: list[str], played: int) -> None:
    text = " ".join(words)
    ends = list(itertools.accumulate(len(word) + 1 for word in words))
    spoken = played // 100
    expected = 0 if spoken == 0 else min(ends[min(spoken, len(words)) - 1] - 1, len(text))
    placed = [WordTiming(100 * (i + 1), end_chars=end - 1) for i, end in enumerate(ends)]
    for known in (placed, timings(words)):
        assert by_timings(text, played, known) == expected


def test_milliseconds_without_timings_are_refused_by_name_but_for_none() -> None:
    with pytest.raises(Problem) as raised:
        Hearing().extent("one", Heard(played_ms=5), "playback_progress.heard")
    assert raised.value.field == "playback_progress.heard.played_ms"
    assert Hearing().extent("one", Heard(played_ms=0), "") == Extent(0)


def test_words_of_scripts_without_spaces_have_their_times() -> None:
    assert by_time("สวัสดีครับ ยินดีต้อนรับ", ["สวัสดี", "ครับ", "ยินดี", "ต้อนรับ"], 1) == "สวัสดี"
    assert by_time("今日は晴れです。", ["今日", "は", "晴れ", "です"], 3) == "今日は晴れ"


def test_a_word_that_spans_two_deltas_is_heard_when_all_of_it_is_there() -> None:
    for words in ([WordTiming(100, word="One"), WordTiming(200, word="moment")], [WordTiming(200, end_chars=10)]):
        hearing = Hearing()
        assert hearing.extent("One mo", Heard(played_ms=200, words=tuple(words)), "").chars <= 6
        assert hearing.extent("One moment, please", Heard(played_ms=200), "").chars == 10
    hearing = Hearing()
    assert hearing.extent("It is 1", Heard(text="it is one"), "").chars == 7
    assert hearing.extent("It is 12 or", Heard(text="it is one"), "").chars == 5
    assert hearing.extent("It is 12 or", Heard(text="it is twelve"), "").chars == 8


def test_playback_past_the_last_word_has_played_a_last_word_that_was_spoken_otherwise() -> None:
    text, spoken = "Bis morgen um 16:30.", ["bis", "morgen", "um", "sechzehn", "uhr", "dreißig"]
    words = timings(spoken)
    assert by_timings(text, 600, words) == 13
    assert by_timings(text, 601, words) == len(text)
    assert by_timings(text, 601, words[:3]) == 13
    assert by_timings(f"{text} Tschüss.", 601, words) == 13
    assert by_timings("It is 4:30.", 301, timings(["it", "is", "four"])) == 5
    assert by_timings("It is 4:30.", 400, timings(["it", "is", "four", "thirty"])) == 11


def test_the_order_of_reports_makes_no_difference() -> None:
    text = "One, two, three. Four."
    words = timings(["one", "two", "three", "four"])
    hearing = Hearing()
    for played, known in ((200, words[:2]), (400, words[2:]), (100, words[:1]), (100, words[:2]), (300, words[1:3])):
        hearing.extent(text, Heard(played_ms=played, words=tuple(known)), "")
    assert list(hearing.words) == words
    assert hearing.extent(text, Heard(played_ms=9999, words=(words[3], words[3])[:1]), "").chars == len(text)
    assert hearing.extent(text, Heard(chars=9999), "").chars == len(text)
    assert by_timings(text, 500, [WordTiming(300, end_chars=99), WordTiming(400, end_chars=8)]) == len(text)


def test_words_that_end_at_the_same_time_are_both_known() -> None:
    hearing = Hearing([WordTiming(100, word="one")])
    assert hearing.extent("One, two.", Heard(played_ms=100, words=(WordTiming(100, word="two"),)), "").chars == 9


def joined(text: str, known: Sequence[WordTiming], more: Sequence[WordTiming]) -> list[WordTiming]:
    hearing = Hearing(known)
    hearing.extent(text, Heard(chars=0, words=tuple(more)), "")
    return list(hearing.words)


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
    assert by_timings(text, 320, joined(text, known, later)) == 3
