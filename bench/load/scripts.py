"""What one simulated caller does, decided before the call: who they are, what they say, where they interrupt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from evals.calls import RecordedCall, SpokenTurn
from evals.calls.__main__ import FIRST_SEED
from training.dialogues import Split, dialogue

INTERRUPTS = 0.12
"""Of turns: how often the caller speaks over the reply, if it is long enough."""
HEARD_CODE_POINTS = (12, 80)
TOOL_S = (0.2, 1.2)
"""Time that a tool takes."""
PAUSE_S = (0.2, 0.9)
"""From the end of what the agent says to the caller's next sound."""


@dataclass(frozen=True)
class Script:
    """One call of a caller.

    first_turn: where it begins, in the middle of a conversation if above 0; history: what was said before, as chat
    messages. seed: of the call, and of all that is drawn for it.
    """

    recorded: RecordedCall
    seed: int
    first_turn: int = 0
    history: tuple[dict[str, Any], ...] = ()

    @property
    def turns(self) -> tuple[SpokenTurn, ...]:
        return self.recorded.turns

    def cut(self, turn: int) -> int | None:
        """Code points of the reply to a turn after which the caller speaks over it; None: they let it finish."""
        rng = self._rng("cut", turn)
        return rng.randint(*HEARD_CODE_POINTS) if rng.random() < INTERRUPTS else None

    def pause_s(self, turn: int) -> float:
        return self._rng("pause", turn).uniform(*PAUSE_S)

    def tool_s(self, turn: int, number: int) -> float:
        """How long the ``number``-th tool call of a turn takes."""
        return self._rng("tool", turn, number).uniform(*TOOL_S)

    def _rng(self, *what: object) -> random.Random:
        return random.Random(f"{self.seed} {self.recorded.name} {what}")


def script(calls: list[RecordedCall], seed: int, *, midway: bool = False) -> Script:
    """The call that ``seed`` stands for. midway: it begins at any of its turns, as calls do that have been going on."""
    rng = random.Random(f"caller {seed}")
    recorded = rng.choice(calls)
    if not midway or not recorded.name.startswith("call-"):
        return Script(recorded, seed)
    first = rng.randrange(len(recorded.turns))
    return Script(recorded, seed, first, tuple(history(recorded, first)))


def history(recorded: RecordedCall, turn: int) -> list[dict[str, Any]]:
    """What the dialogue behind a recorded call holds before the caller's ``turn``-th turn, the system prompt apart."""
    number = int(recorded.name.removeprefix("call-"))
    messages = dialogue(FIRST_SEED + number, Split(names=True, paraphrases=True)).messages[1:]
    spoken = [at for at, message in enumerate(messages) if message["role"] == "user"]
    return messages[: spoken[turn]]
