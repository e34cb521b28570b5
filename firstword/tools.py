"""Executes tool calls with the handlers that their tools have."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Mapping

from firstword.types import Tool, ToolCall, ToolResult
from firstword.wire import json_text

log = logging.getLogger(__name__)


async def execute(tools: Mapping[str, Tool], call: ToolCall) -> ToolResult:
    """The result of a call, by its tool's handler.

    What goes wrong with the handler becomes the result, for the model to deal with; so does a tool that there is not.
    Raises LookupError for a tool that has no handler.
    """
    tool = tools.get(call.name)
    if tool is None:
        return _failure(call, f"there is no tool {call.name}")
    if tool.handler is None:
        raise LookupError(f"the tool {call.name} has no handler: answer with Call.tool_result")
    try:
        if inspect.iscoroutinefunction(tool.handler):
            value = await tool.handler(**call.arguments)
        else:
            value = await asyncio.to_thread(tool.handler, **call.arguments)
            if inspect.isawaitable(value):  # of an object whose __call__ is async
                value = await value
        return ToolResult(call.call_id, value if isinstance(value, str) else json_text(value))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return _failure(call, "it was cancelled")  # by something of the handler's own: the model has to be told
    except Exception as error:
        log.warning("the tool %s failed", call.name, exc_info=True)
        return _failure(call, str(error) or type(error).__name__)


def _failure(call: ToolCall, message: str) -> ToolResult:
    return ToolResult(call.call_id, json_text({"error": message}), is_error=True)
