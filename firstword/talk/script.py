"""What a conversation is held with: the agent's instructions and tools, and the caller's part of a recorded call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstword import Tool
from firstword.serve import service_root


class ScriptError(Exception):
    """A file of calls or tools cannot be used. The message names it and what is wrong."""


@dataclass(frozen=True)
class Script:
    """system: the system prompt. lines: the caller's, in order. results: (tool, output) in order of the record."""

    system: str = ""
    tools: tuple[Tool, ...] = ()
    lines: tuple[str, ...] = ()
    results: tuple[tuple[str, str], ...] = ()


def embedded_calls() -> Path | None:
    """Recorded calls in the form that the embedded model was trained on; None where the repository is not."""
    root = service_root()
    path = None if root is None else root / "models" / "receptionist" / "examples.jsonl"
    return path if path is not None and path.is_file() else None


def read_call(path: Path) -> Script:
    """The first call of a JSONL file in which a tool is used, or else its first one.

    A line is ``{"messages": [...], "tools": [...]}`` as chat templates take them. Raises ScriptError.
    """
    try:
        calls = [parse_call(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScriptError(f"{path}: not a file of recorded calls: {_cause(error)}") from None
    spoken = [call for call in calls if call.lines]
    if not spoken:
        raise ScriptError(f"{path}: nobody says anything in it")
    return next((call for call in spoken if call.results), spoken[0])


def parse_call(example: Mapping[str, Any]) -> Script:
    """One recorded call. Raises KeyError, TypeError and the like for another form."""
    messages = example["messages"]
    named: list[str] = []
    results: list[tuple[str, str]] = []
    for message in messages:
        named += [call["function"]["name"] for call in message.get("tool_calls") or ()]
        if message["role"] == "tool":
            results.append((named[len(results)], message["content"]))
    return Script(
        system="\n".join(m["content"] for m in messages if m["role"] == "system"),
        tools=parse_tools(example.get("tools") or ()),
        lines=tuple(m["content"] for m in messages if m["role"] == "user"),
        results=tuple(results),
    )


def read_tools(path: Path) -> tuple[Tool, ...]:
    """A JSON file with a list of tools, each bare or as ``{"type": "function", "function": {...}}``.

    Raises ScriptError.
    """
    try:
        return parse_tools(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScriptError(f"{path}: not a list of tools: {_cause(error)}") from None


def parse_tools(listed: Iterable[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Tools as chat templates take them. They have no handlers: who holds the conversation answers."""
    bare = [tool.get("function", tool) for tool in listed]
    return tuple(Tool(tool["name"], tool.get("description", ""), tool.get("parameters") or {}) for tool in bare)


def text_or_file(given: str) -> str:
    """The contents of the file of that name, or else the text itself. Raises ScriptError for an unreadable file."""
    try:
        path = Path(given).expanduser()
        return path.read_text(encoding="utf-8").strip() if path.is_file() else given
    except UnicodeDecodeError as error:
        raise ScriptError(f"{given}: {error}") from None
    except OSError:  # longer than a name can be
        return given


def _cause(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
