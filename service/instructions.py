"""What stands before a history: the system prompt, the tools and prior items, as one model's template writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.text.call_form import CallForm
from engine.text.chat import Chat, Head, Message, Tool
from service.items import Item, MessageItem, ToolCallItem, ToolDefinition, ToolResultItem
from service.problems import invalid

SUMMARY = "What was said before, in short: "


@dataclass(frozen=True)
class Instructions:
    """items: prior ones, which the template has written together with the rest. call_form: None without tools. summary:
    of what was said before; it stands behind the system prompt.
    """

    system: str
    tools: tuple[ToolDefinition, ...]
    items: tuple[Item, ...]
    head: Head
    call_form: CallForm | None
    summary: str = ""

    @staticmethod
    def of(
        chat: Chat,
        system: str,
        items: Sequence[Item],
        tools: Sequence[ToolDefinition],
        event: str,
        items_field: str,
        summary: str = "",
    ) -> Instructions:
        """Raises Problem, which names a field of ``event``, for what the model's template refuses."""
        written = _written(system, summary)
        messages: list[Message] = [{"role": "system", "content": written}] if written else []
        try:
            head = chat.begin(messages + _messages(items), [_function(tool) for tool in tools])
        except ValueError as error:
            raise invalid(f"{event}.{items_field}" if items else f"{event}.tools", str(error)) from None
        if tools and chat.call_form is None:
            raise invalid(f"{event}.tools", "the model's chat template writes tool calls in no form that is known here")
        return Instructions(system, tuple(tools), tuple(items), head, chat.call_form if tools else None, summary)

    @property
    def written(self) -> str:
        """The system prompt with the summary."""
        return _written(self.system, self.summary)

    @cached_property
    def schemas(self) -> tuple[tuple[str, str], ...]:
        """(name, JSON Schema of the arguments) of every tool."""
        return tuple((tool.name, json.dumps(tool.parameters)) for tool in self.tools)


def _written(system: str, summary: str) -> str:
    return "\n\n".join(part for part in (system, summary and SUMMARY + summary) if part)


def _messages(items: Sequence[Item]) -> list[Message]:
    """Items as chat templates take them: tool calls belong to the assistant's message before them."""
    messages: list[Message] = []
    for item in items:
        match item:
            case MessageItem():
                messages.append({"role": item.role, "content": item.text})
            case ToolCallItem():
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                function = {"name": item.name, "arguments": json.loads(item.arguments)}
                call = {"type": "function", "id": item.call_id, "function": function}
                messages[-1].setdefault("tool_calls", []).append(call)
            case ToolResultItem():
                message = {"role": "tool", "name": item.name, "tool_call_id": item.call_id, "content": item.output}
                messages.append(message)
    return messages


def _function(tool: ToolDefinition) -> Tool:
    parameters = {"type": "object", "properties": {}, **tool.parameters}  # templates go through them
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
