"""What a policy of drafting is asked and answers: who drafts in a step, and how much. And the one that never changes.

A policy changes only how fast replies come, never what they say. Knows no model and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from engine.tree import DraftTree


@dataclass(frozen=True)
class Ask:
    """A reply that the step goes on with.

    room: tokens that it may still gain beyond the next one. urgent: whether its caller waits for it; for the others
    what was said lasts a while yet.
    """

    room: int
    urgent: bool = True


class Given(NamedTuple):
    """Of a step, what is read rather than drafted. awaited: windows at whose end a caller's first token is."""

    windows: int = 0
    nodes: int = 0
    awaited: int = 0


NOTHING = Given()
"""Nothing is read."""


@dataclass(frozen=True)
class Choice:
    """What a reply drafts in one step: ``nodes`` at most, root included, so that 1 is plain decoding.

    way: which of the engine's ways of drafting. reason: for telemetry. probing: it is done to learn what it yields.
    """

    nodes: int
    way: int = 0
    reason: str = ""
    probing: bool = False
    urgent: bool = True

    @property
    def drafts(self) -> bool:
        return self.nodes > 1


class DraftPolicy(Protocol):
    """Decides what each reply of a step drafts."""

    def choose(self, asks: Sequence[Ask], given: Given = NOTHING) -> list[Choice]:
        """One for each."""
        ...

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree], given: Given = NOTHING) -> list[DraftTree]:
        """The trees that were drafted, cut to what is worth verifying together."""
        ...

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        """Learn from a verified tree which of its nodes (``path``, root first) were kept."""
        ...


@dataclass(frozen=True)
class FixedPolicy:
    """Always the same budget in the same way: for benchmarks, tests and forced modes."""

    nodes: int = 1
    way: int = 0

    def choose(self, asks: Sequence[Ask], given: Given = NOTHING) -> list[Choice]:
        reason = f"fixed at {self.nodes} nodes"
        return [Choice(self.nodes if ask.room > 0 else 1, self.way, reason, urgent=ask.urgent) for ask in asks]

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree], given: Given = NOTHING) -> list[DraftTree]:
        return list(trees)

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        pass
