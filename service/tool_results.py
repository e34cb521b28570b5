"""The results of tool calls, and what the model is told in place of those that it will not have."""

from __future__ import annotations

from dataclasses import replace

from service.conversation import Conversation
from service.items import ToolCallItem, ToolResultItem

INTERRUPTED_RESULT = '{"status": "interrupted"}'
"""What the history holds as the result of a tool call that the caller spoke over and whose result never came."""

TIMED_OUT_RESULT = '{"status": "error", "error": "the tool did not answer in time"}'
"""What it holds as the result of a tool call that had none in time."""

UNHELD_RESULT = '{"status": "done", "output": "too long"}'
"""What the history holds in place of results that the context has no room for."""


class ToolResults:
    """Of one call's history."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def of(self, call: ToolCallItem, output: str, *, is_error: bool = False, item_id: str = "") -> ToolResultItem:
        """The result of a call, not yet put anywhere."""
        return ToolResultItem(item_id or self._conversation.new_id(), call.call_id, call.name, output, is_error)

    def stand_in(self, call: ToolCallItem, output: str, *, is_error: bool = False) -> ToolResultItem:
        """What the model is told instead of the result of a call."""
        return replace(self.of(call, output, is_error=is_error), stands_in=True)

    def has(self, call_id: str) -> bool:
        """Whether there is a result of a call, and not what stands for it."""
        return any(not item.stands_in for item in self._of(call_id))

    def standing_in(self, call_id: str) -> ToolResultItem | None:
        """What the model was told instead of a call's result, where it was."""
        return next((item for item in self._of(call_id) if item.stands_in), None)

    def _of(self, call_id: str) -> list[ToolResultItem]:
        return [
            item for item in self._conversation.items if isinstance(item, ToolResultItem) and item.call_id == call_id
        ]
