"""What a chat context of LiveKit says, in the terms of this package."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from livekit.agents import NotGivenOr
from livekit.agents import llm as lk
from livekit.agents.types import NotGiven

from firstword.types import Item, Message, Role, Tool, ToolCall, ToolChoice, ToolResult

_ROLES: Mapping[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class View:
    """A conversation as LiveKit sees it. items: without the system prompt."""

    system: str = ""
    tools: tuple[Tool, ...] = ()
    items: tuple[Item, ...] = ()

    @property
    def asked(self) -> Message | None:
        """The caller's message that it ends with; None: it ends otherwise."""
        last = self.items[-1] if self.items else None
        return last if isinstance(last, Message) and last.role == "user" else None

    @property
    def before(self) -> tuple[Item, ...]:
        """What stands before the caller's message that it ends with; all of it where there is none."""
        return self.items if self.asked is None else self.items[:-1]

    def as_said(self, told: Sequence[Item]) -> View:
        """With the caller's messages as they were told before, where only case, punctuation and spacing differ: a reply
        that was made to a transcript stands when the final one is put in its place, and what is warm stays warm.
        """
        known = {item.item_id: item.text for item in told if isinstance(item, Message) and item.item_id}

        def kept(item: Item) -> Item:
            if not isinstance(item, Message) or item.role != "user":
                return item
            text = known.get(item.item_id, item.text)
            return replace(item, text=text) if alike(text, item.text) else item

        return replace(self, items=tuple(map(kept, self.items)))


def view_of(context: lk.ChatContext, tools: Sequence[lk.Tool | lk.Toolset]) -> View:
    """Raises ValueError for what the service cannot be told: pictures, sound without a transcript, and tools that run
    at a provider.
    """
    known = lk.ToolContext(tools)
    if known.provider_tools:
        raise ValueError(f"the tool {known.provider_tools[0].id} runs at another provider")
    items = _items(context.items)
    begin = next((at for at, item in enumerate(items) if not _is_system(item)), len(items))
    system = "\n".join(item.text for item in items[:begin] if isinstance(item, Message))
    return View(system, _tools(known), tuple(items[begin:]))


def tool_choice_of(choice: NotGivenOr[lk.ToolChoice], parallel: NotGivenOr[bool]) -> ToolChoice | None:
    """None for what is a call's own way: the model decides."""
    several = parallel if isinstance(parallel, bool) else None
    if isinstance(choice, Mapping):
        return ToolChoice(tool=choice["function"]["name"], parallel=several)
    made = ToolChoice("auto" if isinstance(choice, NotGiven) else choice, parallel=several)
    return None if made == ToolChoice() else made


def same(one: Sequence[Item], other: Sequence[Item]) -> bool:
    """Whether two conversations say the same, whatever their items are called."""
    return [*map(_content, one)] == [*map(_content, other)]


def alike(one: str, other: str) -> bool:
    """Whether two transcripts have the same words."""
    return _words(one) == _words(other)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _content(item: Item) -> tuple[Any, ...]:
    match item:
        case Message():
            return item.role, item.text
        case ToolCall():
            return item.call_id, item.name, item.arguments
        case ToolResult():
            return item.call_id, item.output


def _is_system(item: Item) -> bool:
    return isinstance(item, Message) and item.role == "system"


def _items(given: Sequence[lk.ChatItem]) -> list[Item]:
    """What is told of these. Messages without text are left out, and so is half a tool call: one that has no output
    has not come to anything, and an output without its call answers nothing.
    """
    called = {item.call_id for item in given if isinstance(item, lk.FunctionCall)}
    answered = {item.call_id for item in given if isinstance(item, lk.FunctionCallOutput)}
    found: list[Item] = []
    for item in given:
        if isinstance(item, lk.ChatMessage):
            if text := _text(item):
                interrupted = item.interrupted and item.role == "assistant"
                found.append(Message(_ROLES[item.role], text, interrupted, item.id))
        elif isinstance(item, lk.FunctionCall) and item.call_id in answered:
            found.append(ToolCall(item.call_id, item.name, json.loads(item.arguments or "{}"), item.id))
        elif isinstance(item, lk.FunctionCallOutput) and item.call_id in called:
            found.append(ToolResult(item.call_id, item.output, item.is_error, item.name, item.id))
    return found


def _text(message: lk.ChatMessage) -> str:
    parts = []
    for part in message.content:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, lk.AudioContent) and part.transcript is not None:
            parts.append(part.transcript)
        elif isinstance(part, lk.ImageContent | lk.AudioContent):
            raise ValueError(f"the message {message.id} holds {part.type}, and the service takes text")
    return "\n".join(parts)


def _tools(known: lk.ToolContext) -> tuple[Tool, ...]:
    schemas = [made["function"] for made in known.parse_function_tools("openai", strict=False)]
    return tuple(Tool(made["name"], made.get("description", ""), made.get("parameters", {})) for made in schemas)
