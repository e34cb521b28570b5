"""What reading any field needs: its presence, and a refusal that names its path."""

from __future__ import annotations

import json
from functools import lru_cache

from google.protobuf.message import Message

from engine.grammar.compiler import check_schema
from service.problems import invalid

_problem_of = lru_cache(1024)(check_schema)
"""The same agent opens call after call with the same tools."""


def present(text: str, path: str) -> str:
    """A text that must not be empty."""
    if not text:
        raise invalid(path, "must not be empty")
    return text


def given(message: Message, name: str) -> int | None:
    """The value of an optional field; None when it is absent."""
    return int(getattr(message, name)) if message.HasField(name) else None


def at_least_one(message: Message, name: str, path: str) -> int | None:
    """The value of an optional field that lies in ``path`` and must not be 0; None when it is absent."""
    value = given(message, name)
    if value == 0:
        raise invalid(f"{path}.{name}", "must be 1 or more")
    return value


def json_object(text: str, path: str) -> dict[str, object]:
    """The JSON object in ``text``; an empty one for an empty text."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid(path, "is not JSON") from None
    if not isinstance(value, dict):
        raise invalid(path, "must be the JSON text of an object")
    return value


def json_schema(text: str, path: str) -> dict[str, object]:
    """The JSON Schema in ``text``, one that replies can be held to; an empty one for an empty text."""
    schema = json_object(text, path)
    if problem := _problem_of(json.dumps(schema)):
        raise invalid(path, problem)
    return schema
