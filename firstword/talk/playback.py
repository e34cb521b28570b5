"""How far a reply has been spoken: the clock of a synthesiser that is not there."""

from __future__ import annotations

SPEAKING_RATE = 15.0
"""Characters of English a second that a synthesiser speaks at an ordinary pace."""


class Playback:
    """Speaks text at ``rate`` characters a second from the moment it is there, and waits where it is not.

    position: code points spoken so far, with the beginning of the next one.
    """

    def __init__(self, rate: float = SPEAKING_RATE) -> None:
        self.rate = rate
        self.position = 0.0
        self._available = 0
        self._at = 0.0

    def arrived(self, now: float, available: int) -> None:
        """The first ``available`` code points of the text are there. now: seconds on any one clock."""
        self.heard(now)
        self._available = max(self._available, available)

    def heard(self, now: float) -> int:
        """Whole code points spoken by ``now``."""
        spoken = self.position + max(0.0, now - self._at) * self.rate
        self.position = min(spoken, float(self._available))
        self._at = max(self._at, now)
        return int(self.position)

    @property
    def silent(self) -> bool:
        """Everything that has arrived is spoken, as of the last look."""
        return self.position >= self._available
