"""What a conversation is made of, as content: messages, tool calls and their results. Knows no token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class MessageItem:
    """Something said. interrupted: of the assistant, and the caller spoke over it."""

    id: str
    role: Role
    text: str
    interrupted: bool = False


@dataclass(frozen=True)
class ToolCallItem:
    """arguments: the JSON text of an object."""

    id: str
    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolResultItem:
    """name: of the tool that was called. stands_in: nothing has come of it, and the model is told this instead."""

    id: str
    call_id: str
    name: str
    output: str
    is_error: bool = False
    stands_in: bool = False


@dataclass(frozen=True)
class ToolDefinition:
    """parameters: a JSON Schema of an object, parsed. timeout_ms: None for the call's."""

    name: str
    description: str
    parameters: Mapping[str, object]
    timeout_ms: int | None = None


Item = MessageItem | ToolCallItem | ToolResultItem


def text_of(item: Item) -> str:
    """What was said in it."""
    match item:
        case MessageItem():
            return item.text
        case ToolCallItem():
            return item.arguments
        case ToolResultItem():
            return item.output
