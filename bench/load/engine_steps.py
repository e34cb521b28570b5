"""What the steps of an engine take, told by its host.

What a listener can be late by is the step that their reply shares, whoever else is in it. The records that the service
lives on do not tell: two steps of one reply may lie apart because it was left out of those between.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine import records
from engine.engine import Step, Work
from engine.host import EngineHost


@dataclass(frozen=True)
class EngineStep:
    """What was done at once, from the plan of it to the events. Moments are ``time.monotonic()``. gained: sessions
    whose replies have more tokens; read: sessions of whose prompts more than a token was computed.
    """

    began: float
    ended: float
    gained: tuple[str, ...]
    read: tuple[str, ...]


def watch(host: EngineHost) -> None:
    """Have the host tell of each step, behind what came of it."""
    step, advance = host.engine.step, host.advance
    steps: list[Step] = []

    def noted(plan: Sequence[Work]) -> list[Step]:
        found = step(plan)
        steps.extend(found)
        return found

    def timed() -> list[records.Event]:
        steps.clear()
        began = time.monotonic()
        events: list[records.Event | EngineStep] = list(advance())
        if steps:
            gained = tuple(one.session for one in steps if one.tokens)
            read = tuple(one.session for one in steps if one.prefilled > 1)
            events.append(EngineStep(began, time.monotonic(), gained, read))
        return events  # type: ignore[return-value]  # whoever started this process knows what comes

    host.engine.step = noted  # type: ignore[method-assign]
    host.advance = timed  # type: ignore[method-assign]
