"""Recorded calls: what a recogniser said of every turn of a caller, and when.

``calls.jsonl`` beside this file holds them, one a line; ``python -m evals.calls`` writes it, from seeds. Nobody was
recorded: the callers are ``training.dialogues``' and what is heard of them ``evals.calls.recogniser``'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.text.common import common_prefix

FILE = Path(__file__).with_name("calls.jsonl")


class Kind(StrEnum):
    """What a recogniser says: more of a turn, that it is probably over, that it is not, that it is."""

    PARTIAL = "partial"
    EAGER = "eager"
    RESUMED = "resumed"
    FINAL = "final"


@dataclass(frozen=True)
class Heard:
    """One event. at_ms: from the turn's first sound. text: all that is heard of the turn so far; empty where the caller
    goes on. stable: its first code points that will not be revised, where the recogniser says so.
    """

    at_ms: int
    kind: Kind
    text: str
    stable: int | None = None


@dataclass(frozen=True)
class SpokenTurn:
    """A turn of the caller; its last event is the only final."""

    events: tuple[Heard, ...]

    @property
    def text(self) -> str:
        return self.events[-1].text

    @property
    def eager_ms(self) -> int | None:
        """From the last eager end to the final; None where there was none, or the caller went on after it."""
        last = next((event for event in reversed(self.events) if event.kind is not Kind.FINAL), None)
        return self.events[-1].at_ms - last.at_ms if last is not None and last.kind is Kind.EAGER else None


@dataclass(frozen=True)
class RecordedCall:
    """system, tools: as the agent is opened. results: (tool, what it gave), in order. turns: the caller's."""

    name: str
    system: str
    tools: list[dict[str, Any]]
    results: tuple[tuple[str, str], ...]
    turns: tuple[SpokenTurn, ...]


def to_line(call: RecordedCall) -> str:
    """One line of the file. Hypotheses repeat each other: each is written as what it keeps of the one before it, and
    what follows.
    """
    turns = []
    for turn in call.turns:
        events, before = [], ""
        for heard in turn.events:
            kept = len(common_prefix(before, heard.text))
            events.append([heard.at_ms, heard.kind.value, kept, heard.text[kept:], heard.stable])
            before = heard.text or before
        turns.append(events)
    return json.dumps({**asdict(call), "turns": turns}, separators=(",", ":"))


def from_line(line: str) -> RecordedCall:
    """What ``to_line`` wrote. Raises ValueError, KeyError and TypeError for anything else."""
    found = json.loads(line)
    turns = []
    for events in found["turns"]:
        heard, before = [], ""
        for at_ms, kind, kept, more, stable in events:
            text = before[:kept] + more
            heard.append(Heard(at_ms, Kind(kind), text, stable))
            before = text or before
        turns.append(SpokenTurn(tuple(heard)))
    results = tuple((tool, output) for tool, output in found["results"])
    return RecordedCall(found["name"], found["system"], found["tools"], results, tuple(turns))


def read(path: Path = FILE) -> Iterator[RecordedCall]:
    with path.open(encoding="utf-8") as lines:
        yield from map(from_line, lines)
