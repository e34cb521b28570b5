"""What one fuzzed client does, as data: drawn from a seed, and able to be kept in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Base64Bytes, Field, TypeAdapter


@dataclass(frozen=True)
class Send:
    """One request, as bytes, so many times. call: where it is the result of a tool call that was heard, which one of
    them it is, from the newest on; 0: it says so itself.
    """

    data: Base64Bytes
    call: int = 0
    times: int = 1
    kind: Literal["send"] = "send"


@dataclass(frozen=True)
class Wait:
    """For the next event, or the end of the newest turn, or just so long."""

    what: Literal["event", "turn", "time"]
    seconds: float
    kind: Literal["wait"] = "wait"


@dataclass(frozen=True)
class Resume:
    """Come back on another stream. before: what becomes of the one that there is. pod: where to; forget: how many of
    the newest events the client says it never had. damage: of the request, by this number; 0: none.
    """

    before: Literal["nothing", "cancel", "half_close"]
    pod: int
    take_over: bool
    forget: int = 0
    damage: int = 0
    kind: Literal["resume"] = "resume"


Step = Annotated[Send | Wait | Resume, Field(discriminator="kind")]


@dataclass(frozen=True)
class Script:
    """pod: where the call begins. probe: before the end, a turn in order must be answered or refused. end: how the
    client leaves.
    """

    seed: int
    pod: int
    steps: tuple[Step, ...]
    probe: bool
    end: Literal["close", "forget", "half_close", "cancel"]


_ADAPTER = TypeAdapter(Script)


def load(path: Path) -> Script:
    """One that was kept."""
    return _ADAPTER.validate_json(path.read_bytes())


def keep(script: Script, path: Path) -> None:
    """Write it down, whole: the seed alone would be another script's as soon as the generator changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_ADAPTER.dump_json(script, indent=1) + b"\n")
