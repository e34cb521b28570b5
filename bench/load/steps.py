"""The steps of an engine, as its records tell them: whose each was, when, and who drafted it."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from bench.load.engine_steps import EngineStep
from engine import records
from service.call_services import Record

Key = tuple[str, int]
"""(session, the reply's name at the engine)."""


DECIDED = 3
"""Steps of a reply whose modes say something: the first one only reads, and the last one has no room to draft."""


@dataclass(frozen=True)
class Step:
    """One step of a reply. at: ``time.perf_counter()`` when it was done. ahead: nobody waits for it yet."""

    at: float
    reply: Key
    tokens: int
    ahead: bool


@dataclass
class StepLog:
    """phases: by reply, how its steps were drafted, as (mode, steps) in order, as its account says when it is over.
    engine: its steps as such, where the process tells of them, by the load generator's clock.
    """

    steps: list[Step] = field(default_factory=list)
    engine: list[EngineStep] = field(default_factory=list)
    phases: dict[Key, list[tuple[str, int]]] = field(default_factory=dict)
    _held: set[Key] = field(default_factory=set)
    _offset: float = field(default_factory=lambda: time.perf_counter() - time.monotonic())
    """From the engine's clock to that of the load generator."""

    def submitted(self, command: records.Submit) -> None:
        if command.hold is not None:
            self._held.add((command.session, command.turn))

    def released(self, session: str, turn: int) -> None:
        self._held.discard((session, turn))

    def took(self, step: EngineStep) -> None:
        began, ended = step.began + self._offset, step.ended + self._offset
        self.engine.append(replace(step, began=began, ended=ended))

    def note(self, record: Record) -> None:
        key = record.session, getattr(record, "turn", 0) or 0
        match record:
            case records.Progress():
                self.steps.append(Step(record.at + self._offset, key, len(record.tokens), key in self._held))
            case records.Ended():
                self.phases[key] = [(phase.mode, phase.steps) for phase in record.stats.phases]

    def modes(self) -> list[str]:
        """Of each step; ``?`` where its reply was not over when the engine was left."""
        done: Counter[Key] = Counter()
        found = []
        for step in self.steps:
            done[step.reply] += 1
            found.append(self._mode(step.reply, done[step.reply]))
        return found

    def _mode(self, reply: Key, number: int) -> str:
        """Of a reply's ``number``-th step, from 1."""
        phases = self.phases.get(reply)
        if not phases:
            return "?"
        ends = itertools.accumulate(steps for _, steps in phases)
        return next((mode for (mode, _), end in zip(phases, ends, strict=True) if number <= end), phases[-1][0])

    def awaited(self) -> list[list[str]]:
        """The modes that each reply went through, in the order in which they began: of those that are over and that
        somebody has waited for from their first step on. Those of fewer than ``DECIDED`` steps are left out.
        """
        ahead: dict[Key, bool] = {}
        for step in self.steps:
            ahead.setdefault(step.reply, step.ahead)
        told = [self.phases.get(reply, []) for reply, made_ahead in ahead.items() if not made_ahead]
        return [[mode for mode, _ in phases] for phases in told if sum(steps for _, steps in phases) >= DECIDED]

    def intervals(self) -> list[tuple[Key, float, float]]:
        """(reply, begin, end) from each step to the next one of the same reply, of those that somebody waits for."""
        last: dict[Key, Step] = {}
        found = []
        for step in self.steps:
            before = last.get(step.reply)
            if before is not None and not before.ahead:
                found.append((step.reply, before.at, step.at))
            last[step.reply] = step
        return found
