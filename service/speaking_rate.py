"""How fast a call's replies are spoken, from what its client says of playback. Knows no reply and no engine."""

from __future__ import annotations

_MEMORY_S = 10.0
"""Seconds of speech after which older ones count half."""
_ENOUGH_S = 2.0
"""Of speech, before anything is said of it: a few words are reported in bursts."""
_LONGEST_S = 5.0
"""Between two words of playback that far apart nobody knows when it stood still."""


class SpeakingRate:
    """Of one call."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._last: tuple[int, int, float] | None = None

    @property
    def tokens_per_s(self) -> float:
        """0 where too little is known yet."""
        return self._tokens / self._seconds if self._seconds >= _ENOUGH_S else 0.0

    def played(self, turn_id: int, chars: int, of_chars: int, of_tokens: int, now: float) -> None:
        """So many code points of a turn's text have been played. of_chars, of_tokens: of all that there is of it."""
        # At the end of what there is it may have been for a while, waiting for more.
        last, self._last = self._last, None if chars >= of_chars else (turn_id, chars, now)
        if last is None or last[0] != turn_id or chars >= of_chars:
            return
        gained, seconds = chars - last[1], now - last[2]
        if gained > 0 and 0.0 < seconds <= _LONGEST_S:
            fade = 0.5 ** (seconds / _MEMORY_S)
            self._tokens = self._tokens * fade + gained * of_tokens / of_chars
            self._seconds = self._seconds * fade + seconds
