"""The clock of a synthesiser that is not there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firstword.talk.playback import Playback


def test_it_speaks_at_its_rate_from_when_there_is_text() -> None:
    playback = Playback(10.0)
    assert playback.heard(100.0) == 0
    playback.arrived(100.0, 30)
    assert playback.heard(101.0) == 10
    assert playback.heard(101.25) == 12
    assert playback.heard(200.0) == 30


def test_it_waits_for_text_that_is_late() -> None:
    playback = Playback(10.0)
    playback.arrived(0.0, 5)
    playback.arrived(3.0, 20)  # silent since 0.5
    assert playback.heard(3.0) == 5
    assert playback.heard(4.0) == 15


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 40))))
def test_it_never_goes_back_nor_speaks_what_is_not_there(arrivals: list[tuple[float, int]]) -> None:
    playback, now, available, before = Playback(), 50.0, 0, 0
    for passed, more in arrivals:
        now, available = now + passed, available + more
        playback.arrived(now, available)
        heard = playback.heard(now)
        assert before <= heard <= available
        before = heard
