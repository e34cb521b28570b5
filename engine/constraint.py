"""What form a reply must have, as plain picklable values. What enforces it is ``engine.grammar``'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.text.call_form import CallForm


@dataclass(frozen=True)
class ToolConstraint:
    """Text and tool calls. tools: (name, JSON Schema of its arguments as text) of those that may be called.

    choice: auto leaves it to the model; none forbids calls; required makes the reply begin with one, and be nothing
    else. several: whether it may hold more than one. text: JSON Schema of what it says where it is no call, and then it
    is one or the other; empty for any text.
    """

    form: CallForm
    tools: tuple[tuple[str, str], ...]
    choice: Literal["auto", "none", "required"] = "auto"
    several: bool = True
    text: str = ""


@dataclass(frozen=True)
class JsonConstraint:
    """The whole reply is JSON of this schema, given as text."""

    schema: str


Constraint = ToolConstraint | JsonConstraint
