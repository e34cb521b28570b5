"""When what was said of a reply will have been spoken, as far as it can be told from here: nobody hears the voice."""

from __future__ import annotations

from dataclasses import dataclass

NOTICED_S = 0.1
"""A shorter silence between clauses is taken for a pause of the voice, and may be a fault of the rate."""


@dataclass(frozen=True)
class Clause:
    """How a clause came. late: behind the moment at which it was due. silence_s: that its caller has heard before it,
    by the rate at which words are spoken; 0 where it is not noticed. suffices: of a reply made ahead, whether no more
    of it needs to be made before its caller has asked for it.
    """

    late: bool = False
    silence_s: float = 0.0
    suffices: bool = False


@dataclass
class PlaybackClock:
    """Of one reply. rate: tokens that are spoken in a second. spoken_until: monotonic seconds at which all that was
    said will have been spoken; 0 before the first clause. spoken_tokens: up to the last clause that ended.
    """

    rate: float
    spoken_until: float = 0.0
    spoken_tokens: int = 0

    @property
    def speaks(self) -> bool:
        """Whether a clause was said."""
        return self.spoken_until > 0.0

    @property
    def speech_s(self) -> float:
        """Seconds that all that was said takes to be spoken."""
        return self.spoken_tokens / self.rate

    def spoke(self, tokens: int, now: float) -> float:
        """A clause has ended, and the reply has so many tokens by now. Seconds of silence before it."""
        silence = now - self.spoken_until if self.speaks else 0.0
        # Where the words ran out the caller hears the rest later, and is owed nothing for the silence.
        self.spoken_until = max(self.spoken_until, now) + max(0, tokens - self.spoken_tokens) / self.rate
        self.spoken_tokens = tokens
        return silence if silence >= NOTICED_S else 0.0
