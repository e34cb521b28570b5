"""An engine process, as ``engine.worker`` is one, whose policy drafts in another way after every few steps."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from engine import load, worker
from engine.config import EngineConfig
from engine.pace import Pace
from engine.policy import NOTHING, Ask, Choice, Given
from engine.tree import DraftTree

STEPS = 4
"""In which it drafts alike."""


class Switching:
    """Every way at one size, and then plain decoding, whatever it costs."""

    def __init__(self, ways: int) -> None:
        self._choices = [*(Choice(8, way, "its turn") for way in range(ways)), Choice(1, reason="its turn")]
        self._steps = 0

    def choose(self, asks: Sequence[Ask], given: Given = NOTHING) -> list[Choice]:
        choice = self._choices[self._steps // STEPS % len(self._choices)]
        self._steps += 1
        return [choice if ask.room > 0 else self._choices[-1] for ask in asks]

    def prune(self, choices: Sequence[Choice], trees: Sequence[DraftTree], given: Given = NOTHING) -> list[DraftTree]:
        return list(trees)

    def observe(self, choice: Choice, tree: DraftTree, path: Sequence[int]) -> None:
        pass


def choose_policy(config: EngineConfig, pace: Pace, ways: Sequence[str]) -> Switching:
    return Switching(len(ways))


if __name__ == "__main__":
    load.choose_policy = choose_policy
    sys.exit(worker.main(sys.argv))
