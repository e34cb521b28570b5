"""The speaking rate of a call is what its playback says of speech, and nothing of the silence between."""

from __future__ import annotations

import pytest

from service.speaking_rate import SpeakingRate


def test_nothing_is_known_before_playback_is_reported_twice() -> None:
    rate = SpeakingRate()
    rate.played(1, 10, 100, 25, now=5.0)
    assert rate.tokens_per_s == 0.0


def test_it_is_the_tokens_played_in_a_second() -> None:
    rate = SpeakingRate()
    for second in range(5):
        rate.played(1, 16 * second, 100, 25, now=float(second))
    assert rate.tokens_per_s == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("turn", "chars", "now", "why"),
    [
        (1, 100, 4.0, "the end of the turn may have been played a while ago"),
        (2, 40, 4.0, "another turn"),
        (1, 40, 30.0, "nobody knows when it stood still"),
        (1, 32, 4.0, "nothing was played"),
    ],
)
def test_what_says_nothing_of_speech_is_left_out(turn: int, chars: int, now: float, why: str) -> None:
    rate = SpeakingRate()
    rate.played(1, 0, 100, 25, now=0.0)
    rate.played(1, 32, 100, 25, now=2.0)
    rate.played(turn, chars, 100, 25, now=now)
    assert rate.tokens_per_s == pytest.approx(4.0), why


def test_a_faster_voice_is_noticed() -> None:
    rate = SpeakingRate()
    chars, now = 0, 0.0
    for chars_per_s in (10, 20):
        for _ in range(60):
            rate.played(1, chars, 10_000, 2_500, now)
            chars, now = chars + chars_per_s, now + 1.0
    assert rate.tokens_per_s == pytest.approx(5.0, rel=0.05)


def test_a_burst_of_reports_says_nothing() -> None:
    rate = SpeakingRate()
    for number in range(5):
        rate.played(1, 20 * number, 100, 25, now=number / 1000)
    assert rate.tokens_per_s == 0.0


def test_silence_where_the_words_ran_out_is_no_slow_speech() -> None:
    rate = SpeakingRate()
    for second in range(5):
        rate.played(1, 16 * second, 64, 16, now=float(second))
    rate.played(1, 80, 100, 25, now=8.0)  # a clause came late
    assert rate.tokens_per_s == pytest.approx(4.0)
