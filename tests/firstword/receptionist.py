"""A call in the form that the embedded model was trained on, for the client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firstword import Item, Message, Tool, ToolCall, ToolHandler, ToolResult
from tests.e2e.server import EXAMPLES as EXAMPLE_CALLS

EXAMPLES: Sequence[Mapping[str, Any]] = [json.loads(line) for line in EXAMPLE_CALLS.read_text().splitlines()]
MESSAGES: Sequence[Mapping[str, Any]] = EXAMPLES[0]["messages"]
SYSTEM: str = MESSAGES[0]["content"]
LINES: Sequence[str] = [message["content"] for message in MESSAGES if message["role"] == "user"]


@dataclass(frozen=True)
class ToolTurn:
    """A line of a caller that is answered by one tool call, and then by text.

    tools: definitions, as a chat template takes them. booking: what the tool gave.
    """

    system: str
    tools: Sequence[Mapping[str, Any]]
    history: Sequence[Item]
    line: str
    call: ToolCall
    booking: Mapping[str, Any]


def _tool_turn() -> ToolTurn:
    """The first one of the examples that has no other tool call before it."""
    for example in EXAMPLES:
        system, *messages = example["messages"]
        at = next(index for index, message in enumerate(messages) if "tool_calls" in message)
        if "tool_calls" in messages[at + 2] or messages[at - 1]["role"] != "user":
            continue
        *history, line = [Message(message["role"], message["content"]) for message in messages[:at]]
        made = messages[at]["tool_calls"][0]["function"]
        call = ToolCall("call-1", made["name"], made["arguments"])
        return ToolTurn(
            system["content"], example["tools"], history, line.text, call, json.loads(messages[at + 1]["content"])
        )
    raise AssertionError("no example has such a turn")


TOOL_TURN = _tool_turn()


def tools(handler: ToolHandler | None = None) -> list[Tool]:
    """The tools of that example, all with one handler."""
    return [
        Tool(made["name"], made["description"], made["parameters"], handler=handler)
        for made in (tool["function"] for tool in TOOL_TURN.tools)
    ]


def with_the_tool_call() -> list[Item]:
    """Its history, with the line, the call and its result."""
    turn = TOOL_TURN
    return [*turn.history, Message("user", turn.line), turn.call, ToolResult("call-1", json.dumps(turn.booking))]
