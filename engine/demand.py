"""How much of an engine the voices need that are speaking: it tells that they will fall silent before they do."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from engine.pace import Pace

SMOOTHED_S = 5.0
"""Over which the load is a running mean: voices begin and end all the time."""
SILENT_S = 60.0
"""A session that was asked for nothing for so long since it was opened may be one that never will be."""
FEW = 8
"""So many voices more are looked at to say what one more costs: the step from one to the next says little."""


@dataclass
class Demand:
    """The part of its time that an engine needs for speech alone; from 1 on voices fall silent.

    It is what plain steps with all voices in each would take, so it does not depend on how many share one while there
    is time. Where drafting pays less is needed, and what is read meanwhile comes on top of it.
    """

    pace: Pace
    _load: float = 0.0
    _at: float = field(default_factory=lambda: time.monotonic())
    _silent: dict[str, float] = field(default_factory=dict)
    """When each session was opened that was not asked for a reply yet."""

    def opened(self, session: str) -> None:
        self._silent[session] = time.monotonic()

    def known(self, session: str) -> None:
        """It was asked for a reply, and is a voice as others are; or it is over."""
        self._silent.pop(session, None)

    @property
    def silent(self) -> int:
        """Sessions that were opened lately, and will speak."""
        since = time.monotonic() - SILENT_S
        return sum(opened > since for opened in self._silent.values())

    def load(self, voices: int, rate: float) -> float:
        """Of so many voices, each of ``rate`` tokens a second, smoothed over ``SMOOTHED_S``."""
        now = time.monotonic()
        kept = math.exp((self._at - now) / SMOOTHED_S)
        self._load, self._at = kept * self._load + (1.0 - kept) * self._needed(voices, rate), now
        return self._load

    def one_more(self, voices: int, rate: float) -> float:
        """What a voice more adds to it, rather too much than too little."""
        return self._needed(voices + FEW, rate) / (voices + FEW)

    def _needed(self, voices: int, rate: float) -> float:
        return rate * self.pace.forward(voices, voices) if voices else 0.0
