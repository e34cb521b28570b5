"""What a backend may send of a turn, and how the service is set for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.calls import Kind

DEBOUNCE = "FIRSTWORD_CALL__UNSTABLE_PARTIAL_MS"


@dataclass(frozen=True)
class Mode:
    """sends: events of a recogniser that are passed on, the final apart. debounce_ms: how long the unstable end of a
    partial waits; None for the service's own.
    """

    name: str
    sends: frozenset[Kind]
    debounce_ms: int | None = None

    def environment(self, speed: float) -> dict[str, str]:
        """Of the server that it is played to, where speech is so many times as fast."""
        return {} if self.debounce_ms is None else {DEBOUNCE: str(round(self.debounce_ms / speed))}


FINAL_ONLY = Mode("send at final only", frozenset())
PREFILL = Mode("prefill ahead", frozenset({Kind.PARTIAL}))
ANSWER = Mode("answer ahead", frozenset({Kind.PARTIAL, Kind.EAGER, Kind.RESUMED}))


def modes(debounces: Sequence[int]) -> list[Mode]:
    """The three of them, and prefill ahead with other debounces."""
    others = [Mode(f"prefill ahead, debounce {ms} ms", PREFILL.sends, ms) for ms in debounces]
    return [FINAL_ONLY, PREFILL, ANSWER, *others]
