"""Structured logs: one JSON object a line, on stderr. Conversation text never goes in; ids, counts and causes do.

What an exception says may quote what was being worked on, so it is left out: its type and where it was raised say
enough. Where ``telemetry.content`` lets spans hold what was said, logs hold it too.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any, Literal

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Formatter(logging.Formatter):
    """content: exceptions with what they say."""

    def __init__(self, *, content: bool = False) -> None:
        super().__init__()
        self._content = content

    def formatException(self, ei: Any) -> str:
        return super().formatException(ei) if self._content else where_raised(ei[1])


class JsonFormatter(_Formatter):
    """Every ``extra`` of a record becomes a key of the object."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        entry.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class TextFormatter(_Formatter):
    """The same for people: the extras behind the message."""

    def format(self, record: logging.LogRecord) -> str:
        extras = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        line = f"{record.levelname.lower():7} {record.getMessage()}{'  ' if extras else ''}{extras}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def where_raised(error: BaseException | None) -> str:
    """The types of an exception and of its causes, each with where it was raised, and nothing that any of them says."""
    parts: list[str] = []
    known: set[int] = set()
    while error is not None and id(error) not in known:
        known.add(id(error))
        parts.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__qualname__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nwhich came of\n".join(parts)


def configure(level: str, form: Literal["json", "text"], *, content: bool = False) -> None:
    """Send every log record of this process to stderr in the given form. content: with what exceptions say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(content=content) if form == "json" else TextFormatter(content=content))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def unhandled(loop: Any, context: dict[str, Any]) -> None:
    """For ``loop.set_exception_handler``: asyncio's own prints tasks with their exceptions, and what those say."""
    error = context.get("exception")
    logging.getLogger("asyncio").error(context["message"], exc_info=error if error is not None else False)
