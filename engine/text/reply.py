"""Reads one reply: ids in, text that is safe to speak out, with its clauses, its tool calls and its stop strings.

Holds back what could still become half a character, the beginning of a stop string, or the mark of a tool call. Lives
with one turn; knows no session.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.text.clauses import ClauseFinder
from engine.text.codec import Codec

CALL, CALL_END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """A tool call as the model wrote it. arguments: the JSON text of an object."""

    name: str
    arguments: str


@dataclass
class Read:
    """What a reply gained since it was last asked. malformed: texts of calls that are no JSON call."""

    text: str = ""
    clause_ends: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)


class ReplyReader:
    """A ``TextWatcher`` over one reply.

    tools: whether ``<tool_call>`` marks begin a call (Hermes, Qwen and our own format); otherwise they are text.
    """

    def __init__(self, codec: Codec, stop_strings: Sequence[str] = (), *, tools: bool = False) -> None:
        if any(not stop for stop in stop_strings):
            raise ValueError("a stop string must not be empty")
        self._stream = codec.stream()
        self._stops = tuple(stop_strings)
        self._tools = tools
        self._clauses = ClauseFinder()
        self._pending = ""  # decoded, neither emitted nor ruled out
        self._call: str | None = None  # text of the call that is being written
        self._raw_length = 0
        self._token_ends: list[int] = []
        self._stop_at: int | None = None
        self._read = Read()

    @property
    def stopped(self) -> bool:
        return self._stop_at is not None

    @property
    def kept_tokens(self) -> int:
        """Ids to keep: all, or those up to the last that ends on a whole character at or before the stop string."""
        if self._stop_at is None:
            return len(self._token_ends)
        fitting = bisect_right(self._token_ends, self._stop_at)
        # Behind the id that completes a character there may be some that begin the next one.
        end = self._token_ends[fitting - 1] if fitting else 0
        return bisect_left(self._token_ends, end) + 1 if end else 0

    def push(self, token: int) -> str:
        """Add one id; returns the text that became safe to emit (also kept for ``take``)."""
        piece = self._stream.push(token)
        self._raw_length += len(piece)
        self._token_ends.append(self._raw_length)
        if self.stopped or not piece:
            return ""
        self._pending += piece
        before = len(self._read.text)
        self._advance()
        return self._read.text[before:]

    def take(self, *, final: bool = False) -> Read:
        """Everything since the last ``take``. ``final``: the reply is over, so nothing is held back any more."""
        if final:
            self.finish()
        read, self._read = self._read, Read()
        return read

    def finish(self) -> str:
        """Release what was held back. A call whose end mark never came counts if it is whole, else as malformed."""
        text = ""
        if not self.stopped and self._pending:
            if self._call is None:
                text = self._pending
                self._emit(text)
            else:
                self._call += self._pending
            self._pending = ""
        if self._call is not None:
            self._finish_call()
        self._read.clause_ends += self._clauses.finish()
        return text

    def _advance(self) -> None:
        """Move what is certain out of the pending text."""
        while self._pending:
            if self._call is not None:
                if not self._advance_call():
                    return
                continue
            at, mark = self._first_mark()
            if mark is None:
                held = self._held_back()
                self._emit(self._pending[: len(self._pending) - held])
                self._pending = self._pending[len(self._pending) - held :]
                return
            self._emit(self._pending[:at])
            if mark != CALL:
                self._stop_at = self._raw_length - len(self._pending) + at
                self._pending = ""
                return
            self._pending, self._call = self._pending[at + len(CALL) :], ""

    def _advance_call(self) -> bool:
        """Take pending text into the call; False when all of it was taken and the call goes on."""
        assert self._call is not None
        text = self._call + self._pending
        body, found, rest = text.partition(CALL_END)
        if not found:
            self._call, self._pending = text, ""
            return False
        self._call, self._pending = body, rest
        self._finish_call()
        return True

    def _finish_call(self) -> None:
        text, self._call = self._call or "", None
        call = parse_call(text)
        if call is None:
            self._read.malformed.append(text)
        else:
            self._read.calls.append(call)

    def _first_mark(self) -> tuple[int, str | None]:
        """Where the stop string or call mark begins that is complete first, however the text was cut into tokens."""
        marks = (*self._stops, CALL) if self._tools else self._stops
        found = [(at + len(mark), at, mark) for mark in marks if (at := self._pending.find(mark)) >= 0]
        return min(found)[1:] if found else (-1, None)

    def _held_back(self) -> int:
        """Length of the longest end of the pending text that could be the beginning of a mark."""
        marks = (*self._stops, CALL) if self._tools else self._stops
        longest = 0
        for mark in marks:
            for length in range(min(len(mark) - 1, len(self._pending)), longest, -1):
                if self._pending.endswith(mark[:length]):
                    longest = length
                    break
        return longest

    def _emit(self, text: str) -> None:
        if text:
            self._read.text += text
            self._read.clause_ends += self._clauses.push(text)


def parse_call(text: str) -> Call | None:
    """A ``{"name": ..., "arguments": {...}}`` object (``parameters`` is taken for ``arguments``), or None."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))
