"""How a model writes tool calls: what its own chat template puts around a call's name and arguments.

Plain text, so it crosses the message boundary; whoever reads replies and whoever constrains them use the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

NAME, KEYS, VALUE = "qzxnameqzx", ("qzxaqzx", "qzxbqzx"), "qzxvalueqzx"
"""Of the probing call, with which a template is asked."""


@dataclass(frozen=True)
class Call:
    """A tool call as the model wrote it. arguments: the JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class CallForm:
    """A call is ``before``, its name, ``between``, the JSON of its arguments, ``after``.

    item, key: what separates members in that JSON, and a key from its value. several: whether a reply can hold more
    than one call.
    """

    before: str
    between: str
    after: str
    item: str = ", "
    key: str = ": "
    several: bool = True

    @property
    def mark(self) -> str:
        """What begins a call inside a reply; empty where a reply that is a call is one from its first character."""
        return self.before.partition("{")[0].strip()

    @property
    def end_mark(self) -> str:
        return self.after.strip().lstrip("}").strip()

    def end_of_calls(self, text: str, count: int) -> int:
        """Where the ``count``-th call of a reply ends; the text's end where it has not so many."""
        at = 0
        for _ in range(count):
            begin = text.find("{", text.find(self.mark, at) if self.mark else at)
            try:
                _, at = json.JSONDecoder().raw_decode(text, max(0, begin))
            except (ValueError, RecursionError):
                return len(text)
            at = text.find(self.end_mark, at) + len(self.end_mark)
        return at

    def is_begun_by(self, text: str) -> bool | None:
        """Without a mark: whether a reply that begins so is a call; None while that is open."""
        text, before = _squeezed(text), _squeezed(self.before)
        if len(text) < len(before):
            return None if before.startswith(text) else False
        return text.startswith(before)


HERMES = CallForm('<tool_call>{"name": "', '", "arguments": ', "}</tool_call>")
"""Hermes, and our own; Qwen's has line breaks around the object."""


def form_of(rendering: str) -> CallForm | None:
    """The form of a rendering of the probing call, alone: a message of the assistant from behind the prompt to before
    its tail. None for one that is no JSON object with a name and arguments.
    """
    before, found, rest = rendering.partition(NAME)
    between, _, _ = rest.partition("{")
    arguments, item, key = _arguments(rest[len(between) :])
    if not found or not arguments:
        return None
    form = CallForm(before, between, rest[len(between) + len(arguments) :], item, key)
    written = before[len(before.partition("{")[0]) :] + NAME + between + arguments + form.after.partition("<")[0]
    return form if [call.name for call in parse_calls(written)] == [NAME] else None


def _arguments(text: str) -> tuple[str, str, str]:
    """(JSON of the probing arguments, item separator, key separator) at the beginning of a text; empty where not."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return "", "", ""
    if value != dict.fromkeys(KEYS, VALUE):
        return "", "", ""
    key = text[text.index(KEYS[0]) + len(KEYS[0]) + 1 : text.index(VALUE) - 1]
    item = text[text.index(VALUE) + len(VALUE) + 1 : text.index(KEYS[1]) - 1]
    return text[:end], item, key


def parse_calls(text: str, names: Collection[str] | None = None) -> list[Call]:
    """The calls of a text that is one or more ``{"name": ..., "arguments": {...}}`` (``parameters`` is taken for
    ``arguments``), apart from each other by white space or ``;`` (Llama 3.1); empty for any other text, and where one
    has a name that is not among ``names``.
    """
    calls, rest = [], text.strip()
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
            call = _call(value, rest[:end])
        except (ValueError, RecursionError):  # brackets may be nested deeper than Python reads
            return []
        if call is None or (names is not None and call.name not in names):
            return []
        calls.append(call)
        rest = rest[end:].strip().removeprefix(";").strip()
    return calls


_ARGUMENTS = re.compile(r'(?<!\\)"(?:arguments|parameters)"\s*:\s*')


def _call(value: object, written: str) -> Call | None:
    """The call in a JSON value that was written so. Its arguments are handed on as they were written: a number may be
    one that Python's own cannot hold.
    """
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or len(value) > 2:
        return None
    arguments = value.get("arguments", value.get("parameters", {} if len(value) == 1 else None))
    if not isinstance(arguments, dict):
        return None
    for key in _ARGUMENTS.finditer(written):
        found, end = json.JSONDecoder().raw_decode(written, key.end())
        if found == arguments:
            return Call(value["name"], written[key.end() : end])
    return Call(value["name"], "{}")


def _squeezed(text: str) -> str:
    """Without white space, which some models leave out of what their template writes."""
    return "".join(text.split())
